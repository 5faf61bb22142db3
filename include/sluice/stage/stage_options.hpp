// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <optional>
#include <utility>

namespace sluice {

/// The options of a Stage.
/// @tparam TimerType The timer that the stage uses to wait and to measure time.
template <Timer TimerType = boost::asio::steady_timer>
struct BasicStageOptions {
    RetryPolicy retry;  ///< Default: no retries.
    std::optional<std::chrono::nanoseconds>
        timeout;                   ///< For each attempt, from when it gets its slot; positive. Default: none.
    Observer* observer = nullptr;  ///< Observes every stage run. Default: none.

    BasicStageOptions() = default;
    BasicStageOptions(RetryPolicy retry_policy, std::optional<std::chrono::nanoseconds> attempt_timeout = {},
                      Observer* stage_observer = nullptr)
        : retry(std::move(retry_policy)), timeout(attempt_timeout), observer(stage_observer) {}
};

using StageOptions = BasicStageOptions<>;

}  // namespace sluice
