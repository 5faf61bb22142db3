// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/breaker.hpp>
#include <sluice/sync/detail/require.hpp>

#include <algorithm>
#include <chrono>
#include <string_view>

namespace sluice::detail {

// The longest open time.
inline std::chrono::nanoseconds open_cap(const BreakerOptions& options) noexcept {
    constexpr std::chrono::nanoseconds usual = std::chrono::seconds(120);
    return options.open_cap.value_or(std::max(usual, options.open_time));
}

// Throws std::invalid_argument naming the option that is out of range, and its value, if one is.
inline void require_valid(std::string_view owner, const BreakerOptions& options) {
    const auto require_rate = [&](const char* rule, double rate) { require(rate > 0 && rate <= 1, owner, rule, rate); };
    const auto require_positive = [&](const char* rule, std::chrono::nanoseconds time) {
        require(time.count() > 0, owner, rule, time.count(), " ns");
    };
    require_rate("failure_rate must be more than 0 and at most 1", options.failure_rate);
    require(options.minimum_calls >= 1, owner, "minimum_calls must be at least 1", options.minimum_calls);
    require_positive("window must be positive", options.window);
    if (options.window_calls) {
        require(*options.window_calls >= options.minimum_calls && *options.window_calls <= 1'000'000, owner,
                "window_calls must be at least minimum_calls and at most 1000000", *options.window_calls);
    }
    if (options.slow) {
        require_positive("slow must be positive", *options.slow);
    }
    require_rate("slow_rate must be more than 0 and at most 1", options.slow_rate);
    require_positive("open_time must be positive", options.open_time);
    require(open_cap(options) >= options.open_time, owner, "open_cap must be at least open_time",
            open_cap(options).count(), " ns");
    require(options.jitter >= 0 && options.jitter <= 1, owner, "jitter must be from 0 to 1", options.jitter);
    require(options.probes >= 1, owner, "probes must be at least 1", options.probes);
}

}  // namespace sluice::detail
