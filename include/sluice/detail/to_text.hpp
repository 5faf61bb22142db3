// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/requirements.hpp>

#include <array>
#include <charconv>
#include <concepts>
#include <string>

namespace sluice::detail {

// A number for a message: exact, and in as few digits as that takes.
template <std::floating_point Number>
std::string to_text(Number number) {
    std::array<char, 400> text;  // the longest double has 1 + 308 digits, the smallest 325 behind the point
    return {text.data(), std::to_chars(text.data(), text.data() + text.size(), number, std::chars_format::fixed).ptr};
}

template <std::integral Number>
std::string to_text(Number number) {
    return std::to_string(number);
}

}  // namespace sluice::detail
