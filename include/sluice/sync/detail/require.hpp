// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <array>
#include <charconv>
#include <concepts>
#include <stdexcept>
#include <string>

namespace sluice::detail {

// Formats a number for a message: exactly, and in as few digits as that takes.
template <std::floating_point Number>
std::string format_number(Number number) {
    std::array<char, 400> text;  // the longest double has 1 + 308 digits, the smallest 325 after the point
    return {text.data(), std::to_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed).ptr};
}

template <std::integral Number>
std::string format_number(Number number) {
    return std::to_string(number);
}

// Returns `value`, or throws std::invalid_argument with "<owner>: <rule>, got <value><unit>" if `holds` is false.
template <class Number>
Number require(bool holds, const std::string& owner, const char* rule, Number value, const char* unit = "") {
    if (!holds) {
        throw std::invalid_argument(owner + ": " + rule + ", got " + format_number(value) + unit);
    }
    return value;
}

}  // namespace sluice::detail
