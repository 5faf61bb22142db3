// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/cancelled_by.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/detail/timeouts.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <chrono>
#include <exception>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace sluice {

/// Thrown by with_timeout() when the time is up, and the error of an attempt of a Stage that took too long.
class TimeoutError : public std::runtime_error {
public:
    explicit TimeoutError(std::chrono::nanoseconds timeout)
        : std::runtime_error("timed out after " + detail::in_milliseconds(timeout)) {}
};

namespace detail {

// To be called while an exception that ended a timed call is handled. Throws what its caller is to see instead: an
// `Error` that is made of `timeout`, if the time was up.
template <class T, class Error = TimeoutError>
[[noreturn]] void throw_timed_out(const typename Timeouts<T>::Call& call, std::chrono::nanoseconds timeout) {
    if (!is_cancellation(std::current_exception())) {
        if (call.expired()) {
            std::throw_with_nested(Error(timeout));
        }
        throw;
    }
    if (call.cancelled_from_outside()) {
        throw operation_aborted("with_timeout");
    }
    if (call.expired()) {
        throw Error(timeout);
    }
    throw;
}

template <class T, class Function>
struct TimedRun {
    using Value = awaited_value_t<Function&>;
    using Executor = awaitable_executor_t<Function&>;

    static boost::asio::awaitable<Value, Executor> run(Pooled, std::chrono::nanoseconds timeout, Function function) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        const boost::intrusive_ptr<Timeouts<T>> timeouts(new Timeouts<T>(WhenIdle::cancel));
        OptionalValue<Value> result;
        {
            typename Timeouts<T>::Call call(*timeouts, executor, due_after<T>(now<T>(executor), timeout));
            try {
                co_await cancelled_by(call, result, boost::asio::awaitable<Value, Executor>(function()));
            } catch (...) {
                throw_timed_out<T>(call, timeout);
            }
        }
        if constexpr (!std::is_void_v<Value>) {
            co_return std::move(*result);
        }
    }
};

}  // namespace detail

/// When awaited, calls and awaits `function()` for at most `timeout`, and returns its value.
///
/// @code
/// const std::string answer = co_await sluice::with_timeout(1s, [&] { return ask(question); });
/// @endcode
///
/// `function` is a callable without arguments that returns an awaitable, or an operation such as the one that
/// StageSemaphore::acquire() returns. When the time is up, its coroutine is cancelled, with every type of cancellation,
/// and *waited for*: nothing of it is running when with_timeout() completes. If it still returns a value, that value is
/// used: none is discarded.
///
/// With g++ 12 a lambda written in an expression with `co_await` must capture nothing that has a destructor; see
/// with_task_group().
///
/// @throws TimeoutError if the time was up before the coroutine threw. The coroutine's own exception is nested in it
/// (`std::nested_exception`), unless that was `operation_aborted`. Otherwise rethrows what the coroutine threw.
///
/// @par Cancellation
/// As with with_task_group(): the coroutine is cancelled and waited for. Then `operation_aborted` is thrown, unless the
/// coroutine returned a value or threw something else.
template <class T = boost::asio::steady_timer, class Function>
[[nodiscard]] auto with_timeout(std::chrono::nanoseconds timeout, Function function) {
    static_assert(Timer<T>, "sluice::Timer: the timer of with_timeout() must have the interface of asio::steady_timer");
    static_assert(AwaitableFunction<Function>,
                  "sluice::AwaitableFunction: with_timeout() needs a function that returns an asio::awaitable when it "
                  "is called without arguments");
    return detail::TimedRun<T, Function>::run(detail::Pooled(), timeout, std::move(function));
}

}  // namespace sluice
