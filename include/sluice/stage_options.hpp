// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/retry.hpp>
#include <sluice/timer.hpp>

#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <optional>
#include <utility>

namespace sluice {

/// What a Stage may be told beside its limit. `TimerType` is what it waits with and measures time by.
template <Timer TimerType = boost::asio::steady_timer>
struct BasicStageOptions {
    RetryPolicy retry;                                ///< Default: no retries.
    std::optional<std::chrono::nanoseconds> timeout;  ///< Of each attempt, in its slot; positive. Default: none.
    Observer* observer = nullptr;                     ///< Is told of every run. Default: none.

    BasicStageOptions() = default;
    BasicStageOptions(RetryPolicy retry_policy, std::optional<std::chrono::nanoseconds> attempt_timeout = {},
                      Observer* stage_observer = nullptr)
        : retry(std::move(retry_policy)), timeout(attempt_timeout), observer(stage_observer) {}
};

using StageOptions = BasicStageOptions<>;

}  // namespace sluice
