// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <charconv>
#include <concepts>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace support {

/// The options of a program, one after the other: `--name`, `--name VALUE` or `--name=VALUE`, and `-h` for `--help`.
/// Whatever is wrong with them is thrown as a std::invalid_argument that says so.
class Arguments {
public:
    Arguments(int argc, char** argv) : at_(argv + std::min(argc, 1)), end_(argv + argc) {}

    /// Goes on to the next option, if there is one.
    bool next() {
        if (value_) {
            throw std::invalid_argument(option_ + " takes no value, got '" + *value_ + "'");
        }
        if (at_ == end_) {
            return false;
        }
        option_ = *at_++;
        if (const auto equals = option_.find('='); equals != std::string::npos && option_.starts_with("--")) {
            value_ = option_.substr(equals + 1);
            option_.resize(equals);
        }
        if (option_ == "-h") {
            option_ = "--help";
        }
        return true;
    }

    /// The name of this option.
    const std::string& option() const noexcept { return option_; }

    /// What this option is given, which is not nothing.
    std::string value(const std::string& what) {
        if (!value_ && (at_ == end_ || std::string_view(*at_).starts_with("--"))) {
            throw std::invalid_argument(option_ + " takes " + what);
        }
        std::string text = value_ ? *std::exchange(value_, std::nullopt) : *at_++;
        if (text.empty()) {
            throw std::invalid_argument(option_ + " takes " + what + ", got ''");
        }
        return text;
    }

    template <std::integral Number>
    Number number(Number least, Number most) {
        const std::string what = "a whole number from " + std::to_string(least) + " to " + std::to_string(most);
        const std::string text = value(what);
        Number number{};
        const char* end = text.data() + text.size();
        const auto [stop, error] = std::from_chars(text.data(), end, number);
        if (error != std::errc() || stop != end || number < least || number > most) {
            throw std::invalid_argument(option_ + " takes " + what + ", got '" + text + "'");
        }
        return number;
    }

    [[noreturn]] void unknown() const {
        throw std::invalid_argument("unknown option '" + option_ + "' (--help lists them)");
    }

private:
    char** at_;
    char** end_;
    std::string option_;
    std::optional<std::string> value_;  // if it came with the option, and nobody has taken it
};

/// For a program that has no options: the status to end with at once if it is given any.
inline std::optional<int> refuse_arguments(const std::string& program, int argc, char** argv) {
    if (argc < 2) {
        return std::nullopt;
    }
    if (const std::string_view option(argv[1]); option == "--help" || option == "-h") {
        std::cout << "usage: " << program << "\n\nIt has no options.\n";
        return 0;
    }
    std::cerr << program << ": unknown option '" << argv[1] << "'; it has none\n";
    return 2;
}

}  // namespace support
