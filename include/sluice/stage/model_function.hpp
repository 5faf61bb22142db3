// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/attempt.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/callee.hpp>

#include <concepts>
#include <type_traits>

namespace sluice {

namespace detail {

// Whether a model function is called with an Attempt&: only if it cannot be called without it, since a generic wrapper
// of another function can be called with anything.
template <class Function, class... Args>
inline constexpr bool takes_attempt =
    !std::invocable<Function&, Args...> && std::invocable<Function&, Args..., Attempt&>;

// Whether it can be called, in one way or the other.
template <class Function, class... Args>
concept CallableModel = std::invocable<Function&, Args...> || std::invocable<Function&, Args..., Attempt&>;

template <class Function, class... Args>
using ModelTraits = std::conditional_t<takes_attempt<Function, Args...>, CallTraits<Function, Args..., Attempt&>,
                                       CallTraits<Function, Args...>>;

}  // namespace detail

/// A callable that a Stage can run: called as an lvalue with these arguments, and with an Attempt& after them if it
/// cannot be called without, it returns an `asio::awaitable` of a value. The value must be an object, so neither `void`
/// nor a reference, that is moved without throwing.
///
/// A Stage says which arguments it passes; an InferencePipeline passes the text as a `const std::string&`, and intent
/// and entities as const lvalues.
template <class Function, class... Args>
concept ModelFunction = (AwaitableFunction<Function, Args...> ||
                         (!std::invocable<Function&, Args...> && AwaitableFunction<Function, Args..., Attempt&>)) &&
                        detail::NothrowMovable<typename detail::ModelTraits<Function, Args...>::Value>;

namespace detail {

// The value of a model function; AnyType if the callable is none.
template <class Function, class... Args>
using model_value_t =
    std::conditional_t<ModelFunction<Function, Args...>, typename ModelTraits<Function, Args...>::Value, AnyType>;
template <class Function, class... Args>
using model_executor_t = typename ModelTraits<Function, Args...>::Executor;

// A model function with a member `cost(args...)`, which estimates what a call takes of the rates of its endpoint.
template <class Function, class... Args>
concept EstimatesCost = requires(Function& function, Args... args) {
    { callee(function).cost(args...) } -> std::same_as<Cost>;
};

}  // namespace detail

}  // namespace sluice
