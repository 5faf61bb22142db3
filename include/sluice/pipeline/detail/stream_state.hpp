// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/drain_state.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/detail/drain_scope.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/condition_variable.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/slot.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

namespace sluice::detail {

// The state that a ResultStream shares with its workers, as the output of their window. A source of results derives
// from it.
//
// A result keeps the place of its query in the window until a consumer takes it. So a slow consumer slows intake, and
// one that is gone ends it.
template <class Result, class Executor>
class StreamState : public std::enable_shared_from_this<StreamState<Result, Executor>> {
public:
    using Item = StreamItem<Result>;

    StreamState() = default;
    virtual ~StreamState() = default;

    StreamState(const StreamState&) = delete;
    StreamState& operator=(const StreamState&) = delete;

    void start(const Executor& executor) {
        if (progress_ || stopped_) {
            return;
        }
        progress_ = make_queue<ConditionVariable>("ResultStream", executor);
        const auto on_end = [self = this->shared_from_this()](const std::exception_ptr& error) {
            if (error && !self->stopped_ && !self->error_) {  // the first, as in a batch
                self->error_ = error;
            }
            self->ended_ = true;
            self->progress_->notify_all();
        };
        try {
            boost::asio::co_spawn(executor, run(), on_end);
        } catch (...) {  // nothing has begun, and the next call may begin
            progress_ = nullptr;
            did_not_run();
            throw;
        }
    }

    // Whether a source that the stream owns must be closed, even if the stream has not begun.
    virtual bool must_close_source() const noexcept = 0;

    // Takes in no more queries, cancels those that run, and drops the results that were not taken.
    void stop() {
        stopped_ = true;
        results_.clear();
        error_ = nullptr;
        cancel();
    }

    bool running() const noexcept { return progress_ && !ended_ && !progress_->context_gone(); }

    // An asynchronous operation: waits for a result or the end of the stream.
    auto wait_for_progress(Waiter& waiter) noexcept { return progress_->wait(waiter); }

    bool has_result() const noexcept { return !results_.empty(); }

    // The oldest result. Removing it frees its place in the window.
    Item& result() noexcept { return results_.front().item; }
    void remove_result() {
        Slot place = std::move(results_.front().place);
        results_.pop_front();
        if (place) {
            give_back(place);
        }
    }

    void rethrow_error() {
        if (error_) {
            std::rethrow_exception(std::exchange(error_, nullptr));
        }
    }

    void begin() const noexcept {}

    void end(std::size_t index, auto& job) {
        if (!stopped_) {
            if (progress_->waiting() != 0) {  // a consumer waits and will take the result
                job.place.release();
            }
            results_.emplace_back(index, job.finished(), std::move(job.place));
            progress_->notify_one();
        }
    }

    // The outcome of a drain of the stream.
    struct Drained {
        QueryEnds counts;
        std::vector<Result> unfinished;
    };

    // Drains a stream that can be drained.
    virtual boost::asio::awaitable<Drained, Executor> drain(std::chrono::nanoseconds grace) = 0;

    // The pipeline that owns the stream as its source is drained, in `scope`. The stream takes in no more queries, and
    // ends when those that run have ended and their results were taken.
    virtual void end_input(const DrainScope& scope) = 0;

    // The grace of that drain is over: what still runs is cut short, or cancelled.
    virtual void end_grace() = 0;

    // Queries that were taken before run to their end.
    void fail(const std::exception_ptr& error) noexcept {
        if (!stopped_) {
            error_ = error;
        }
    }

protected:
    bool stopped() const noexcept { return stopped_; }

private:
    struct Completed {
        Completed(std::size_t index, Result&& result, Slot&& its_place)
            : item(index, std::move(result)), place(std::move(its_place)) {}

        Item item;
        Slot place;  // empty if a consumer was waiting when it came
    };

    virtual boost::asio::awaitable<void, Executor> run() = 0;  // keeps this object alive
    virtual void did_not_run() noexcept = 0;                   // what it returned
    virtual void cancel() noexcept = 0;
    virtual void give_back(Slot& place) = 0;

    boost::intrusive_ptr<ConditionVariable> progress_;  // there is a result, or the stream has ended
    std::deque<Completed> results_;                     // that no consumer has taken yet
    std::exception_ptr error_;                          // ended the input early
    bool stopped_ = false;
    bool ended_ = false;
};

}  // namespace sluice::detail
