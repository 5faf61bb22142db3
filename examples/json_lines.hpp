// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <fstream>
#include <map>
#include <ostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace support {

/// Writes lines to a file, each as soon as it comes, so that a program that is killed loses at most the one that it was
/// writing.
class LineWriter {
public:
    /// @param name The file; if it is empty, `otherwise` is written to, which must outlive this.
    /// @throws std::runtime_error if the file cannot be opened.
    LineWriter(std::string name, std::ios::openmode mode, std::ostream& otherwise)
        : name_(std::move(name)), out_(name_.empty() ? otherwise : file_) {
        if (!name_.empty()) file_.open(name_, mode);
        check();
    }

    LineWriter(const LineWriter&) = delete;
    LineWriter& operator=(const LineWriter&) = delete;

    /// @throws std::runtime_error if the line could not be written.
    void write(std::string_view line) {
        out_ << line << '\n' << std::flush;
        check();
    }

private:
    void check() const {
        if (!out_) throw std::runtime_error(name_.empty() ? "cannot write the output" : "cannot write '" + name_ + "'");
    }

    std::string name_;
    std::ofstream file_;
    std::ostream& out_;
};

/// Puts lines that come in any order into the order of their positions. Each position from 0 comes once, with a line or
/// without one.
class LinesInOrder {
public:
    /// Takes the line of a position; empty if it has none. Calls `write(position, line)` for each line whose turn it is
    /// now: all positions before it have come.
    template <class Write>
    void put(std::size_t position, std::string line, Write write) {
        waiting_.emplace(position, std::move(line));
        while (!waiting_.empty() && waiting_.begin()->first == next_) {
            take_first(write);
            ++next_;
        }
    }

    /// Writes the lines that still wait, although positions before them have not come.
    template <class Write>
    void put_rest(Write write) {
        while (!waiting_.empty()) take_first(write);
    }

    /// How many positions, from 0, have come without a gap.
    std::size_t passed() const noexcept { return next_; }

private:
    template <class Write>
    void take_first(Write& write) {
        const auto first = waiting_.extract(waiting_.begin());
        if (!first.mapped().empty()) write(first.key(), first.mapped());
    }

    std::map<std::size_t, std::string> waiting_;
    std::size_t next_ = 0;
};

}  // namespace support
