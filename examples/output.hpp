// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sys/stat.h>

#include <filesystem>
#include <fstream>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>

namespace support {

/// Whether both are names of one file, which need not exist yet.
inline bool same_file(const std::string& a, const std::string& b) {
    struct stat found_a{};
    struct stat found_b{};
    if (stat(a.c_str(), &found_a) == 0 && stat(b.c_str(), &found_b) == 0) {
        return found_a.st_dev == found_b.st_dev && found_a.st_ino == found_b.st_ino;
    }
    // Absolute, even if nothing of it exists; empty if that cannot be known.
    const auto whole = [](const std::string& name) {
        std::error_code error;
        return std::filesystem::weakly_canonical(std::filesystem::absolute(name, error), error);
    };
    const auto whole_a = whole(a);
    return !whole_a.empty() && whole_a == whole(b);
}

/// Throws if both files are given and are the same.
inline void require_two_files(const std::string& option, const std::string& file, const std::string& other_option,
                              const std::string& other_file) {
    if (!file.empty() && !other_file.empty() && same_file(file, other_file)) {
        throw std::invalid_argument(option + " and " + other_option + " cannot both go to '" + other_file + "'");
    }
}

/// An output file, or none if the name is empty, opened before the run so that a wrong name is reported at once.
class Output {
public:
    explicit Output(std::string name) : name_(std::move(name)) {
        if (!name_.empty()) {
            file_.open(name_);
            check();
        }
    }

    template <class Write>
    void write(Write write) {
        if (!name_.empty()) {
            write(file_);
            file_.close();
            check();
        }
    }

private:
    void check() const {
        if (!file_) {
            throw std::runtime_error("cannot write '" + name_ + "'");
        }
    }

    std::string name_;
    std::ofstream file_;
};

}  // namespace support
