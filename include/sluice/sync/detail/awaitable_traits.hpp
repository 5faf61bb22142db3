// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/awaitable_function.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <optional>
#include <type_traits>
#include <variant>

namespace sluice::detail {

// Stands for the value of a callable that returns no awaitable. A static_assert reports that callable; this converts to
// any type, so that the compiler has little to add.
struct AnyType {
    template <class T>
    operator T&() const;
};

template <class Function, class... Args>
struct CallTraits {
    using Value = AnyType;
    using Executor = boost::asio::any_io_executor;
};
template <class Function, class... Args>
    requires AwaitableFunction<Function, Args...>
struct CallTraits<Function, Args...> {
    using Returned = std::invoke_result_t<Function&, Args...>;
    using Value = typename Returned::value_type;
    using Executor = typename ExecutorOf<Returned>::Type;
};

// The value of the awaitable that a callable returns, and the executor of its coroutine.
template <class Function, class... Args>
using awaited_value_t = typename CallTraits<Function, Args...>::Value;
template <class Function, class... Args>
using awaitable_executor_t = typename CallTraits<Function, Args...>::Executor;

// Holds a T that may not have been produced yet. T may be void.
template <class T>
using OptionalValue = std::optional<std::conditional_t<std::is_void_v<T>, std::monostate, T>>;

}  // namespace sluice::detail
