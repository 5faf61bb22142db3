// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/deferred.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>

namespace sluice {

/// What the library waits with and measures time by: `asio::steady_timer`, or a type that offers the same part of its
/// interface, such as testing::VirtualTimer.
///
/// Constructible from the coroutine's executor. A type whose clock depends on the execution context has a static member
/// `now(executor)`; the time is asked of `clock_type::now()` otherwise.
template <class T>
concept Timer = requires(T& timer, typename T::duration duration) {
    typename T::time_point;
    timer.expires_after(duration);
    timer.async_wait(boost::asio::deferred);
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
