// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "header_values.hpp"

#include <chrono>
#include <optional>

namespace openai {

/// Returns how long the server asks to wait, at most `longest_time`: `retry-after-ms`, or else `retry-after` as a
/// number of seconds or as a date. Empty if they are missing, not more than zero, or make no sense.
/// @param now A date is relative to the header `date`, so that the clocks may differ; without that, to `now`.
std::optional<std::chrono::nanoseconds> retry_after(const Headers& headers, std::chrono::system_clock::time_point now);

}  // namespace openai
