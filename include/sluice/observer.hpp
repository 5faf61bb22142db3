// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage_error.hpp>

#include <chrono>

namespace sluice {

struct Verdict;

/// Observes the progress of each query, for metrics, traces or progress bars. Derive from it, override the functions of
/// interest, and pass its address in StageOptions, PipelineOptions or InferencePipelineOptions.
///
/// A *stage run* is one query in one stage, made of attempts. It has exactly these events, in this order:
///
///     (on_queued on_started on_attempt_failed on_retry)* [on_queued [on_started [on_attempt_failed]]]
///         on_finished [on_dead_letter]
///
/// Each attempt that is to be retried has on_queued, on_started, on_attempt_failed and on_retry; the last one ends with
/// on_finished, after on_attempt_failed if it failed. Each stage run that has begun ends with exactly one on_finished,
/// even if it is cancelled. To keep gauges of queued and running queries exact, decrement the one named by the `last`
/// event of on_finished. A stage run that was cancelled before it began has no events. If its execution context is
/// destroyed, it has no further ones.
///
/// `stage_run` is the result so far, with the query's id and the stage's name; its `attempts` counts the attempts that
/// have begun, so in on_queued it excludes the one that waits. It is the same object in all events of one stage run, so
/// that its address identifies the stage run where ids do not. (In a Pipeline, on_dead_letter gets another one.) It
/// must not be used after the last event. In a Pipeline, failures of no stage have on_dead_letter
/// alone: those named `route` and `save`, and those of a Fallback. A member that a Fallback skips has no stage run, but
/// on_skipped.
///
/// No event carries a time; read a clock.
///
/// @par Exceptions
/// The functions are noexcept, and so are their overrides. If one throws, `std::terminate` is called.
///
/// @par Thread safety
/// The functions are called on the executor of the stage or pipeline, by the coroutine that runs the query, between two
/// of its steps: nothing else runs there meanwhile. They may do whatever other code there may, such as close or cancel
/// something, change a limit, or destroy the last handle to the stage or pipeline that calls them. Cancelling a query
/// in its on_finished comes too late: one that has failed becomes a dead letter. (Not if a Fallback would go on with
/// its next member: then the query is cancelled. So it is in on_skipped, even for the last member.)
///
/// @par Lifetime
/// An observer must outlive the coroutines that run the stages it observes, including those of abandoned streams.
class Observer {
public:
    /// An event of a stage run.
    enum class Event {
        queued,         ///< on_queued: the query waits for a slot.
        started,        ///< on_started: it has a slot.
        attempt_failed  ///< on_attempt_failed, or on_retry after it: it has no slot and does not wait for one.
    };

    /// The way in which a stage run ended.
    enum class Outcome {
        succeeded,
        failed,    ///< The last attempt failed, none could begin, or a Fallback did not accept the value: see Reason.
        cancelled  ///< Stage::run() throws instead of returning a result; also if a drain cuts it short.
    };

    Observer() = default;
    virtual ~Observer() = default;

    /// The query asks for a slot for attempt number `stage_run.attempts + 1`. If one is free, on_started follows
    /// immediately.
    virtual void on_queued(const StageResult<>& /*stage_run*/) noexcept {}

    /// The query has a slot, and attempt number `stage_run.attempts` is about to begin.
    virtual void on_started(const StageResult<>& /*stage_run*/) noexcept {}

    /// Attempt number `stage_run.attempts` failed with `error`, a timeout included, and its slot was returned. Next is
    /// on_retry or, if there is no retry, on_finished, immediately.
    ///
    /// An attempt that was cancelled has not failed.
    virtual void on_attempt_failed(const StageResult<>& /*stage_run*/, const StageError& /*error*/) noexcept {}

    /// A retry was decided after attempt number `stage_run.attempts`. `verdict` is what its error means, with a
    /// `retry_after` of 2 min at most if it pauses the endpoint; the backoff of `delay`, which may be zero, is about to
    /// begin. Next is on_queued, after the backoff and the wait for a place in the window, if there are any; or
    /// on_finished, if the stage run is cancelled before that, or cut short by a drain.
    virtual void on_retry(const StageResult<>& /*stage_run*/, const Verdict& /*verdict*/,
                          std::chrono::nanoseconds /*delay*/) noexcept {}

    /// The stage run ended, as `stage_run.success` and `stage_run.error` say, and holds no slot. `last` is the event
    /// before this one; if that is `queued`, no attempt followed: the wait ended, or an argument was missing. If
    /// `outcome` is `cancelled`, the error is the `operation_aborted` that Stage::run() throws.
    virtual void on_finished(const StageResult<>& /*stage_run*/, Outcome /*outcome*/, Event /*last*/) noexcept {}

    /// A Fallback has skipped its member `stage` for this query, which did not enter the line of its endpoint. The next
    /// member follows, if there is one. `reason` is that of the FallbackError::Cause: `breaker_open`, or `deadline` if
    /// the pause or the open time of the endpoint lasts longer than Query::timeout leaves.
    ///
    /// As those of a stage run, this event is for the observer of `stage`, or else for that of the pipeline.
    virtual void on_skipped(const SharedString& /*query_id*/, const SharedString& /*stage*/,
                            Reason /*reason*/) noexcept {}

    /// The dead-letter sink's `put`, including what it awaits, has ended for the query that failed in `stage_run`.
    /// `sink_error` is what it threw, in which case the query is lost; normally empty. Only a pipeline's own observer
    /// has this event.
    virtual void on_dead_letter(const Query& /*query*/, const StageResult<>& /*stage_run*/,
                                const StageError& /*sink_error*/) noexcept {}

protected:
    Observer(const Observer&) = default;  // protected against slicing
    Observer& operator=(const Observer&) = default;
};

}  // namespace sluice
