// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/task_group.hpp>
#include <sluice/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>
#include <optional>
#include <sstream>
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
        std::ostringstream text;
        text << "timed out after " << std::chrono::duration<double, std::milli>(timeout).count() << " ms";
        return std::move(text).str();
    }
};

/// Awaits `function()`, a callable that gives an awaitable, for at most `timeout`. Gives what it gave.
///
/// When time is up, the coroutine is cancelled, with every type, and *waited for*: nothing of it runs on when
/// with_timeout() has ended. A coroutine that gives a value all the same is in time.
///
/// @throws TimeoutError if time was up and the coroutine ended by that; else whatever it threw.
///
/// @par Cancellation
/// As with_task_group(): the coroutine is cancelled and waited for, and `operation_aborted` comes out.
template <Timer T = boost::asio::steady_timer, class Function>
[[nodiscard]] auto with_timeout(std::chrono::nanoseconds timeout, Function function)
    -> boost::asio::awaitable<detail::awaited_t<Function&>, detail::awaiting_executor_t<Function&>> {
    using Executor = detail::awaiting_executor_t<Function&>;
    using Value = detail::awaited_t<Function&>;
    using Result = std::conditional_t<std::is_void_v<Value>, bool, Value>;

    T timer(co_await boost::asio::this_coro::executor);
    timer.expires_after(std::chrono::duration_cast<typename T::duration>(timeout));
    std::optional<Result> result;
    co_await with_task_group<Executor>([&](TaskGroup& group) -> boost::asio::awaitable<void, Executor> {
        group.spawn([&]() -> boost::asio::awaitable<void, Executor> {
            co_await timer.async_wait(boost::asio::deferred);
            group.cancel();
        });
        if constexpr (std::is_void_v<Value>) {
            co_await function();
            result.emplace(true);
        } else {
            result.emplace(co_await function());
        }
        group.cancel();
    });
    if (!result) {
        throw TimeoutError(timeout);
    }
    if constexpr (!std::is_void_v<Value>) {
        co_return std::move(*result);
    }
}

}  // namespace sluice
