// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/wait_queue.hpp>
#include <sluice/query.hpp>
#include <sluice/stage_semaphore.hpp>
#include <sluice/task_group.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <boost/system/system_error.hpp>

#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <utility>

namespace sluice {

/// One result of a stream, and where its query stood in the input.
template <class Result>
struct StreamItem {
    std::size_t index;
    Result result;

    StreamItem(std::size_t query_index, Result query_result) : index(query_index), result(std::move(query_result)) {}
};

namespace detail {

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

// The body of the group that a batch or a stream runs in, and its children.
template <class Crew>
struct Begin {
    Crew& crew;

    auto operator()(TaskGroup& group) const { return crew.begin(group); }
};

template <class Crew>
struct Work {
    Crew& crew;
    TaskGroup& group;

    auto operator()() const { return crew.work(group); }
};

// What a ResultStream shares with the coroutines that work for it; whoever makes a stream derives from it.
//
// The window is a semaphore of places: a query takes one before it is pulled, and gives it back when the consumer has
// its result. So a slow consumer slows intake, and one that is gone ends it.
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
        started_.emplace(executor, window_);
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

    bool running() const noexcept { return started_ && !ended_; }

    // Suspends until something has changed.
    boost::asio::awaitable<void, Executor> change() {
        Waiter waiter;
        co_await started_->changed->wait(waiter);
        if (waiter.outcome == Outcome::aborted) {
            throw boost::system::system_error(boost::asio::error::operation_aborted, "ResultStream::next");
        }
    }

    bool has_result() const noexcept { return !results_.empty(); }

    // The oldest result; its place in the window is free again.
    Item take_result() {
        Item item = std::move(results_.front().item);
        results_.pop_front();
        return item;
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
        Started(const Executor& executor, std::ptrdiff_t window)
            : places(executor, window), changed(make_queue<Condition>(executor)) {}

        StageSemaphore places;
        boost::intrusive_ptr<Condition> changed;  // a result came in, or the stream ended
    };

    struct Completed {
        Item item;
        Slot place;
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
        while (!stopped_) {
            Slot place = co_await started_->places.template acquire<Executor>();
            std::optional<Query> query;
            try {
                query = pull();
            } catch (...) {
                if (!stopped_) {
                    error_ = std::current_exception();  // what was taken in before goes on to its end
                }
            }
            if (!query || stopped_) {
                co_return;
            }
            const std::size_t index = pulled_++;
            if (workers_ < window_) {
                add_worker(group);
            }
            Result result(std::move(*query));
            co_await process(result);
            if (!stopped_) {
                results_.push_back(Completed{Item(index, std::move(result)), std::move(place)});
                started_->changed->notify_one();
            }
        }
    }

    const std::ptrdiff_t window_;
    std::optional<Started> started_;  // by the first wait for a result
    std::deque<Completed> results_;   // that nobody has asked for yet
    std::exception_ptr error_;        // what ended the input early
    TaskGroup* group_ = nullptr;      // that all work runs in
    std::ptrdiff_t workers_ = 0;      // begun; each ends when the input does
    std::size_t pulled_ = 0;
    bool stopped_ = false;
    bool ended_ = false;
};

}  // namespace detail

/// Results as they complete: what InferencePipeline::process_stream() gives.
///
/// Work begins with the first next(). Queries that run and results that wait to be asked for never outnumber the
/// window, so a slow consumer slows intake. Destroying the stream stops it: nothing new starts, what runs is cancelled,
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
    [[nodiscard]] boost::asio::awaitable<std::optional<Item>, Executor> next() { return next(state_); }

    /// Stops the stream and waits until nothing of it runs any more; results not yet asked for are dropped. What the
    /// stream itself runs, a model function or a dead-letter sink, must not wait for that: it would wait for itself.
    ///
    /// @par Cancellation
    /// Of the wait alone: the stream stops all the same.
    [[nodiscard]] boost::asio::awaitable<void, Executor> close() { return close(state_); }

private:
    using State = detail::StreamState<Result, Executor>;

    static boost::asio::awaitable<std::optional<Item>, Executor> next(std::shared_ptr<State> state) {
        state->start(co_await boost::asio::this_coro::executor);
        while (!state->has_result() && state->running()) {
            co_await state->change();
        }
        std::optional<Item> item;
        if (state->has_result()) {
            item.emplace(state->take_result());
        } else {
            state->rethrow_error();
        }
        co_return item;
    }

    static boost::asio::awaitable<void, Executor> close(std::shared_ptr<State> state) {
        state->stop();
        while (state->running()) {
            co_await state->change();
        }
    }

    std::shared_ptr<State> state_;  // null when moved from
};

}  // namespace sluice
