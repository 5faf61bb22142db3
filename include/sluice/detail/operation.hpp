// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/frame_pool.hpp>
#include <sluice/detail/terminate.hpp>
#include <sluice/detail/wait_queue.hpp>
#include <sluice/detail/waiter.hpp>

#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>

#include <concepts>
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

// What may start an operation: a coroutine that awaits it, and Asio when it asks what it is. Nothing else keeps it
// alive until it completes.
template <class Token, class Value>
concept CoroutineToken = std::same_as<Token, boost::asio::detail::async_operation_probe> ||
                         std::same_as<Token, boost::asio::detail::completion_signature_probe> ||
                         (std::invocable<Token&, std::exception_ptr, Value> && requires {
                             typename Token::executor_type;
                             typename Token::cancellation_slot_type;
                         });

// What an operation that waits gives: awaiting it makes no coroutine frame, for its state lies in the frame of the
// coroutine that awaits it. Where that will not do, it turns into an awaitable.
//
// `Derived` has start(handler), with a handler of void(std::exception_ptr, Value), complete(handler) for when it
// resumes, and check_awaited(bool), which asserts that nobody made one and forgot it.
template <class Derived, class Value>
class Operation {
public:
    using value_type = Value;

    Operation& operator=(const Operation&) = delete;

    template <class Token>
        requires CoroutineToken<std::decay_t<Token>, Value>
    auto operator()(Token&& token) {
        return boost::asio::async_initiate<Token, void(std::exception_ptr, Value)>(
            [this](auto&& handler) {
                check_address();
                forgotten_ = false;
                self().start(std::forward<decltype(handler)>(handler));
            },
            token);
    }

    boost::asio::awaitable<Value> operator()() { return std::move(self()); }

    template <class Executor>
    operator boost::asio::awaitable<Value, Executor>() && {
        return run<Executor>(Pooled(), std::move(self()));
    }

protected:
    // `other` is moved to this: it was not forgotten, and whoever keeps this may decide not to await it.
    void take_over(Operation& other) noexcept { forgotten_ = other.forgotten_ = false; }

    // An exception may keep an operation from being awaited: in a cancelled coroutine, that of Asio.
    ~Operation() {
        check_address();
        Derived::check_awaited(!forgotten_ || std::uncaught_exceptions() != 0);
    }

    // Completes now if the waiter's outcome is decided, and else lets it into the queue to complete when it resumes.
    // This object may be gone afterwards.
    template <class Handler>
    void complete_or_enter(WaitQueue& queue, Waiter& waiter, Handler&& handler) {
        using Later = Completion<std::decay_t<Handler>>;
        queue.check_context([&] { return boost::asio::get_associated_executor(handler); });
        if (waiter.outcome != Outcome::waiting && InlineCompletion::allowed()) {
            const InlineCompletion here;
            self().complete(std::forward<Handler>(handler));
        } else if (queue.context_gone()) {  // nobody drains that queue any more
            const auto executor = boost::asio::get_associated_executor(handler);
            boost::asio::post(executor, Later{&self(), std::forward<Handler>(handler)});
        } else {
            const auto cancellation = boost::asio::get_associated_cancellation_slot(handler);
            queue.enter(waiter, cancellation, Later{&self(), std::forward<Handler>(handler)});
        }
    }

private:
    friend Derived;
    Operation() noexcept = default;

    template <class Handler>
    struct Completion {
        Derived* operation;
        Handler handler;

        void operator()() { operation->complete(std::move(handler)); }
    };

    // That this is no copy that nobody constructed.
    void check_address() const noexcept {
        if (at_ != this) [[unlikely]] {
            terminate_with(
                "sluice: a bitwise copy of an operation, such as g++ 12 makes of `co_await (free ? a.acquire() : "
                "b.acquire())`; write the two co_awaits one by one");
        }
    }

    Derived& self() noexcept { return static_cast<Derived&>(*this); }

    template <class Executor>
    static boost::asio::awaitable<Value, Executor> run(Pooled, Derived operation) {
        co_return co_await std::move(operation);
    }

    const void* at_ = this;
    bool forgotten_ = true;  // neither awaited nor moved from, so far
};

}  // namespace sluice::detail
