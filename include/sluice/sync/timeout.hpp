// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>
#include <exception>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace sluice {

/// Thrown by with_timeout() when the time is up.
class TimeoutError : public std::runtime_error {
public:
    explicit TimeoutError(std::chrono::nanoseconds timeout) : std::runtime_error(message(timeout)) {}

private:
    static std::string message(std::chrono::nanoseconds timeout) {
        const double milliseconds = std::chrono::duration<double, std::milli>(timeout).count();
        return "timed out after " + detail::format_number(milliseconds) + " ms";
    }
};

namespace detail {

// A coroutine beside a timer; the first to end cancels the other.
template <class T, class Function>
struct TimedRun {
    using Value = awaited_value_t<Function&>;
    using Executor = awaitable_executor_t<Function&>;

    T& timer;
    Function& function;
    OptionalValue<Value>& result;
    bool& expired;  // before the function ended

    boost::asio::awaitable<void, Executor> cancel_on_expiry(TaskGroup& group) const {
        co_await timer.async_wait(boost::asio::deferred);
        expired = !group.cancelled();
        group.cancel();
    }

    boost::asio::awaitable<void, Executor> operator()(TaskGroup& group) const {
        group.spawn([this, &group] { return cancel_on_expiry(group); });
        if constexpr (std::is_void_v<Value>) {
            co_await function();
            result.emplace();
        } else {
            result.emplace(co_await function());
        }
        group.cancel();
    }

    // Sets `*late`, if given, to whether the function returned its value after the time was up.
    static boost::asio::awaitable<Value, Executor> run(std::chrono::nanoseconds timeout, Function function,
                                                       bool* late = nullptr) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        check_clock<T>(executor);
        T timer(executor);
        timer.expires_after(std::chrono::duration_cast<typename T::duration>(timeout));
        OptionalValue<Value> result;
        bool expired = false;
        try {
            co_await with_task_group<Executor>(TimedRun{timer, function, result, expired});
        } catch (...) {
            if (!result) {
                if (expired && !is_cancellation(std::current_exception())) {
                    std::throw_with_nested(TimeoutError(timeout));
                }
                throw;
            }
        }
        if (!result) {
            throw TimeoutError(timeout);
        }
        if (late) {
            *late = expired;
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
/// With g++ 12 a lambda written in the operand of `co_await` must capture nothing that has a destructor; see
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
    return detail::TimedRun<T, Function>::run(timeout, std::move(function));
}

}  // namespace sluice
