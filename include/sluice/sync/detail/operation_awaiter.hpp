// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/wait_operation.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/version.hpp>

#include <concepts>
#include <coroutine>
#include <exception>

// Asio suspends a coroutine before it starts the operation that is awaited, so that one which completes at once resumes
// it on top of its own suspension. A WaitOperation whose outcome is decided at once has no need of that: here the
// coroutine does not suspend. This replaces the awaiter that Asio makes of an operation, which is a detail of Asio's,
// the same in the versions named below; with others, or if SLUICE_PORTABLE_AWAIT is defined, Asio's own awaiter does.
#if BOOST_VERSION >= 108300 && BOOST_VERSION <= 109200 && !defined(SLUICE_PORTABLE_AWAIT)

namespace sluice::detail {

template <class Operation, class Executor>
class OperationAwaiter {
public:
    using Frame = boost::asio::detail::awaitable_frame_base<Executor>;

    // What follows the frame is where the co_await is, if Asio tracks handlers.
    OperationAwaiter(Operation&& operation, Frame* frame, const auto&...) noexcept
        : operation_(operation), frame_(*frame) {}

    bool await_ready() {
        const bool decided =
            operation_.begin([&] { return frame_.await_transform(boost::asio::this_coro::executor).await_resume(); });
        return operation_.queue().continues_at_once(decided);
    }

    // The operation may resume the coroutine, and so begins once that is suspended.
    void await_suspend(std::coroutine_handle<>) {
        frame_.after_suspend([](void* self) { static_cast<OperationAwaiter*>(self)->enter(); }, this);
    }

    auto await_resume() { return operation_.result(); }

private:
    using Handler = boost::asio::detail::awaitable_async_op_handler<void(), Executor>;

    void enter() { operation_.enter(Handler(frame_.detach_thread(), nothing_)); }

    Operation& operation_;
    Frame& frame_;
    [[no_unique_address]] typename Handler::result_type nothing_;
};

}  // namespace sluice::detail

// What co_await makes of an operation in a coroutine whose executor is an `Executor`.
template <class Value, std::derived_from<sluice::detail::AnyWaitOperation> Operation, class Executor>
class boost::asio::detail::awaitable_async_op<void(std::exception_ptr, Value), Operation, Executor>
    : public sluice::detail::OperationAwaiter<Operation, Executor> {
public:
    using sluice::detail::OperationAwaiter<Operation, Executor>::OperationAwaiter;
};

#endif
