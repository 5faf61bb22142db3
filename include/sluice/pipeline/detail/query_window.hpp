// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/drain_scope.hpp>
#include <sluice/stage/detail/window.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/cancelled_by.hpp>
#include <sluice/sync/detail/canceller.hpp>
#include <sluice/sync/detail/condition_variable.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/wait_canceller.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/task_group.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <limits>
#include <new>
#include <optional>
#include <utility>

namespace sluice::detail {

// Runs the queries of an input, at most as many at once as the window has places: the one engine of batches and
// streams, of ranges and asynchronous sources.
//
// Workers take one query after another; they begin one by one, and each lets in the next. Each query has a place while
// it runs. A worker that finds none free idles until there may be one, or ends if as many others idle as there are
// places. For a range, a worker takes a place and then a query. An asynchronous source is asked by one worker at a
// time, while a place is free; a query that arrives when none is free any more waits in line for one. So a source that
// is slow keeps no place from a query that returns from its backoff.
//
// A `State::Job` is a query on its way through the window, from its input to its result. `Input` fills it: `pull(job)`
// or the coroutine `next(job)`; false at the end. `State` runs it: `process(job)`, and then, unless `has_ended(job,
// error)`, `end_otherwise(job, error)`; and is told when a query begins and ends. `Output` takes what became of it:
// `begin()` when it is taken; `end(index, job)` when it has run, which may keep its place; and `fail(error)` if the
// input throws, which ends the input.
template <class State, class Input, class Output>
class QueryWindow final : public Window, public Drainable {
public:
    using Job = typename State::Job;
    using Executor = typename State::Executor;

    using Drain = typename State::Drain;

    // `leaves_rest` if a drain has begun before.
    QueryWindow(const Executor& executor, State& state, Drain& drain, Input input, Output& output,
                bool leaves_rest = false)
        : Window(executor, state.window(), state.max_in_backoff),
          state_(state),
          drain_(drain),
          input_(std::move(input)),
          output_(output),
          idle_(make_queue<ConditionVariable>("QueryWindow", executor)),
          leaves_rest_(leaves_rest) {
        state.add_window(*this);
        if constexpr (State::drains) {
            drain.scope.enter(*this);
            drained_ = input_ended_ = drain.scope.draining();  // a stream may begin late
        }
    }

    // Runs until the input has ended and every query that was taken from it, and closes a source that it owns.
    boost::asio::awaitable<void, Executor> run() {
        const auto body = [this](TaskGroup& group) { return begin(group); };
        std::exception_ptr error;
        try {
            co_await with_task_group<Executor>(body);
        } catch (...) {
            error = std::current_exception();
        }
        group_ = nullptr;  // it is gone
        if constexpr (Input::must_be_closed) {
            const bool throws = co_await boost::asio::this_coro::throw_if_cancelled();
            co_await boost::asio::this_coro::throw_if_cancelled(false);
            if constexpr (State::drains && Input::owns_stream) {
                if (leaves_rest_) {
                    co_await leave_work(Pooled(), *this, error);
                }
            }
            co_await input_.template close<Executor>(error);
            co_await boost::asio::this_coro::throw_if_cancelled(throws);
        }
        if (leaves_rest_) {
            leave_rest(error);
        }
        if (error) {
            std::rethrow_exception(error);
        }
    }

    // Takes no further query, and cancels those that are running.
    void cancel() noexcept {
        cancelled_ = true;
        if (group_) {
            group_->cancel();
        } else if (leaves_rest_) {
            end_source();
        }
    }

    // Takes no further query.
    void end_input() {
        input_ended_ = true;
        places().set_limit(std::numeric_limits<std::ptrdiff_t>::max());  // nobody comes after those that wait for one
        idle_->notify_all();
        if (asked_) {
            asked_->cancel();
        }
    }

    // What StreamState has, if this cannot be drained. It goes on with what a stream that it owns has in work.
    void end_input(const DrainScope& scope) {
        if constexpr (Input::owns_stream) {
            input_.end_input(scope);
        } else {
            end_input();
        }
    }
    void end_grace() {
        cancel();
        end_source();
    }

private:
    // The body of the group.
    boost::asio::awaitable<void, Executor> begin(TaskGroup& group) {
        group_ = &group;
        if (cancelled_) {
            group.cancel();
        }
        add_worker();
        co_return;
    }

