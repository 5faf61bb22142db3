// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/clock.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>
#include <concepts>

namespace sluice {

/// A timer that the library can use to wait and to measure time: `asio::steady_timer`, or a type with the part of its
/// interface below, such as testing::VirtualTimer.
///
/// It is constructible from its `executor_type`, to which the executor of the coroutines must convert. If its time
/// depends on the execution context, it has a static member `now(execution_context&)`; otherwise the time is
/// `clock_type::now()`. Such a timer is taken for one of a simulation: see Backoff::seed.
template <class T>
concept Timer = requires(T& timer, const typename T::executor_type& executor, boost::asio::execution_context& context,
                         typename T::duration duration, typename T::time_point time) {
    T(executor);
    timer.expires_after(duration);
    timer.async_wait(boost::asio::deferred);
    { time - time } -> std::convertible_to<std::chrono::nanoseconds>;
    detail::now<T>(context);
};

/// When awaited, waits for `duration`. If that is zero or negative the wait ends immediately, but still gives other
/// coroutines a turn.
///
/// @tparam T The timer to wait with.
/// @tparam Executor The executor type of the awaiting coroutine.
/// @throws boost::system::system_error with `operation_aborted` if the wait was cancelled.
///
/// @par Cancellation
/// Terminal, partial and total.
template <Timer T = boost::asio::steady_timer, class Executor = boost::asio::any_io_executor>
[[nodiscard]] boost::asio::awaitable<void, Executor> sleep_for(std::chrono::nanoseconds duration) {
    const Executor executor = co_await boost::asio::this_coro::executor;
    detail::check_clock<T>(executor);
    T timer(executor);
    timer.expires_after(std::chrono::ceil<typename T::duration>(duration));
    co_await timer.async_wait(boost::asio::deferred);
}

}  // namespace sluice
