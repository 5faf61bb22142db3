// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>
#include <sluice/stage_error.hpp>

namespace sluice {

/// Is told what becomes of each query, as it happens: for metrics, traces, progress. Derive from it, override what is
/// of interest, and give its address to BasicStageOptions or BasicPipelineOptions.
///
/// A *run* is one query in one stage. It has these events, in this order, and none more:
///
///     (on_queued on_started on_attempt_failed)* [on_queued [on_started]] on_finished [on_dead_letter]
///
/// Every attempt has on_queued, on_started and on_attempt_failed, but for the last one, which may end by on_finished
/// instead. Every run that has begun ends with exactly one on_finished, a cancelled one too. So a count of those who
/// wait or run is right at all times if on_finished takes out what its `last` names. A run that was cancelled before
/// it began has no events; those that end because their execution context is destroyed have no further ones.
///
/// `run` is the run's result as far as it has come, with the query's id, the stage's name, and as `attempts` the number
/// of the attempt. In all events of a run it is the same object, whose address tells runs apart where ids do not; it
/// must not be used after the last of them.
///
/// No event carries a time: ask a clock.
///
/// @par Exceptions
/// The functions are noexcept, and so must be what overrides them: an observer changes no query's fate. One that throws
/// all the same calls `std::terminate`.
///
/// @par Thread safety
/// Called on the executor of the stage or pipeline, by the coroutine that runs the query, between two of its steps:
/// nothing else runs there until the function returns. It may do what other code there may, such as close or cancel
/// something, or change a limit, but not destroy the stage or pipeline that calls it. Who cancels from on_finished
/// comes too late for that run: a query that has failed becomes a dead letter.
///
/// @par Lifetime
/// An observer must outlive the coroutines that run the stages it observes, streams that were left included.
class Observer {
public:
    /// What a run was last told of.
    enum class Event {
        queued,         ///< on_queued: it waits for a slot.
        started,        ///< on_started: it has one.
        attempt_failed  ///< on_attempt_failed: it has none, and does not wait for one.
    };

    /// How a run ended.
    enum class Outcome {
        succeeded,
        failed,    ///< By its last attempt, or because the semaphore was closed.
        cancelled  ///< It gives no result, but throws.
    };

    Observer() = default;
    virtual ~Observer() = default;

    /// The query asks for a slot, for the attempt after `run.attempts`. If one is free, on_started follows at once.
    virtual void on_queued(const StageResult<>& /*run*/) noexcept {}

    /// The query has a slot, and attempt number `run.attempts` is about to begin.
    virtual void on_started(const StageResult<>& /*run*/) noexcept {}

    /// Attempt number `run.attempts` ended with `error`, its time being up included, and its slot went back. Next comes
    /// on_queued, after the backoff if there is one; or on_finished, at once if there is no retry.
    ///
    /// An attempt that was cancelled has not failed.
    virtual void on_attempt_failed(const StageResult<>& /*run*/, const StageError& /*error*/) noexcept {}

    /// The run ended as `run.success` and `run.error` say, and holds no slot any more. `last` is the event before this
    /// one; with `queued`, the query was in the line for a slot, and did not get it. If `outcome` is `cancelled`, the
    /// error is what the run throws, `operation_aborted`.
    virtual void on_finished(const StageResult<>& /*run*/, Outcome /*outcome*/, Event /*last*/) noexcept {}

    /// A pipeline's dead-letter sink was given the query that `run` has failed: its `put` has returned, or what it
    /// awaits has ended. `sink_error` is what it threw, the query being lost then; mostly empty. Of a pipeline's own
    /// observer alone.
    virtual void on_dead_letter(const Query& /*query*/, const StageResult<>& /*run*/,
                                const StageError& /*sink_error*/) noexcept {}

protected:
    Observer(const Observer&) = default;  // not to be sliced
    Observer& operator=(const Observer&) = default;
};

}  // namespace sluice
