// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>
#include <type_traits>

namespace sluice {

/// The options of a circuit breaker, which stops the calls of a provider that is down or slow. Fields are only ever
/// appended.
///
/// @li *closed*: calls begin, and their results are counted in a window. Once that holds `minimum_calls`, and the share
/// of failed calls reaches `failure_rate` or that of slow ones `slow_rate`, the breaker opens. A call that finds the
/// account exhausted opens it at once.
/// @li *open*: no call begins for the open time. Then the breaker is half-open.
/// @li *half-open*: `probes` calls begin. As soon as the outcome is certain, the breaker opens again, for twice the
/// time, if their results reach one of the two rates, and otherwise closes with an empty window.
///
/// A call that is throttled, refused as invalid or cancelled is not counted, and a probe that ends so is replaced. One
/// that Query::timeout cuts short has failed if its stage has no timeout, and is not counted otherwise, unless it was
/// slow. The result of a call that began before the last change of the state is not counted either. For a breaker that
/// opens after 3 failures in a row, write:
///
/// @code
/// const sluice::BreakerOptions options{.failure_rate = 1, .minimum_calls = 3, .window_calls = 3};
/// @endcode
///
/// Each call costs O(1). Sources: M. Nygard, "Release It!", 2007, for the states; resilience4j for the rates of failed
/// and slow calls; sony/gobreaker for the generations.
struct BreakerOptions {
    /// Of the calls in the window; more than 0, at most 1. While fewer than half fail, retries still get through.
    double failure_rate = 0.5;

    /// How many calls the window must hold before it is judged; at least 1. With fewer than 10, bad luck opens the
    /// breaker; more take long to collect from a model that is called once a second.
    int minimum_calls = 10;

    /// How far back the window reaches; positive. It forgets a tenth of that at a time, so it covers from 9/10 of it to
    /// all of it. The default is long enough for the minimum number of calls, and short enough that an outage is not
    /// outvoted by the successes before it.
    std::chrono::nanoseconds window = std::chrono::seconds(30);

    /// If set, the window holds this many of the latest calls instead, whenever they ended; from `minimum_calls` to
    /// 1,000,000, a byte each.
    std::optional<int> window_calls = std::nullopt;

    /// A call that takes longer, from when it gets its slot, is slow, even if it fails or Query::timeout cuts it short;
    /// positive. Default: none is, since the time that a language model takes depends on the length of its answer.
    std::optional<std::chrono::nanoseconds> slow = std::nullopt;
    double slow_rate = 0.5;  ///< Of the calls in the window, if `slow` is set; more than 0, at most 1.

    /// How long the breaker is open the first time; positive. Each round of probes that fails doubles it, and closing
    /// resets it. A short outage costs no more than the default, and a long one few probes, since it doubles.
    std::chrono::nanoseconds open_time = std::chrono::seconds(10);

    /// The longest open time; at least `open_time`. Default: 120 s, or `open_time` if that is more. It bounds how much
    /// later than the provider the endpoint recovers.
    std::optional<std::chrono::nanoseconds> open_cap = std::nullopt;

    /// The open time is less by a random part of up to this share of it, so that clients that lost their provider at
    /// the same time do not probe it at the same time; from 0 (no randomness) to 1.
    double jitter = 0.2;

    /// The same seed produces the same open times. Default: as that of Backoff.
    std::optional<std::uint64_t> seed = std::nullopt;

    /// How many calls decide whether a half-open breaker closes; at least 1. They do not count towards `minimum_calls`,
    /// so any number of them ends the round. One alone would let a single lucky call close it.
    int probes = 2;
};
static_assert(std::is_aggregate_v<BreakerOptions> && std::is_trivially_destructible_v<BreakerOptions>);

/// What a circuit breaker does at the moment. A plain value.
struct BreakerStatus {
    enum class State : std::uint8_t {
        closed,     ///< Calls begin.
        open,       ///< No call begins.
        half_open,  ///< Only probes begin.
    };
    using enum State;

    /// Why it entered its state.
    enum class Cause : std::uint8_t {
        none,              ///< It is new, and closed.
        failure_rate,      ///< Too many calls failed, so it opened.
        slow_rate,         ///< Too many calls were slow, so it opened.
        exhausted,         ///< A call found the account exhausted, so it opened.
        open_time_ended,   ///< It was open long enough, so it is half-open.
        probes_failed,     ///< Too many probes failed or were slow, so it opened again.
        probes_succeeded,  ///< Enough probes succeeded, so it closed.
        forced,            ///< A person opened or closed it.
        reset              ///< A person reset it, so it is closed.
    };

    State state = closed;
    bool forced = false;   ///< A person opened or closed it; it stays so until it is reset or forced otherwise.
    bool tripped = false;  ///< A call found the account exhausted when it last opened, or later while it was open.
    std::chrono::nanoseconds elapsed{0};  ///< Since it entered this state.

    /// Until it is half-open. Empty unless it is open and not forced.
    std::optional<std::chrono::nanoseconds> remaining = std::nullopt;

    /// The number of calls that the rates are of: of those in the window, if it is closed; of the probes that have
    /// ended, if it is half-open; if it is open, of those that opened it, or that it had when a person did.
    std::int64_t calls = 0;
    double failure_rate = 0;       ///< From 0 to 1; 0 if there were no calls.
    double slow_rate = 0;          ///< From 0 to 1; 0 if there were no calls.
    std::uint64_t generation = 0;  ///< The number of changes of its state, so far.
    Cause cause = Cause::none;     ///< Why it entered this state.
    std::uint64_t openings = 0;    ///< How often it became open, so far, by itself or by force.
};

/// Returns the name of the enumerator, such as `half_open`; `unknown` for any other value.
constexpr std::string_view to_string(BreakerStatus::State state) noexcept {
    switch (state) {
        case BreakerStatus::closed:
            return "closed";
        case BreakerStatus::open:
            return "open";
        case BreakerStatus::half_open:
            return "half_open";
    }
    return "unknown";
}

/// Returns the name of the enumerator, such as `failure_rate`; `unknown` for any other value.
constexpr std::string_view to_string(BreakerStatus::Cause cause) noexcept {
    switch (cause) {
        case BreakerStatus::Cause::none:
            return "none";
        case BreakerStatus::Cause::failure_rate:
            return "failure_rate";
        case BreakerStatus::Cause::slow_rate:
            return "slow_rate";
        case BreakerStatus::Cause::exhausted:
            return "exhausted";
        case BreakerStatus::Cause::open_time_ended:
            return "open_time_ended";
        case BreakerStatus::Cause::probes_failed:
            return "probes_failed";
        case BreakerStatus::Cause::probes_succeeded:
            return "probes_succeeded";
        case BreakerStatus::Cause::forced:
            return "forced";
        case BreakerStatus::Cause::reset:
            return "reset";
    }
    return "unknown";
}

}  // namespace sluice
