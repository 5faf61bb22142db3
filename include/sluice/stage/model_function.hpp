// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/rate.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/callee.hpp>

#include <concepts>
#include <type_traits>

namespace sluice {

/// A callable that a Stage can run: called as an lvalue with these arguments, it returns an `asio::awaitable` of a
/// value. The value must be an object, so neither `void` nor a reference, that is moved without throwing.
///
/// A Stage says which arguments it passes; an InferencePipeline passes the text as a `const std::string&`, and intent
/// and entities as const lvalues.
template <class Function, class... Args>
concept ModelFunction = AwaitableFunction<Function, Args...> &&
                        detail::NothrowMovable<typename std::invoke_result_t<Function&, Args...>::value_type>;

namespace detail {

// The value of a model function; AnyType if the callable is none.
template <class Function, class... Args>
using model_value_t = std::conditional_t<ModelFunction<Function, Args...>, awaited_value_t<Function, Args...>, AnyType>;

// A model function with a member `cost(args...)`, which estimates what a call takes of the rates of its endpoint.
template <class Function, class... Args>
concept EstimatesCost = requires(Function& function, Args... args) {
    { callee(function).cost(args...) } -> std::same_as<Cost>;
};

}  // namespace detail

}  // namespace sluice
