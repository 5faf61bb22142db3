// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/deferred.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>
#include <concepts>

namespace sluice {

namespace detail {

template <class T>
concept HasNow = requires(const typename T::executor_type& executor) {
    { T::now(executor) } -> std::convertible_to<typename T::time_point>;
};

template <class T>
concept HasClock = requires {
    { T::clock_type::now() } -> std::convertible_to<typename T::time_point>;
};

}  // namespace detail

/// What the library waits with and measures time by: `asio::steady_timer`, or a type that offers the same part of its
/// interface, such as testing::VirtualTimer.
///
/// Constructible from its `executor_type`, to which the executor of the coroutines must convert. A type whose clock
/// depends on the execution context has a static member `now(executor)`; the time is asked of `clock_type::now()`
/// otherwise.
template <class T>
concept Timer = requires(T& timer, const typename T::executor_type& executor, typename T::duration duration,
                         typename T::time_point time) {
    T(executor);
    timer.expires_after(duration);
    timer.async_wait(boost::asio::deferred);
    { time - time } -> std::convertible_to<std::chrono::nanoseconds>;
    requires detail::HasNow<T> || detail::HasClock<T>;
};

namespace detail {

template <Timer T, class Executor>
typename T::time_point now(const Executor& executor) {
    if constexpr (requires { T::now(executor); }) {
        return T::now(executor);
    } else {
        return T::clock_type::now();
    }
}

}  // namespace detail

}  // namespace sluice