    void on_drain() override {
        drained_ = true;
        leaves_rest_ = leaves_rest_ || !(cancelled_ || (group_ && group_->cancelled()));
        end_input();
        if constexpr (State::drains && Input::owns_stream) {
            if (leaves_rest_) {
                input_.end_input(drain_.scope);
            }
        }
    }

    void on_grace_over() override {
        if (group_) {
            cut_short_ = cut_short_ || !group_->cancelled();
            group_->cancel();
        }
        if (leaves_rest_) {
            end_source();
        }
    }

    void end_source() {
        if constexpr (Input::owns_stream) {
            input_.end_grace();
        }
    }

    // A drained pipeline leaves what the stream that it owns hands over: the results that it has, and those that come
    // until it ends.
    static boost::asio::awaitable<void, Executor> leave_work(Pooled, QueryWindow& window, std::exception_ptr& error) {
        if (window.cancelled_ || error || is_cancelled(co_await boost::asio::this_coro::cancellation_state)) {
            window.end_source();
        }
        while (!window.input_failed_) {
            std::exception_ptr failure;
            try {
                Job job;
                if (!co_await window.input_.template next<Executor>(job)) {
                    co_return;
                }
                job.cut_short();
                window.state_.begin_query(window.drain_);
                window.state_.end_query(window.drain_, job.result);
                window.leave(job);
            } catch (...) {
                failure = std::current_exception();
            }
            if (failure) {  // this was cancelled, or the stream or the projection has thrown
                window.input_failed_ = !is_cancellation(failure);
                window.end_source();
                if (!error) {
                    error = failure;
                }
            }
        }
    }

    // A drained pipeline takes nothing more out of its input; what the input owns would be lost with it.
    void leave_rest(std::exception_ptr& error) {
        if constexpr (Input::has_rest) {
            try {
                for (;;) {
                    Job job;
                    if (!pull(job)) {
                        return;
                    }
                    job.cut_short();
                    leave(job);
                }
            } catch (...) {
                if (!error) {
                    error = std::current_exception();
                }
            }
        }
    }

    // A query that was taken, and does not run any more.
    void leave(Job& job) {
        const std::size_t index = taken_++;
        output_.begin();
        output_.end(index, job);
    }

    void add_worker() {
        spawn_worker<Executor>(*group_,
                               [this](WaitCanceller& canceller) { return work(Pooled(), *this, *group_, canceller); });
    }

    void admit() override {
        if (!has_free_place() || !group_ || group_->cancelled() || input_ended_ || asking_ || admitting_) {
            return;
        }
        if (idle_->waiting() != 0) {
            idle_->notify_one();
        } else {
            try {
                add_worker();
            } catch (const std::bad_alloc&) {  // no worker idles, so others run, and try again with their next queries
                return;
            }
        }
        admitting_ = true;
    }

    static boost::asio::awaitable<void, Executor> work(Pooled, QueryWindow& window, TaskGroup& group,
                                                       WaitCanceller& canceller) {
        window.admitting_ = false;
        while (!group.cancelled() && !window.input_ended_) {
            Job job(&window, Input::is_asynchronous ? Slot() : window.places().try_acquire());
            job.canceller = &canceller;
            if constexpr (State::drains) {
                job.drain = &window.drain_.scope;
                job.operation = &window;
            }
            const bool may_take =
                Input::is_asynchronous ? !window.asking_ && window.has_free_place() : static_cast<bool>(job.place);
            if (!may_take) {
                if (!co_await idle(Pooled(), window, canceller)) {
                    co_return;
                }
                continue;
            }
            bool taken;
            if constexpr (Input::is_asynchronous) {
                taken = co_await ask(Pooled(), window, job);
            } else {
                taken = window.pull(job);
            }
            if (!taken) {
                window.input_ended_ = true;
                window.idle_->notify_all();
                co_return;
            }
            const std::size_t index = window.taken_++;
            window.output_.begin();
            window.state_.begin_query(window.drain_);
            try {
                if constexpr (requires { typename State::Timer; }) {
                    window.state_.start_timeout(job, window.idle_->context());
                }
                bool runs = !window.drained_;  // a source may deliver while the drain begins
                if constexpr (Input::is_asynchronous) {
                    job.place = window.places().try_acquire();
                    if (runs && !job.place) {
                        runs = co_await wait_for_place(Pooled(), window, job);
                    }
                }
                if (runs && !group.cancelled()) {
                    window.admit();
                    std::exception_ptr error;
                    try {
                        co_await window.state_.process(job);
                    } catch (...) {
                        error = std::current_exception();
                    }
                    if (!window.state_.has_ended(job, error)) [[unlikely]] {
                        co_await even_if_cancelled(end_otherwise(Pooled(), window.state_, job, std::move(error)));
                    }
                } else if (window.drained_) {
                    job.cut_short();
                } else {
                    throw operation_aborted("QueryWindow");
                }
            } catch (...) {
                window.state_.end_cancelled(window.drain_);
                throw;
            }
            window.state_.end_query(window.drain_, job.result);
            window.output_.end(index, job);
        }
    }

