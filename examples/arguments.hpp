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

/// Parses the options of a program one by one: `--name`, `--name VALUE` or `--name=VALUE`, and `-h` for `--help`. If
/// one is wrong, throws a std::invalid_argument with a message.
class Arguments {
public:
    Arguments(int argc, char** argv) : at_(argv + std::min(argc, 1)), end_(argv + argc) {}

    /// Moves on to the next option; returns false if there is none.
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

    /// The name of the current option.
    const std::string& option() const noexcept { return option_; }

    /// The value of the current option, which must not be empty. Messages call it `what`.
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

    /// The value of the current option, as a number from `least` to `most`.
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

    [[noreturn]] void unknown() const { throw std::invalid_argument("unknown option '" + option_ + "' (see --help)"); }

private:
    char** at_;
    char** end_;
    std::string option_;
    std::optional<std::string> value_;  // of `--name=VALUE`, until it is read
};

/// For a program without options: returns the status to exit with if there are any arguments.
inline std::optional<int> refuse_arguments(const std::string& program, int argc, char** argv) {
    if (argc < 2) {
        return std::nullopt;
    }
    if (const std::string_view option(argv[1]); option == "--help" || option == "-h") {
        std::cout << "usage: " << program << "\n\nThis program has no options.\n";
        return 0;
    }
    std::cerr << program << ": unknown option '" << argv[1] << "'; it has no options\n";
    return 2;
}

}  // namespace support
