// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/awaitable.hpp>

#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

namespace sluice::detail {

template <class T>
inline constexpr bool is_awaitable = false;
template <class T, class Executor>
inline constexpr bool is_awaitable<boost::asio::awaitable<T, Executor>> = true;

template <class T>
concept Awaitable = is_awaitable<T>;

// What came out of a callable's awaitable: its value and the executor of its coroutine.
template <class Function, class... Args>
using awaited_t = typename std::invoke_result_t<Function, Args...>::value_type;
template <class Function, class... Args>
using awaiting_executor_t = typename std::invoke_result_t<Function, Args...>::executor_type;

// What holds a T that may have yet to come, if T is not void.
template <class T>
using Awaited = std::optional<std::conditional_t<std::is_void_v<T>, std::monostate, T>>;

// Coroutines over types of the user's are static members of class templates and no free functions: g++ 12 warns of the
// linkage of those, when the types have none.
template <class T, class Executor>
struct Store {
    static boost::asio::awaitable<void, Executor> run(boost::asio::awaitable<T, Executor> source, Awaited<T>& target) {
        if constexpr (std::is_void_v<T>) {
            co_await std::move(source);
            target.emplace();
        } else {
            target.emplace(co_await std::move(source));
        }
    }
};

// A callable that gives the awaitable it was given.
template <Awaitable Coroutine>
struct Given {
    Coroutine coroutine;

    Coroutine operator()() { return std::move(coroutine); }
};

}  // namespace sluice::detail
