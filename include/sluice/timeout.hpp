// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/concepts.hpp>
#include <sluice/detail/to_text.hpp>
#include <sluice/task_group.hpp>
#include <sluice/timer.hpp>

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

/// What with_timeout() throws when time is up.
class TimeoutError : public std::runtime_error {
public:
    explicit TimeoutError(std::chrono::nanoseconds timeout) : std::runtime_error(message(timeout)) {}

private:
    static std::string message(std::chrono::nanoseconds timeout) {
        return "timed out after " + detail::to_text(std::chrono::duration<double, std::milli>(timeout).count()) + " ms";
    }
};

namespace detail {

// A coroutine beside a timer; the first to end cancels the other.
template <class T, class Function>
struct TimedRun {
    using Value = awaited_t<Function&>;
    using Executor = awaiting_executor_t<Function&>;

    T& timer;
    Function& function;
    Awaited<Value>& result;
    bool& expired;  // before the function ended

    struct CancelOnExpiry {
        T& timer;
        TaskGroup& group;
        bool& expired;

        boost::asio::awaitable<void, Executor> operator()() const {
            co_await timer.async_wait(boost::asio::deferred);
            expired = !group.cancelled();
            group.cancel();
        }
    };

    boost::asio::awaitable<void, Executor> operator()(TaskGroup& group) const {
        group.spawn(CancelOnExpiry{timer, group, expired});
        if constexpr (std::is_void_v<Value>) {
            co_await function();
            result.emplace();
        } else {
            result.emplace(co_await function());
        }
        group.cancel();
    }

    // Tells `late`, if anyone asks, whether the function gave its value after the time was up.
    static boost::asio::awaitable<Value, Executor> run(std::chrono::nanoseconds timeout, Function function,
                                                       bool* late = nullptr) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        check_clock<T>(executor);
        T timer(executor);
        timer.expires_after(std::chrono::duration_cast<typename T::duration>(timeout));
        Awaited<Value> result;
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

/// Awaits `function()`, a callable that returns an awaitable or an operation such as StageSemaphore::acquire(), for at
/// most `timeout`. Returns its value.
///
/// When time is up, the coroutine is cancelled, with every type, and *waited for*: nothing of it runs on when
/// with_timeout() has ended. A coroutine that gives a value all the same is in time: no value is discarded.
///
/// With g++ 12 a lambda given directly must capture nothing that has a destructor; see with_task_group().
///
/// @throws TimeoutError if time was up before the coroutine threw; what it threw is nested in that
/// (`std::nested_exception`), unless it was `operation_aborted`. Else whatever the coroutine threw.
///
/// @par Cancellation
/// As with_task_group(): the coroutine is cancelled and waited for, and `operation_aborted` comes out, unless it gives
/// a value all the same.
template <class T = boost::asio::steady_timer, class Function>
[[nodiscard]] auto with_timeout(std::chrono::nanoseconds timeout, Function function) {
    static_assert(Timer<T>, "sluice::Timer: what with_timeout() waits with must be like asio::steady_timer");
    static_assert(AwaitableFunction<Function>,
                  "sluice::AwaitableFunction: with_timeout() needs a function that gives an asio::awaitable when it is "
                  "called without arguments");
    return detail::TimedRun<T, Function>::run(timeout, std::move(function));
}

}  // namespace sluice
