// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/frame_pool.hpp>
#include <sluice/detail/wait_queue.hpp>
#include <sluice/detail/waiter.hpp>

#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>

#include <exception>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// A completion from within the call that starts the operation: it resumes the coroutine on top of its own suspension,
// and so must not go on for ever.
class InlineCompletion {
public:
    static bool allowed() noexcept { return depth_ < 64; }

    InlineCompletion() noexcept { ++depth_; }
    ~InlineCompletion() { --depth_; }

    InlineCompletion(const InlineCompletion&) = delete;
    InlineCompletion& operator=(const InlineCompletion&) = delete;

private:
    static inline thread_local constinit int depth_ = 0;
};

// What an operation that waits gives: awaiting it makes no coroutine frame, for its state lies in the frame of the
// coroutine that awaits it. Where that will not do, it turns into an awaitable.
//
// `Derived` has start(handler), with a handler of void(std::exception_ptr, Value), and complete(handler) for when it
// resumes.
template <class Derived, class Value>
class Operation {
public:
    // Constrained, since co_await asks of every operand whether it can be called with a coroutine frame.
    template <boost::asio::completion_token_for<void(std::exception_ptr, Value)> Token>
    auto operator()(Token&& token) {
        return boost::asio::async_initiate<Token, void(std::exception_ptr, Value)>(
            [this](auto&& handler) { self().start(std::forward<decltype(handler)>(handler)); }, token);
    }

    boost::asio::awaitable<Value> operator()() { return std::move(self()); }

    template <class Executor>
    operator boost::asio::awaitable<Value, Executor>() && {
        return run<Executor>(Pooled(), std::move(self()));
    }

protected:
    // Completes now if the waiter's outcome is decided, and else lets it into the queue to complete when it resumes.
    // This object may be gone afterwards.
    template <class Handler>
    void complete_or_enter(WaitQueue& queue, Waiter& waiter, Handler&& handler) {
        if (waiter.outcome != Outcome::waiting && (InlineCompletion::allowed() || queue.context_gone())) {
            const InlineCompletion here;
            self().complete(std::forward<Handler>(handler));
        } else {
            const auto cancellation = boost::asio::get_associated_cancellation_slot(handler);
            queue.enter(waiter, cancellation,
                        Completion<std::decay_t<Handler>>{&self(), std::forward<Handler>(handler)});
        }
    }

private:
    template <class Handler>
    struct Completion {
        Derived* operation;
        Handler handler;

        void operator()() { operation->complete(std::move(handler)); }
    };

    Derived& self() noexcept { return static_cast<Derived&>(*this); }

    template <class Executor>
    static boost::asio::awaitable<Value, Executor> run(Pooled, Derived operation) {
        co_return co_await std::move(operation);
    }
};

}  // namespace sluice::detail
