// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/stage/stage_options.hpp>

#include <cstddef>
#include <optional>
#include <type_traits>

namespace sluice {

/// The number of attempts that may run at once in each stage of an InferencePipeline; each at least 1.
struct StageLimits {
    std::ptrdiff_t classify;
    std::ptrdiff_t extract;
    std::ptrdiff_t generate;
};
static_assert(std::is_aggregate_v<StageLimits> && std::is_trivially_destructible_v<StageLimits>);

/// The options of an InferencePipeline. Fields are only ever appended.
struct InferencePipelineOptions {
    StageOptions classify = {};
    StageOptions extract = {};
    StageOptions generate = {};

    /// The number of queries that each batch and each stream runs at once; at least 1. Default: the sum of the limits,
    /// which keeps every stage busy, and follows them when they change; while all are 0, nothing is taken in.
    ///
    /// A query in backoff leaves its place to another, and returns ahead of those that have not been taken in.
    std::optional<std::ptrdiff_t> window = std::nullopt;

    /// The number of queries of each batch and each stream that may be in backoff and hold no place in the window; not
    /// negative. A query beyond it keeps its place during its backoff, so that memory stays bounded.
    std::ptrdiff_t max_in_backoff = 1000;

    /// Observes every dead letter, and every stage run in the stages that have no observer of their own. It must
    /// outlive the pipeline's operations. Default: none.
    Observer* observer = nullptr;
};
static_assert(std::is_aggregate_v<InferencePipelineOptions> &&
              std::is_trivially_destructible_v<InferencePipelineOptions>);

}  // namespace sluice
