// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/breaker.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry_budget.hpp>
#include <sluice/stage/verdict.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <type_traits>

namespace sluice {

class EndpointObserver;

/// Which of the attempts in the line of an endpoint gets the next slot.
enum class LineOrder : std::uint8_t {
    first_come,     ///< The one that has waited longest.
    furthest_first  ///< One whose query has completed the most steps; of these, the one that has waited longest.
};

/// The options of an Endpoint. Fields are only ever appended.
///
/// @code
/// const sluice::EndpointOptions options{.limit = 8, .requests = sluice::Rate(500, 1min)};
/// @endcode
struct EndpointOptions {
    std::ptrdiff_t limit = 0;               ///< How many attempts may run at once; at least 1.
    VerdictFunction verdict = &verdict_of;  ///< What an error of the model means; not null.

    /// How many attempts may begin in a time. Default: any number.
    Rate requests = Rate::unlimited;

    /// How many tokens the attempts may take in a time, as the model function estimates them; see Stage. Default: any
    /// number.
    Rate input_tokens = Rate::unlimited;
    Rate output_tokens = Rate::unlimited;

    /// Stops the attempts while the provider is down. Default: none.
    std::optional<BreakerOptions> breaker = std::nullopt;

    /// How many of the stage runs may be retries at once. Default: any number.
    std::optional<RetryBudget> retry_budget = std::nullopt;

    /// Is told of pauses and of what the breaker does; see EndpointObserver, also for how long it must live. Default:
    /// none.
    EndpointObserver* observer = nullptr;

    /// How many attempts may wait in the line; not negative, and with 0 none waits. If one more would have to, its
    /// stage run fails at once, with Reason::overloaded, and is not retried; in a line of LineOrder::furthest_first
    /// too, however far its query is. An attempt that returns to its old place finds it, so there may be more for a
    /// time. Default: any number.
    ///
    /// The window of a batch or stream bounds the line already. This, and `max_wait`, are for process_one() and
    /// Stage::run() in a server.
    std::optional<std::ptrdiff_t> max_waiting = std::nullopt;

    /// How long an attempt may wait in the line, for whatever it waits; positive. Then it leaves the line, even if a
    /// slot comes at that very time: its stage run fails with Reason::overloaded, and is not retried. If the timeout of
    /// its query is over by then, the reason is that. The next attempt of a stage run, even one that returns to its old
    /// place, begins to wait anew. Default: any time.
    std::optional<std::chrono::nanoseconds> max_wait = std::nullopt;

    /// Whether a query is refused if its timeout leaves less time than a call takes: less than the median of the last
    /// 64 calls that succeeded, each from when it got its slot, once there are 20. When its attempt is the first of the
    /// line and there is a slot, and as soon as less time is left, its stage run fails with Reason::deadline, and has
    /// taken nothing. See Query::timeout; a query without one is not refused.
    ///
    /// During a drain, the grace is a timeout for every query; one that it leaves too little time is unfinished.
    ///
    /// While every query is refused no call is made, and the median remains what it was. So give queries a timeout that
    /// some calls can meet. O(64) for a call that succeeds.
    bool shed_late = false;

    /// Which attempt gets the next slot. If stages that follow each other share an endpoint, the line of the first come
    /// serves the first stage of all queries before the second stage of any; so if the pipeline is stopped half-way,
    /// none is completed. LineOrder::furthest_first completes queries that have begun before it begins others.
    ///
    /// The steps of a query are the stage runs that have succeeded since its pipeline took it in, and those that were
    /// skipped since their fields were filled, as of when the attempt enters the line. Stage::run() alone has none. An
    /// attempt that returns to its old place returns to it among those with as many steps. Attempts of fewer steps wait
    /// as long as others keep coming. An attempt costs O(those that it overtakes).
    LineOrder order = LineOrder::first_come;
};
static_assert(std::is_aggregate_v<EndpointOptions> && std::is_trivially_destructible_v<EndpointOptions>);

}  // namespace sluice
