// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/crew.hpp>
#include <sluice/detail/input.hpp>
#include <sluice/detail/on_executor.hpp>
#include <sluice/detail/wait_queue.hpp>
#include <sluice/detail/waiter.hpp>
#include <sluice/query.hpp>
#include <sluice/task_group.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

namespace sluice::detail {

// Coroutines that wait for a condition they look at themselves.
class Condition : public WaitQueue {
public:
    void notify_one() noexcept {
        if (waiting() != 0) {
            wake(longest_waiting(), Outcome::granted);
        }
    }

    void notify_all() noexcept { wake_all(Outcome::granted); }

private:
    void on_cancel(Waiter& waiter) noexcept override {
        if (waiter.outcome == Outcome::waiting) {
            wake(waiter, Outcome::aborted);
        } else if (waiter.outcome == Outcome::granted) {
            waiter.outcome = Outcome::aborted;
            notify_one();  // what it was woken for is still there
        }
    }
};

// What a ResultStream shares with the coroutines that work for it; whoever makes a stream derives from it.
//
// A query takes a place in the window before it is pulled, and its result keeps it until a consumer asks. So a slow
// consumer slows intake, and one that is gone ends it.
template <class Result, class Executor>
class StreamState : public std::enable_shared_from_this<StreamState<Result, Executor>> {
public:
    using Item = StreamItem<Result>;

    explicit StreamState(std::ptrdiff_t window) : window_(window) {}
    virtual ~StreamState() = default;

    StreamState(const StreamState&) = delete;
    StreamState& operator=(const StreamState&) = delete;

    void start(const Executor& executor) {
        if (started_ || stopped_) {
            return;
        }
        started_.emplace(executor);
        boost::asio::co_spawn(executor, run(), [self = this->shared_from_this()](const std::exception_ptr& error) {
            if (error && !self->stopped_) {
                self->error_ = error;
            }
            self->ended_ = true;
            self->started_->changed->notify_all();
        });
    }

    // Takes in no more, cancels what runs, and forgets what nobody has asked for.
    void stop() {
        stopped_ = true;
        results_.clear();
        error_ = nullptr;
        if (group_) {
            group_->cancel();
        }
    }

    bool running() const noexcept { return started_ && !ended_ && !started_->changed->context_gone(); }

    // An asynchronous operation: waits until something has changed.
    auto change(Waiter& waiter) noexcept { return started_->changed->wait(waiter); }

    bool has_result() const noexcept { return !results_.empty(); }

    // The oldest result; when it is removed, its place in the window is free again.
    Item& result() noexcept { return results_.front().item; }
    void remove_result() noexcept {
        const bool has_place = results_.front().has_place;
        results_.pop_front();
        if (has_place && taken_-- == window_) {
            started_->room->notify_one();  // who takes this place looks whether there are more
        }
    }

    void rethrow_error() {
        if (error_) {
            std::rethrow_exception(std::exchange(error_, nullptr));
        }
    }

private:
    friend struct Begin<StreamState>;
    friend struct Work<StreamState>;

    struct Started {
        explicit Started(const Executor& executor)
            : room(make_queue<Condition>("ResultStream", executor)),
              changed(make_queue<Condition>("ResultStream", executor)) {}

        boost::intrusive_ptr<Condition> room;     // there is a place in the window, or no query left
        boost::intrusive_ptr<Condition> changed;  // a result came in, or the stream ended
    };

    struct Completed {
        Completed(std::size_t index, Result&& result, bool in_window)
            : item(index, std::move(result)), has_place(in_window) {}

        Item item;
        bool has_place;  // not if a consumer was waiting for it when it came
    };

    virtual std::optional<Query> pull() = 0;
    virtual boost::asio::awaitable<void, Executor> process(Result& result) = 0;  // runs result.query

    boost::asio::awaitable<void, Executor> run() {
        const auto self = this->shared_from_this();
        const struct Reset {
            TaskGroup*& group;
            ~Reset() { group = nullptr; }
        } reset{group_};
        co_await with_task_group<Executor>(Begin<StreamState>{*this});
    }

    // What the group runs first.
    boost::asio::awaitable<void, Executor> begin(TaskGroup& group) {
        group_ = &group;
        if (stopped_) {
            group.cancel();
        }
        add_worker(group);
        co_return;
    }

    void add_worker(TaskGroup& group) {
        ++workers_;
        group.spawn(Work<StreamState>{*this, group});
    }

    boost::asio::awaitable<void, Executor> work(TaskGroup& group) {
        while (!stopped_ && !input_ended_) {
            if (taken_ == window_) {
                Waiter waiter;
                co_await started_->room->wait(waiter);
                continue;
            }
            ++taken_;
            std::optional<Query> query = pull_or_end();
            if (!query || stopped_) {
                co_return;
            }
            const std::size_t index = pulled_++;
            if (workers_ < window_) {
                add_worker(group);
            } else if (taken_ < window_) {
                started_->room->notify_one();
            }
            Result result(std::move(*query));
            co_await process(result);
            if (!stopped_) {
                const bool awaited = started_->changed->waiting() != 0;
                taken_ -= awaited;
                results_.emplace_back(index, std::move(result), !awaited);
                started_->changed->notify_one();
            }
        }
    }

    std::optional<Query> pull_or_end() {
        std::optional<Query> query;
        try {
            query = pull();
        } catch (...) {
            if (!stopped_) {
                error_ = std::current_exception();  // what was taken in before goes on to its end
            }
        }
        if (!query) {
            input_ended_ = true;
            started_->room->notify_all();
        }
        return query;
    }

    const std::ptrdiff_t window_;
    std::optional<Started> started_;  // by the first wait for a result
    std::deque<Completed> results_;   // that nobody has asked for yet
    std::exception_ptr error_;        // what ended the input early
    TaskGroup* group_ = nullptr;      // that all work runs in
    std::ptrdiff_t workers_ = 0;      // begun; each ends when the input does
    std::ptrdiff_t taken_ = 0;        // places: queries that run, and results that wait to be asked for
    std::size_t pulled_ = 0;
    bool input_ended_ = false;
    bool stopped_ = false;
    bool ended_ = false;
};

// A stream of a pipeline's results.
template <class State, class Range>
class PipelineStream final : public StreamState<typename State::Result, typename State::Executor> {
public:
    PipelineStream(std::shared_ptr<State> state, Input<Range> queries)
        : PipelineStream::StreamState(state->window), state_(std::move(state)), queries_(std::move(queries)) {}

private:
    std::optional<Query> pull() override { return queries_.pull(); }

    boost::asio::awaitable<void, typename State::Executor> process(typename State::Result& result) override {
        return state_->process(result);
    }

    std::shared_ptr<State> state_;
    Input<Range> queries_;
};

}  // namespace sluice::detail
