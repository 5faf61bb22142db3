// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/beast/http/fields.hpp>

#include <chrono>
#include <optional>
#include <string_view>

namespace openai {

using Headers = boost::beast::http::fields;

/// Times that headers ask for or report are cut to this, so that arithmetic with them is safe.
inline constexpr std::chrono::nanoseconds longest_time = std::chrono::hours(24 * 365);

/// Returns the value of the first header with this name, without spaces around it; empty if there is none.
std::string_view value_of(const Headers& headers, std::string_view name);

/// Reads a decimal number such as `1.5`, which is not negative, and finite.
std::optional<double> number_of(std::string_view text) noexcept;

/// Returns a time that is not negative, at most `longest_time`.
std::chrono::nanoseconds time_of(double seconds) noexcept;

/// Reads a duration such as `20ms`, `6m0s` or `1h2m3.5s`, or a number of seconds. At most `longest_time`.
std::optional<std::chrono::nanoseconds> duration_of(std::string_view text) noexcept;

/// Reads a date in one of the three forms of HTTP: `Sun, 06 Nov 1994 08:49:37 GMT`, `Sunday, 06-Nov-94 08:49:37 GMT`
/// and `Sun Nov  6 08:49:37 1994`. The name of the day is ignored.
/// @param now A year of two digits is at most 50 years later.
std::optional<std::chrono::sys_seconds> date_of(std::string_view text, std::chrono::sys_seconds now) noexcept;

}  // namespace openai
