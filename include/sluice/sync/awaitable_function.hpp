// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <concepts>
#include <type_traits>

namespace sluice {

namespace detail {

template <class T>
inline constexpr bool is_awaitable = false;
template <class T, class Executor>
inline constexpr bool is_awaitable<boost::asio::awaitable<T, Executor>> = true;

// The executor of the coroutine that awaits something. Most operations can be awaited on any; this is the most common.
template <class T>
struct ExecutorOf {
    using Type = boost::asio::any_io_executor;
};
template <class T>
    requires requires { typename T::executor_type; }
struct ExecutorOf<T> {
    using Type = typename T::executor_type;
};

// An operation that converts to an awaitable, such as the one that StageSemaphore::acquire() returns.
template <class T>
concept AwaitableOperation =
    requires { typename T::value_type; } && !is_awaitable<T> &&
    std::convertible_to<T, boost::asio::awaitable<typename T::value_type, typename ExecutorOf<T>::Type>>;

// An object that is moved without throwing, so that a value on its way cannot be lost.
template <class T>
concept NothrowMovable = std::is_object_v<T> && std::is_nothrow_move_constructible_v<T>;

}  // namespace detail

/// An `asio::awaitable` of any value and executor.
template <class T>
concept Awaitable = detail::is_awaitable<T>;

/// A callable that with_task_group(), with_timeout(), with_retry() or TaskGroup::spawn() can run: called as an lvalue
/// with these arguments, it returns an Awaitable, or an operation such as the one that StageSemaphore::acquire()
/// returns.
///
/// Everything that the awaitable refers to must live as long as the awaitable. `std::bind_front` does not ensure that
/// for an argument that it converts.
template <class Function, class... Args>
concept AwaitableFunction =
    std::invocable<Function&, Args...> && (Awaitable<std::invoke_result_t<Function&, Args...>> ||
                                           detail::AwaitableOperation<std::invoke_result_t<Function&, Args...>>);

}  // namespace sluice
