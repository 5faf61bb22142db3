// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/query.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/assert.hpp>

#include <chrono>
#include <concepts>

namespace sluice {

namespace detail {

// An execution context with this service runs on simulated time; every other clock is meaningless there.
class SimulatedTime : public boost::asio::execution_context::service {
public:
    static inline boost::asio::execution_context::id id;

    using service::service;
};

template <class Executor>
bool has_simulated_time(const Executor& executor) {
    return boost::asio::has_service<SimulatedTime>(boost::asio::query(executor, boost::asio::execution::context));
}

template <class T>
concept HasNow = requires(const typename T::executor_type& executor) {
    { T::now(executor) } -> std::convertible_to<typename T::time_point>;
};

// Returns the time by which a T on `executor` expires.
template <HasNow T, class Executor>
typename T::time_point now(const Executor& executor) {
    return T::now(executor);
}
template <class T, class Executor>
    requires(!HasNow<T>) && requires {
        { T::clock_type::now() } -> std::convertible_to<typename T::time_point>;
    }
typename T::time_point now(const Executor&) {
    return T::clock_type::now();
}

}  // namespace detail

/// A type that the library waits with and measures time by: `asio::steady_timer`, or one that has the same part of its
/// interface, such as testing::VirtualTimer.
///
/// It is constructible from its `executor_type`, to which the executor of the coroutines must convert. If its time
/// depends on the execution context, it has a static member `now(executor)`; otherwise the time is `clock_type::now()`.
template <class T>
concept Timer = requires(T& timer, const typename T::executor_type& executor, typename T::duration duration,
                         typename T::time_point time) {
    T(executor);
    timer.expires_after(duration);
    timer.async_wait(boost::asio::deferred);
    { time - time } -> std::convertible_to<std::chrono::nanoseconds>;
    detail::now<T>(executor);
};

namespace detail {

// Asserts that T measures the time of the context that it is used in.
template <Timer T, class Executor>
void check_clock(const Executor& executor) {
    BOOST_ASSERT_MSG(HasNow<T> || !has_simulated_time(executor),
                     "sluice: two kinds of time in one execution context: where testing::VirtualTimer is used, stages, "
                     "pipelines and timeouts must be given testing::VirtualTimer too, or they wait forever");
    static_cast<void>(executor);
}

}  // namespace detail

/// Awaiting it waits for `duration`. If that is zero or negative the wait ends immediately, but still gives other
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
    timer.expires_after(std::chrono::duration_cast<typename T::duration>(duration));
    co_await timer.async_wait(boost::asio::deferred);
}

}  // namespace sluice