    // A coroutine of its own keeps that of a worker small.
    static boost::asio::awaitable<void, Executor> end_otherwise(Pooled, State& state, Job& job,
                                                                std::exception_ptr error) {
        co_await boost::asio::this_coro::throw_if_cancelled(false);
        co_await state.end_otherwise(job, std::move(error));
        co_await boost::asio::this_coro::throw_if_cancelled(true);
    }

    bool pull(Job& job) {
        try {
            return input_.pull(job);
        } catch (...) {
            fail(std::current_exception());
            return false;
        }
    }

    // The input has thrown. It ends now, before other workers go on.
    void fail(const std::exception_ptr& error) {
        input_ended_ = input_failed_ = true;
        output_.fail(error);
    }

    static boost::asio::awaitable<bool, Executor> ask(Pooled, QueryWindow& window, Job& job) {
        Canceller canceller;  // a drain cancels next() alone
        window.asking_ = true;
        window.asked_ = &canceller;
        std::exception_ptr error;
        std::optional<bool> taken;
        try {
            co_await cancelled_by(canceller, taken, window.input_.template next<Executor>(job));
        } catch (...) {
            error = std::current_exception();
        }
        window.asking_ = false;
        window.asked_ = nullptr;
        if (error && window.input_ended_ && !window.group_->cancelled() && is_cancellation(error)) {
            co_return false;
        }
        if (error) {
            if (window.group_->cancelled()) {
                std::rethrow_exception(error);
            }
            window.fail(error);
        }
        co_return taken.value_or(false);
    }

    // Returns false if the query gets none, because the window was cancelled.
    static boost::asio::awaitable<bool, Executor> wait_for_place(Pooled, QueryWindow& window, Job& job) {
        try {
            if constexpr (requires { typename State::Timer; }) {
                if (job.deadline) {
                    co_await State::wait_for_place(Pooled(), window.state_, job);
                    co_return true;
                }
            }
            job.place = co_await window.places().acquire();
        } catch (...) {
            if (!window.drained_) {
                throw;
            }
            co_return false;
        }
        co_return true;
    }

    // Waits until a place may be free. Returns false, without waiting, if as many other workers do as there are places;
    // one waits even if the window has none, while every stage is paused.
    static boost::asio::awaitable<bool, Executor> idle(Pooled, QueryWindow& window, WaitCanceller& canceller) {
        if (static_cast<std::ptrdiff_t>(window.idle_->waiting()) >=
            std::max<std::ptrdiff_t>(1, window.places().limit())) {
            co_return false;
        }
        Waiter waiter;
        co_await window.idle_->wait(waiter, canceller);
        canceller.end();
        window.admitting_ = false;
        co_return true;
    }

    State& state_;
    Drain& drain_;
    Input input_;
    Output& output_;
    boost::intrusive_ptr<ConditionVariable> idle_;  // workers without a query
    TaskGroup* group_ = nullptr;                    // runs the workers
    std::size_t taken_ = 0;                         // queries
    Canceller* asked_ = nullptr;                    // of the source's next(), while a worker awaits it
    bool asking_ = false;                           // a worker awaits the source
    bool admitting_ = false;                        // a worker is about to begin or to stop idling
    bool input_ended_ = false;
    bool input_failed_ = false;
    bool cancelled_ = false;
    bool drained_ = false;
    bool leaves_rest_;  // was drained before it was cancelled
};

}  // namespace sluice::detail
