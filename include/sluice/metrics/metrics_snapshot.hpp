// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/metrics/histogram.hpp>
#include <sluice/reason.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <vector>

namespace sluice {

/// The numbers of one stage at one instant. At any instant, even inside an event,
///
///     entered = queued + running + in_backoff + succeeded + failed + cancelled
///     attempts = running + latency.count()
///
/// A stage run whose context was destroyed has no further events, and stays where it was.
struct StageMetrics {
    /// One number for each Verdict::Kind, in its order.
    using ByVerdict = std::array<std::uint64_t, static_cast<std::size_t>(Verdict::exhausted) + 1>;

    SharedString stage;

    std::uint64_t queued = 0;      ///< Stage runs that wait for a slot now.
    std::uint64_t running = 0;     ///< Stage runs that have a slot now.
    std::uint64_t in_backoff = 0;  ///< Stage runs between a failed attempt and the wait for the slot of the next one.

    std::uint64_t entered = 0;  ///< Stage runs that have begun.
    std::uint64_t succeeded = 0;
    std::uint64_t failed = 0;
    std::uint64_t cancelled = 0;

    std::uint64_t skipped = 0;  ///< Queries for which a Fallback has skipped the stage; none of them has entered.

    std::uint64_t attempts = 0;  ///< Attempts that have begun.
    std::uint64_t failed_attempts = 0;
    ByVerdict retries{};  ///< Retries that were decided, including those that a cancellation has prevented since.

    Histogram queue_time;  ///< The time of each wait for a slot that has ended, with or without one.
    Histogram latency;     ///< The time that each attempt that has ended had its slot.

    std::uint64_t retries_after(Verdict::Kind kind) const noexcept { return retries[static_cast<std::size_t>(kind)]; }
};
static_assert(to_string(Verdict::Kind(StageMetrics::ByVerdict().size())) == "unknown", "a verdict is not counted");

/// The dead letters of one stage or Fallback, or of `route` or `save`; see Pipeline.
struct DeadLetterMetrics {
    /// One number for each Reason, in its order.
    using ByReason = std::array<std::uint64_t, static_cast<std::size_t>(Reason::not_accepted) + 1>;

    SharedString stage;
    ByReason dead_letters{};  ///< Those that the sink threw at included.
    std::uint64_t lost = 0;   ///< Those for which the sink's `put` threw.

    std::uint64_t dead_letters_because(Reason reason) const noexcept {
        return dead_letters[static_cast<std::size_t>(reason)];
    }
};
static_assert(to_string(Reason(DeadLetterMetrics::ByReason().size())) == "unknown", "a reason is not counted");

/// What an endpoint has of one of its rates, and what has been taken of it since that was set. At any instant,
///
///     granted + debt = settled + refunded + outstanding
///
/// These are of calls that began while there was a rate; they wrap around after 2^64.
struct RateMetrics {
    /// One limit of the rate. Of several that are as long, the one of which less is left.
    struct Period {
        std::chrono::nanoseconds per{};
        std::int64_t left = 0;   ///< What may begin now; if it is negative, a debt, which later calls wait for.
        std::int64_t burst = 0;  ///< What may be left at most.
    };

    std::vector<Period> periods;  ///< Sorted by length; none if the rate is unlimited.

    std::uint64_t granted = 0;      ///< Estimated for calls when they began.
    std::uint64_t debt = 0;         ///< Used beyond that.
    std::uint64_t settled = 0;      ///< Used by calls that have ended.
    std::uint64_t refunded = 0;     ///< Granted to calls that have ended, and not used.
    std::uint64_t outstanding = 0;  ///< Granted to calls that have not ended.
};

/// The circuit breaker of an endpoint. Of several endpoints of one name, the number of those in each state.
struct BreakerMetrics {
    std::uint64_t closed = 0;  ///< 1 if the breaker is closed, and not by force; and so on.
    std::uint64_t open = 0;
    std::uint64_t half_open = 0;
    std::uint64_t forced_open = 0;
    std::uint64_t forced_closed = 0;
    std::uint64_t openings = 0;  ///< How often it became open, by itself or by force.
};

/// The numbers of an endpoint that is watched, or the sums over all of that name. Those that never fall include
/// endpoints of that name that have been destroyed since they were watched; but if none is left, there are none.
///
/// Once the execution context of an endpoint is destroyed, its clock stands still.
struct EndpointMetrics {
    /// One for each Rate::Dimension, in its order.
    using ByDimension = std::array<RateMetrics, static_cast<std::size_t>(Rate::output_tokens) + 1>;

    SharedString endpoint;
    std::uint64_t limit = 0;
    std::uint64_t active = 0;
    std::uint64_t waiting = 0;

    /// The time until the pause ends, of several endpoints the longest; zero without a pause.
    std::chrono::nanoseconds pause_left{0};
    std::optional<BreakerMetrics> breaker = std::nullopt;  ///< Empty if the endpoint has none.
    ByDimension rates{};

    const RateMetrics& rate(Rate::Dimension dimension) const noexcept {
        return rates[static_cast<std::size_t>(dimension)];
    }
};

/// The numbers of a pipeline that is watched, or the sums over all of that name. Those that count queries by their ends
/// include pipelines that have been destroyed since they were watched, so that no such number ever falls; and they
/// begin with the pipeline, even if that is watched later. The rest of a container that a drained pipeline returns as
/// unfinished was not taken in, and is in no number.
struct PipelineMetrics {
    SharedString pipeline;

    std::uint64_t window = 0;         ///< The size of the window of each batch and each stream.
    std::uint64_t windows = 0;        ///< The batches and streams that run now.
    std::uint64_t window_in_use = 0;  ///< The places that queries have in their windows now.

    std::uint64_t in_work = 0;       ///< Queries that have been taken in and have not ended; 0 for those destroyed.
    std::uint64_t completed = 0;     ///< Their route has returned, or all stages have succeeded.
    std::uint64_t dead_letters = 0;  ///< They went to the sink.
    std::uint64_t cancelled = 0;     ///< Together with the call, batch or stream that they belonged to.
    std::uint64_t unfinished = 0;    ///< A drain has cut them short.
};

/// The numbers of all stages, endpoints and pipelines at one instant, each sorted by name: a plain struct, which is
/// independent of the Metrics that it comes from.
struct MetricsSnapshot {
    std::vector<StageMetrics> stages;
    std::vector<DeadLetterMetrics> dead_letters;
    std::vector<EndpointMetrics> endpoints;
    std::vector<PipelineMetrics> pipelines;
};

}  // namespace sluice
