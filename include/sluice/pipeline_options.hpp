// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/stage_options.hpp>
#include <sluice/timer.hpp>

#include <boost/asio/steady_timer.hpp>

#include <cstddef>
#include <optional>

namespace sluice {

/// How many queries may be in each stage at once; each at least 1.
struct StageLimits {
    std::ptrdiff_t classify;
    std::ptrdiff_t extract;
    std::ptrdiff_t generate;
};

/// What an InferencePipeline may be told beside its limits. `TimerType` is what it waits with and measures time by.
template <Timer TimerType = boost::asio::steady_timer>
struct BasicPipelineOptions {
    BasicStageOptions<TimerType> classify;
    BasicStageOptions<TimerType> extract;
    BasicStageOptions<TimerType> generate;

    /// How many queries process_batch() and process_stream() run at once; at least 1. Default: the sum of the limits,
    /// which keeps every stage busy. A query in backoff keeps its place in the window.
    std::optional<std::ptrdiff_t> window;

    /// Is told of every dead letter, and of every run of those stages that have no observer of their own. Default:
    /// none.
    Observer* observer = nullptr;

    BasicPipelineOptions() = default;

    /// The same options for all three stages.
    explicit BasicPipelineOptions(const BasicStageOptions<TimerType>& every_stage,
                                  Observer* pipeline_observer = nullptr)
        : classify(every_stage), extract(every_stage), generate(every_stage), observer(pipeline_observer) {}
};

using PipelineOptions = BasicPipelineOptions<>;

}  // namespace sluice
