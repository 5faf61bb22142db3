// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>
#include <sluice/stage/detail/window.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/condition_variable.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/spawn_uncancelled.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/task_group.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <algorithm>
#include <cstddef>
#include <exception>
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
// `State` runs a query (`process(result, run)`), `Input` has pull() or the coroutine next(), and `Output` takes the
// results: `begin()` when a query is taken, `end(index, result, place)` when it has run, which may keep the place, and
// `fail(error)` if the input throws, which ends it.
template <class State, class Input, class Output>
class QueryWindow final : public Window {
public:
    using Result = typename State::Result;
    using Executor = typename State::Executor;

    QueryWindow(const Executor& executor, State& state, Input input, Output& output)
        : Window(executor, state.window(), state.max_in_backoff),
          state_(state),
          input_(std::move(input)),
          output_(output),
          idle_(make_queue<ConditionVariable>("QueryWindow", executor)) {
        state.add_window(*this);
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
            co_await close(Pooled(), *this, error);
            co_await boost::asio::this_coro::throw_if_cancelled(throws);
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
        }
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

    static boost::asio::awaitable<void, Executor> close(Pooled, QueryWindow& window, std::exception_ptr& error) {
        try {
            const Executor executor = co_await boost::asio::this_coro::executor;
            co_await spawn_uncancelled(executor, [&window] { return window.input_.close(); });
        } catch (...) {
            if (!error) {
                error = std::current_exception();
            }
        }
    }

    void add_worker() {
        group_->spawn([this] { return work(*group_); });
    }

    void admit() override {
        if (!has_free_place() || !group_ || group_->cancelled() || input_ended_ || asking_ || admitting_) {
            return;
        }
        if (idle_->waiting() != 0) {
            idle_->notify_one();
        } else {
            add_worker();
        }
        admitting_ = true;
    }

    boost::asio::awaitable<void, Executor> work(TaskGroup& group) {
        admitting_ = false;
        while (!group.cancelled() && !input_ended_) {
            typename State::Run run(this, Input::is_asynchronous ? Slot() : places().try_acquire());
            const bool may_take = Input::is_asynchronous ? !asking_ && has_free_place() : static_cast<bool>(run.place);
            if (!may_take) {
                if (!co_await idle(Pooled(), *this)) {
                    co_return;
                }
                continue;
            }
            Result result;
            bool is_end;
            if constexpr (Input::is_asynchronous) {
                std::optional<Query> query = co_await ask(Pooled(), *this);
                is_end = !query;
                if (query) {
                    result.query = *std::move(query);
                }
            } else {
                is_end = !pull(result.query);
            }
            if (is_end) {
                input_ended_ = true;
                idle_->notify_all();
                co_return;
            }
            const std::size_t index = taken_++;
            output_.begin();
            if constexpr (Input::is_asynchronous) {
                run.place = places().try_acquire();
                if (!run.place) {
                    run.place = co_await places().acquire();
                }
            }
            if (group.cancelled()) {
                co_return;
            }
            admit();
            co_await state_.process(result, run);
            output_.end(index, std::move(result), run.place);
        }
    }

    bool pull(Query& query) {
        try {
            return input_.pull(query);
        } catch (...) {
            fail(std::current_exception());
            return false;
        }
    }

    // The input has thrown. It ends now, before other workers go on.
    void fail(const std::exception_ptr& error) {
        input_ended_ = true;
        output_.fail(error);
    }

    static boost::asio::awaitable<std::optional<Query>, Executor> ask(Pooled, QueryWindow& window) {
        window.asking_ = true;
        std::exception_ptr error;
        try {
            std::optional<Query> query = co_await window.input_.template next<Executor>();
            window.asking_ = false;
            co_return query;
        } catch (...) {
            error = std::current_exception();
        }
        window.asking_ = false;
        if (window.group_->cancelled()) {
            std::rethrow_exception(error);
        }
        window.fail(error);
        co_return std::nullopt;
    }

    // Waits until a place may be free. Returns false, without waiting, if as many other workers do as there are places;
    // one waits even if the window has none, while every stage is paused.
    static boost::asio::awaitable<bool, Executor> idle(Pooled, QueryWindow& window) {
        if (static_cast<std::ptrdiff_t>(window.idle_->waiting()) >=
            std::max<std::ptrdiff_t>(1, window.places().limit())) {
            co_return false;
        }
        Waiter waiter;
        co_await window.idle_->wait(waiter);
        window.admitting_ = false;
        co_return true;
    }

    State& state_;
    Input input_;
    Output& output_;
    boost::intrusive_ptr<ConditionVariable> idle_;  // workers without a query
    TaskGroup* group_ = nullptr;                    // runs the workers
    std::size_t taken_ = 0;                         // queries
    bool asking_ = false;                           // a worker awaits the source
    bool admitting_ = false;                        // a worker is about to begin or to stop idling
    bool input_ended_ = false;
    bool cancelled_ = false;
};

}  // namespace sluice::detail
