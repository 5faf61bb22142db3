// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/frame_pool.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>

#include <exception>
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
    using value_type = Value;
    using executor_type = boost::asio::any_io_executor;

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
    // Calls `operation.complete(handler)` when the waiter resumes.
    template <class Handler>
    struct Completion {
        Derived* operation;
        Handler handler;

        void operator()() { operation->complete(std::move(handler)); }
    };

private:
    Derived& self() noexcept { return static_cast<Derived&>(*this); }

    template <class Executor>
    static boost::asio::awaitable<Value, Executor> run(Pooled, Derived operation) {
        co_return co_await std::move(operation);
    }
};

}  // namespace sluice::detail
