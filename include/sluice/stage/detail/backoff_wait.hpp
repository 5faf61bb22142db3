// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/deadline.hpp>
#include <sluice/stage/detail/drain_scope.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/cancelled_by.hpp>
#include <sluice/sync/detail/canceller.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/condition_variable.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/timeouts.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>

#include <algorithm>
#include <chrono>
#include <exception>
#include <optional>
#include <utility>
#include <variant>

namespace sluice::detail {

// A backoff of a query. It gives up if it would outlast the grace of a drain. The query is unfinished then, but its
// other stage runs go on, and so do their backoffs that end within the grace: their calls are paid for, and the record
// keeps their values.
template <class T>
class BackoffWait final : public Drainable, public Canceller {
public:
    // Waits for `delay`. A query with a place in a window leaves it to another meanwhile.
    template <class Executor>
    static boost::asio::awaitable<void, Executor> run(Pooled, QueryPlace* place, std::chrono::nanoseconds delay) {
        if (!place) {
            co_await sleep_for<T, Executor>(delay);
            co_return;
        }
        const Executor executor = co_await boost::asio::this_coro::executor;
        BackoffWait wait(*place, executor, delay);
        if (wait.outlasts_grace()) {
            place->gave_up = true;
            throw operation_aborted("Pipeline::drain");
        }
        place->begin_backoff();
        try {
            std::optional<std::monostate> done;
            co_await cancelled_by(wait, done, sleep_for<T, Executor>(delay));
        } catch (...) {
            place->end_backoff();
            throw;
        }
        place->end_backoff();
    }

    // Waits until the query has a place again, which it has left in a backoff, or is late.
    template <class Executor>
    static boost::asio::awaitable<void, Executor> come_back(Pooled, Timeouts<T>& timeouts, QueryPlace& at) {
        const auto* const deadline = DeadlineOf<T>::of(at.deadline);
        if (!deadline) {
            co_await come_back<Executor>(Pooled(), at);
            co_return;
        }
        const Executor executor = co_await boost::asio::this_coro::executor;
        if (deadline->is_over(now<T>(executor))) {
            co_return;
        }
        typename Timeouts<T>::Call call(timeouts, executor, deadline->due);
        std::optional<std::monostate> done;
        try {
            co_await cancelled_by(call, done, come_back<Executor>(Pooled(), at));
        } catch (...) {
            if (!call.expired() || call.cancelled_from_outside() || !is_cancellation(std::current_exception())) {
                throw;
            }
        }
    }

private:
    // However late that is. Only one of its stage runs waits in line: a second place would never come if all queries
    // waited for one.
    template <class Executor>
    static boost::asio::awaitable<void, Executor> come_back(Pooled, QueryPlace& at) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        while (at.has_left()) {
            if (at.is_in_line) {
                if (!at.others) {
                    at.others = make_queue<ConditionVariable>("Stage", executor);
                }
                Waiter waiter;
                co_await at.others->wait(waiter);
                if (waiter.outcome == WaitOutcome::aborted) {
                    throw operation_aborted("Stage::run");
                }
                continue;
            }
            at.is_in_line = true;
            std::exception_ptr error;
            try {
                Slot slot = co_await at.window->places().acquire();
                at.come_back(std::move(slot));
            } catch (...) {
                error = std::current_exception();
            }
            at.is_in_line = false;
            if (at.others) {
                at.others->notify_all();
            }
            if (error) {
                at.window->admit();  // a place that this was granted before it was cancelled is free
                std::rethrow_exception(error);
            }
        }
    }

    template <class Executor>
    BackoffWait(QueryPlace& at, const Executor& executor, std::chrono::nanoseconds delay) : at_(at) {
        if (at.drain) {
            end_ = at.drain->now(context_of(executor)) + std::min(delay, longest);
            at.drain->enter(*this);
        }
    }

    bool outlasts_grace() const noexcept { return at_.drain && at_.drain->outlasts(end_); }

    void on_drain() override {
        if (outlasts_grace() && cancellable()) {  // the route may have cancelled it
            at_.gave_up = true;
            cancel();
        }
    }
    void on_grace_over() override {}  // the query is cancelled

    // Longer than any grace.
    static constexpr std::chrono::nanoseconds longest = std::chrono::nanoseconds::max() / 2;

    QueryPlace& at_;
    std::chrono::nanoseconds end_{};
};

}  // namespace sluice::detail
