// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/requirements.hpp>

#include <boost/asio/awaitable.hpp>

#include <concepts>
#include <type_traits>

namespace sluice {

namespace detail {

template <class T>
inline constexpr bool is_awaitable = false;
template <class T, class Executor>
inline constexpr bool is_awaitable<boost::asio::awaitable<T, Executor>> = true;

// What is not an awaitable, but turns into one: StageSemaphore::acquire(), say.
template <class T>
concept AwaitableOperation = requires { typename T::value_type; } && !is_awaitable<T> &&
                             std::convertible_to<T, boost::asio::awaitable<typename T::value_type>>;

}  // namespace detail

/// An `asio::awaitable` of anything, on any executor.
template <class T>
concept Awaitable = detail::is_awaitable<T>;

/// What with_task_group(), with_timeout() and TaskGroup::spawn() call: a callable that returns an Awaitable, or an
/// operation such as StageSemaphore::acquire() returns, when it is called, as an lvalue, with these arguments. What it
/// refers to must live as long as the awaitable: a `std::bind_front` that converts its argument inside does not see to
/// that.
template <class Function, class... Args>
concept AwaitableFunction =
    std::invocable<Function&, Args...> && (Awaitable<std::invoke_result_t<Function&, Args...>> ||
                                           detail::AwaitableOperation<std::invoke_result_t<Function&, Args...>>);

/// What a model function may give: a value, so neither `void` nor a reference, that is moved without throwing, for a
/// result on its way must not get lost.
template <class T>
concept ModelValue = std::is_object_v<T> && std::is_nothrow_move_constructible_v<T>;

/// What a Stage runs: a callable that gives an `asio::awaitable` of a ModelValue when it is called, as an lvalue, with
/// these arguments. An InferencePipeline gives it the text as a `const std::string&`, and intent and entities as const
/// lvalues.
template <class Function, class... Args>
concept ModelFunction =
    AwaitableFunction<Function, Args...> && ModelValue<typename std::invoke_result_t<Function&, Args...>::value_type>;

}  // namespace sluice
