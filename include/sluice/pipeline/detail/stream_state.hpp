// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/query_reader.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/condition_variable.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/task_group.hpp>

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

// The state that a ResultStream shares with its workers. A source of results derives from it.
//
// A query takes a place in the window before it is pulled, and its result keeps the place until a consumer takes it. So
// a slow consumer slows intake, and one that is gone ends it.
template <class Result, class Executor>
class StreamState : public std::enable_shared_from_this<StreamState<Result, Executor>> {
public:
    using Item = StreamItem<Result>;

    explicit StreamState(std::ptrdiff_t window) : window_(window) {}
    virtual ~StreamState() = default;

    StreamState(const StreamState&) = delete;
    StreamState& operator=(const StreamState&) = delete;

    void start(const Executor& executor) {
        if (progress_ || stopped_) {
            return;
        }
        place_free_ = make_queue<ConditionVariable>("ResultStream", executor);
        progress_ = make_queue<ConditionVariable>("ResultStream", executor);
        boost::asio::co_spawn(executor, run(), [self = this->shared_from_this()](const std::exception_ptr& error) {
            if (error && !self->stopped_) {
                self->error_ = error;
            }
            self->ended_ = true;
            self->progress_->notify_all();
        });
    }

    // Takes in no more queries, cancels those that run, and drops the results that were not taken.
    void stop() {
        stopped_ = true;
        results_.clear();
        error_ = nullptr;
        if (group_) {
            group_->cancel();
        }
    }

    bool running() const noexcept { return progress_ && !ended_ && !progress_->context_gone(); }

    // An asynchronous operation: waits for a result or the end of the stream.
    auto wait_for_progress(Waiter& waiter) noexcept { return progress_->wait(waiter); }

    bool has_result() const noexcept { return !results_.empty(); }

    // The oldest result. Removing it frees its place in the window.
    Item& result() noexcept { return results_.front().item; }
    void remove_result() noexcept {
        const bool holds_place = results_.front().holds_place;
        results_.pop_front();
        if (holds_place) {
            const bool was_full = places_taken_ == window_;
            --places_taken_;
            if (was_full) {
                place_free_->notify_one();  // the worker that takes it checks for more free places
            }
        }
    }

    void rethrow_error() {
        if (error_) {
            std::rethrow_exception(std::exchange(error_, nullptr));
        }
    }

private:
    struct Completed {
        Completed(std::size_t index, Result&& result, bool in_window)
            : item(index, std::move(result)), holds_place(in_window) {}

        Item item;
        bool holds_place;  // false if a consumer was waiting when it came
    };

    virtual std::optional<Query> pull() = 0;
    virtual boost::asio::awaitable<void, Executor> process(Result& result) = 0;  // runs result.query

    boost::asio::awaitable<void, Executor> run() {
        const auto self = this->shared_from_this();
        const struct Reset {
            TaskGroup*& group;
            ~Reset() { group = nullptr; }
        } reset{group_};
        const auto body = [this](TaskGroup& group) { return begin(group); };
        co_await with_task_group<Executor>(body);
    }

    // The body of the group.
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
        group.spawn([this, &group] { return work(group); });
    }

    boost::asio::awaitable<void, Executor> work(TaskGroup& group) {
        while (!stopped_ && !input_ended_) {
            if (places_taken_ == window_) {
                Waiter waiter;
                co_await place_free_->wait(waiter);
                continue;
            }
            ++places_taken_;
            std::optional<Query> query = pull_or_end();
            if (!query || stopped_) {
                co_return;
            }
            const std::size_t index = pulled_++;
            if (workers_ < window_) {
                add_worker(group);
            } else if (places_taken_ < window_) {
                place_free_->notify_one();
            }
            Result result(std::move(*query));
            co_await process(result);
            if (!stopped_) {
                const bool consumer_waits = progress_->waiting() != 0;
                if (consumer_waits) {
                    --places_taken_;
                }
                results_.emplace_back(index, std::move(result), !consumer_waits);
                progress_->notify_one();
            }
        }
    }

    std::optional<Query> pull_or_end() {
        std::optional<Query> query;
        try {
            query = pull();
        } catch (...) {
            if (!stopped_) {
                error_ = std::current_exception();  // queries that were taken in before run to their end
            }
        }
        if (!query) {
            input_ended_ = true;
            place_free_->notify_all();
        }
        return query;
    }

    const std::ptrdiff_t window_;
    boost::intrusive_ptr<ConditionVariable> place_free_;  // a place in the window is free, or the input has ended
    boost::intrusive_ptr<ConditionVariable> progress_;    // there is a result, or the stream has ended
    std::deque<Completed> results_;                       // that no consumer has taken yet
    std::exception_ptr error_;                            // ended the input early
    TaskGroup* group_ = nullptr;                          // runs all workers
    std::ptrdiff_t workers_ = 0;                          // that were started; each ends when the input does
    std::ptrdiff_t places_taken_ = 0;                     // by queries that run, and results that hold theirs
    std::size_t pulled_ = 0;
    bool input_ended_ = false;
    bool stopped_ = false;
    bool ended_ = false;
};

// A stream of the results of a pipeline.
template <class State, class Range>
class PipelineStream final : public StreamState<typename State::Result, typename State::Executor> {
public:
    PipelineStream(std::shared_ptr<State> state, QueryReader<Range> queries)
        : PipelineStream::StreamState(state->window), state_(std::move(state)), queries_(std::move(queries)) {}

private:
    std::optional<Query> pull() override { return queries_.pull(); }

    boost::asio::awaitable<void, typename State::Executor> process(typename State::Result& result) override {
        return state_->process(result);
    }

    std::shared_ptr<State> state_;
    QueryReader<Range> queries_;
};

}  // namespace sluice::detail
