// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <array>
#include <charconv>
#include <chrono>
#include <concepts>
#include <functional>
#include <ratio>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>

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

// Formats a time for a message.
inline std::string in_milliseconds(std::chrono::nanoseconds time) {
    return format_number(std::chrono::duration<double, std::milli>(time).count()) + " ms";
}

// Returns `value`, or throws std::invalid_argument with "<owner>: <rule>, got <value><unit>" if `holds` is false.
template <class Number>
Number require(bool holds, std::string_view owner, const char* rule, Number value, const char* unit = "") {
    if (!holds) {
        throw std::invalid_argument(std::string(owner) + ": " + rule + ", got " + format_number(value) + unit);
    }
    return value;
}

// Whether a callable is empty. Those of a type that cannot be empty are not.
template <class T>
bool is_empty(const T& object) {
    if constexpr (std::is_pointer_v<T> || std::is_member_pointer_v<T>) {
        return object == nullptr;
    } else if constexpr (requires { object.operator bool(); }) {
        return !object;
    } else {
        return false;
    }
}
template <class T>
bool is_empty(const std::reference_wrapper<T>& object) {
    if constexpr (std::is_function_v<T>) {
        return false;
    } else {
        return is_empty(object.get());
    }
}

// Returns `executor`, or throws std::invalid_argument if it is empty.
template <class Executor>
Executor require_executor(std::string_view owner, Executor executor) {
    if constexpr (std::is_constructible_v<bool, const Executor&>) {
        if (!static_cast<bool>(executor)) {
            throw std::invalid_argument(std::string(owner) + ": the executor must not be empty");
        }
    }
    return executor;
}

}  // namespace sluice::detail
