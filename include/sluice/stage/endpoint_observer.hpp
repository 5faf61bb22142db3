// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/shared_string.hpp>
#include <sluice/stage/breaker.hpp>

#include <chrono>

namespace sluice {

/// Observes the pauses and the breaker of an endpoint, for logs and alerts. Derive from it, override the functions of
/// interest, and pass its address in EndpointOptions.
///
/// @code
/// struct Alarms : sluice::EndpointObserver {
///     void on_breaker(const sluice::SharedString& endpoint, sluice::BreakerStatus::State,
///                     const sluice::BreakerStatus& after) noexcept override {
///         std::clog << endpoint << ": " << to_string(after.state) << ", " << to_string(after.cause) << '\n';
///     }
/// };
/// @endcode
///
/// An Observer observes queries instead. Setting a limit or a rate is no event, since the program itself does that. The
/// end of a pause is none either, since nothing happens then if no query waits. A breaker becomes half-open when the
/// first probe begins, not as soon as its open time has ended. Metrics has the state at any time.
///
/// @par Exceptions
/// The functions are noexcept, and so are their overrides. If one throws, `std::terminate` is called.
///
/// @par Thread safety
/// The functions are called on the thread or strand of the endpoint, last in the operation that caused the event: the
/// end or the beginning of an attempt, the timer of the line, or a function of Endpoint, Breaker or Attempt. By then
/// the whole endpoint has changed: the breaker has refused what it refuses, and what may begin has its slot. They may
/// do whatever other code there may, such as set a limit or a rate, close or pause the endpoint, force its breaker,
/// cancel a query, or drop the last handle to the endpoint. If that causes another event, it comes before the first one
/// has returned.
///
/// @par Lifetime
/// An observer must outlive the handles to the endpoint and the coroutines that run its stages, including those that
/// are destroyed with their execution context.
class EndpointObserver {
public:
    EndpointObserver() = default;
    virtual ~EndpointObserver() = default;

    /// The endpoint was paused by its provider or by Endpoint::pause(), or the end of its pause was moved to a later
    /// time; a shorter pause changes nothing. Of many calls that run, each may be told to wait a little longer than the
    /// one before; only the first has `before == 0`.
    ///
    /// `remaining` is the time until the pause ends, and `before` the same before this event; zero if the endpoint was
    /// not paused.
    virtual void on_paused(const SharedString& /*endpoint*/, std::chrono::nanoseconds /*remaining*/,
                           std::chrono::nanoseconds /*before*/) noexcept {}

    /// The breaker of the endpoint changed its state, or a person forced or reset it, even to the state that it had. A
    /// call that finds the account exhausted while it is open changes no state.
    ///
    /// `before` is the state that the last event has left it in; closed before the first one. `after` is its status as
    /// of the change: its new state, and the cause.
    virtual void on_breaker(const SharedString& /*endpoint*/, BreakerStatus::State /*before*/,
                            const BreakerStatus& /*after*/) noexcept {}

protected:
    EndpointObserver(const EndpointObserver&) = default;  // protected against slicing
    EndpointObserver& operator=(const EndpointObserver&) = default;
};

}  // namespace sluice
