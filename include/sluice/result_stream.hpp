// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/frame_pool.hpp>
#include <sluice/detail/stream_state.hpp>
#include <sluice/detail/waiter.hpp>
#include <sluice/query.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>

#include <memory>
#include <optional>
#include <utility>

namespace sluice {

/// Results as they complete: what InferencePipeline::process_stream() gives.
///
/// Work begins with the first next(). Queries that run and results that wait to be asked for never outnumber the
/// window, so a slow consumer slows intake. (A result that came while somebody asked, and whose asker was then
/// cancelled, is in excess of that.) Destroying the stream stops it: nothing new starts, what runs is cancelled,
/// and every slot comes back as it ends. To wait for that, co_await close() first.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe; next() may be awaited by several coroutines of the one thread or
/// strand, and each result goes to one of them.
///
/// @par Lifetime
/// The stream keeps what it needs of its pipeline alive. A dead-letter sink, and a range given by reference, must live
/// until the stream has ended or close() has completed; after mere destruction, until what ran has been cancelled. A
/// stream that was moved from can only be destroyed or assigned to.
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

    /// Waits for the next result, in order of completion. Gives nothing, now and for ever, when the input has ended and
    /// every result has been given, or when the stream was closed.
    ///
    /// @throws what the input range threw, once, after the results of the queries taken before; then the stream has
    /// ended.
    /// @throws boost::system::system_error with `operation_aborted` if the wait was cancelled.
    ///
    /// @par Cancellation
    /// Terminal, partial, total: of this wait alone. The stream runs on and no result is lost.
    [[nodiscard]] boost::asio::awaitable<std::optional<Item>, Executor> next() {
        return next(detail::Pooled(), state_);
    }

    /// Stops the stream and waits until nothing of it runs any more; results not yet asked for are dropped. What the
    /// stream itself runs, a model function or a dead-letter sink, must not wait for that: it would wait for itself.
    ///
    /// @par Cancellation
    /// Of the wait alone: the stream stops all the same.
    [[nodiscard]] boost::asio::awaitable<void, Executor> close() { return close(detail::Pooled(), state_); }

private:
    using State = detail::StreamState<Result, Executor>;

    static boost::asio::awaitable<std::optional<Item>, Executor> next(detail::Pooled, std::shared_ptr<State> state) {
        state->start(co_await boost::asio::this_coro::executor);
        while (!state->has_result() && state->running()) {
            detail::Waiter waiter;
            co_await state->change(waiter);
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

    static boost::asio::awaitable<void, Executor> close(detail::Pooled, std::shared_ptr<State> state) {
        state->stop();
        while (state->running()) {
            detail::Waiter waiter;
            co_await state->change(waiter);
            throw_if_aborted(waiter);
        }
    }

    static void throw_if_aborted(const detail::Waiter& waiter) {
        if (waiter.outcome == detail::Outcome::aborted) {
            throw boost::system::system_error(boost::asio::error::operation_aborted, "ResultStream");
        }
    }

    std::shared_ptr<State> state_;  // null when moved from
};

}  // namespace sluice
