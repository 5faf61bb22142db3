// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/steady_timer.hpp>

#include <cstddef>
#include <optional>

namespace sluice {

/// The number of attempts that may run at once in each stage of an InferencePipeline; each at least 1.
struct StageLimits {
    std::ptrdiff_t classify;
    std::ptrdiff_t extract;
    std::ptrdiff_t generate;
};

/// The options of an InferencePipeline.
/// @tparam TimerType The timer that the pipeline uses to wait and to measure time.
template <Timer TimerType = boost::asio::steady_timer>
struct BasicInferencePipelineOptions {
    BasicStageOptions<TimerType> classify;
    BasicStageOptions<TimerType> extract;
    BasicStageOptions<TimerType> generate;

    /// The number of queries that each batch and each stream runs at once; at least 1. Default: the sum of the limits,
    /// which keeps every stage busy. A query in backoff keeps its place in the window.
    std::optional<std::ptrdiff_t> window;

    /// Observes every dead letter, and every stage run in the stages that have no observer of their own. Default: none.
    Observer* observer = nullptr;

    BasicInferencePipelineOptions() = default;

    /// Uses the same options for all three stages.
    explicit BasicInferencePipelineOptions(const BasicStageOptions<TimerType>& every_stage,
                                           Observer* pipeline_observer = nullptr)
        : classify(every_stage), extract(every_stage), generate(every_stage), observer(pipeline_observer) {}
};

using InferencePipelineOptions = BasicInferencePipelineOptions<>;

}  // namespace sluice
