// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/concepts.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

namespace sluice::detail {

// Stands for what a callable would give that gives no awaitable of a value. A static_assert has said so where this
// turns up; it converts to all so that the compiler has little to add.
struct Unknown {
    template <class T>
    operator T&() const;
};

template <class Function, class... Args>
struct CallTraits {
    using Value = Unknown;
    using Executor = boost::asio::any_io_executor;
};
template <class Function, class... Args>
    requires AwaitableFunction<Function, Args...>
struct CallTraits<Function, Args...> {
    using Returned = std::invoke_result_t<Function&, Args...>;

    template <class Operation>
    struct ExecutorOf {  // it fits any, and is awaited in a coroutine of the commonest
        using type = boost::asio::any_io_executor;
    };
    template <Awaitable Coroutine>
    struct ExecutorOf<Coroutine> {
        using type = typename Coroutine::executor_type;
    };

    using Value = typename Returned::value_type;
    using Executor = typename ExecutorOf<Returned>::type;
};

// What comes out of a callable's awaitable: its value and the executor of its coroutine.
template <class Function, class... Args>
using awaited_t = typename CallTraits<Function, Args...>::Value;
template <class Function, class... Args>
using awaiting_executor_t = typename CallTraits<Function, Args...>::Executor;

// The same value of a model function.
template <class Function, class... Args>
using model_value_t = std::conditional_t<ModelFunction<Function, Args...>, awaited_t<Function, Args...>, Unknown>;

// What holds a T that may have yet to come, if T is not void.
template <class T>
using Awaited = std::optional<std::conditional_t<std::is_void_v<T>, std::monostate, T>>;

// A callable that gives the awaitable it was given.
template <Awaitable Coroutine>
struct Given {
    Coroutine coroutine;

    Coroutine operator()() { return std::move(coroutine); }
};

}  // namespace sluice::detail
