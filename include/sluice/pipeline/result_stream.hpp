// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/drain_report.hpp>
#include <sluice/pipeline/detail/stream_state.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/result.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>
#include <memory>
#include <optional>
#include <utility>

namespace sluice {

/// A stream of results in the order of their completion; process_stream() of a pipeline returns it.
///
/// @code
/// auto stream = pipeline.process_stream(queries);
/// while (auto item = co_await stream.next()) {
///     use(item->index, item->result);
/// }
/// @endcode
///
/// Work begins with the first next(). The queries that run and the results that have not been taken never outnumber the
/// window, so a slow consumer slows intake. (A result that came while a consumer waited, and whose consumer was then
/// cancelled, does not count.) Destroying the stream stops the work: no query starts, those that run are cancelled, and
/// each slot is returned as its query ends. To wait for that, await close() first.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. Several coroutines on the one thread or strand may await next();
/// each result goes to one of them.
///
/// @par Lifetime
/// The stream keeps the state of its pipeline alive. The dead-letter sink, and a range or source that was passed by
/// reference, must live until the stream has ended or close() has completed; if the stream is only destroyed, until the
/// cancelled queries have ended. A stream that was moved from can only be destroyed or assigned to.
template <class Result, class Executor>
class [[nodiscard]] ResultStream {
public:
    using Item = StreamItem<Result>;

    explicit ResultStream(std::shared_ptr<detail::StreamState<Result, Executor>> state) noexcept
        : state_(std::move(state)) {}

    ResultStream(ResultStream&&) noexcept = default;
    ResultStream& operator=(ResultStream&& other) noexcept {
        ResultStream moved(std::move(other));
        moved.state_.swap(state_);
        return *this;
    }

    ~ResultStream() {
        if (state_) {
            state_->stop();
        }
    }

    /// When awaited, waits for the next result and returns it. Returns an empty optional when the stream has ended: the
    /// input has ended, or a drain has ended it, and every result was taken; or the stream was closed.
    ///
    /// Rethrows what the range or source threw, once, after the results of the queries taken before it; then the stream
    /// has ended.
    /// @throws boost::system::system_error with `operation_aborted` if the wait was cancelled.
    ///
    /// @par Cancellation
    /// Terminal, partial and total. Cancels only this wait: the stream continues, and no result is lost.
    [[nodiscard]] boost::asio::awaitable<std::optional<Item>, Executor> next() {
        return take_next(detail::Pooled(), state_);
    }

    /// When awaited, stops the stream and waits until none of its queries runs any more. Results that have not been
    /// taken are dropped. A model function or dead-letter sink that the stream runs must not await it: it would wait
    /// for itself.
    ///
    /// @par Cancellation
    /// Terminal, partial and total. Cancels only the wait: the stream still stops.
    [[nodiscard]] boost::asio::awaitable<void, Executor> close() { return stop_and_wait(detail::Pooled(), state_); }

    /// When awaited, drains this stream alone, as Pipeline::drain() drains all; only the stream of a Pipeline has this.
    /// next() returns the results of queries that end, as before. The report has checkpoints of the queries that were
    /// cut short, and of the rest of a container that was moved in. The rest of a range that was passed by reference
    /// stays in it. The drain does not wait for a consumer.
    ///
    /// @throws boost::system::system_error with `operation_aborted` if the wait was cancelled.
    ///
    /// @par Cancellation
    /// Terminal, partial and total. Ends only the wait: neither the drain nor its grace.
    [[nodiscard]] auto drain(std::chrono::nanoseconds grace)
        requires detail::has_record<Result>
    {
        return drain_and_report<DrainReport<typename detail::RecordOf<Result>::Type>>(detail::Pooled(), state_, grace);
    }

private:
    using State = detail::StreamState<Result, Executor>;

    // For a pipeline that owns this as its source.
    friend State& state_of(ResultStream& stream) noexcept { return *stream.state_; }

    template <class Report>
    static boost::asio::awaitable<Report, Executor> drain_and_report(detail::Pooled, std::shared_ptr<State> state,
                                                                     std::chrono::nanoseconds grace) {
        auto drained = co_await state->drain(grace);
        co_return detail::report_of<Report>(drained.counts, std::move(drained.unfinished));
    }

    static boost::asio::awaitable<std::optional<Item>, Executor> take_next(detail::Pooled,
                                                                           std::shared_ptr<State> state) {
        state->start(co_await boost::asio::this_coro::executor);
        while (!state->has_result() && state->running()) {
            detail::Waiter waiter;
            co_await state->wait_for_progress(waiter);
            throw_if_aborted(waiter);
        }
        if (!state->has_result()) {
            state->rethrow_error();
            co_return std::nullopt;
        }
        const struct Remove {
            State& state;
            ~Remove() { state.remove_result(); }
        } after_it_was_moved{*state};
        co_return std::move(state->result());
    }

    static boost::asio::awaitable<void, Executor> stop_and_wait(detail::Pooled, std::shared_ptr<State> state) {
        if (state->must_close_source()) {
            state->start(co_await boost::asio::this_coro::executor);
        }
        state->stop();
        while (state->running()) {
            detail::Waiter waiter;
            co_await state->wait_for_progress(waiter);
            throw_if_aborted(waiter);
        }
    }

    static void throw_if_aborted(const detail::Waiter& waiter) {
        if (waiter.outcome == detail::WaitOutcome::aborted) {
            throw detail::operation_aborted("ResultStream");
        }
    }

    std::shared_ptr<State> state_;  // null when moved from
};

}  // namespace sluice
