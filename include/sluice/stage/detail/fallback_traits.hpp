// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/model_function.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/any_io_executor.hpp>

#include <concepts>
#include <tuple>
#include <type_traits>

namespace sluice {

template <class Function, Timer T>
class Stage;
template <class Accept, class... Members>
class Fallback;

namespace detail {

// The predicate of a fallback that has none.
struct AcceptAll {};

// Whether a fallback can ask its predicate about a value. If there is no value, another message says so.
template <class Accept, class Value>
inline constexpr bool accepts = std::predicate<const Accept&, const Value&>;
template <class Value>
inline constexpr bool accepts<AcceptAll, Value> = true;
template <class Accept>
inline constexpr bool accepts<Accept, AnyType> = true;
template <>
inline constexpr bool accepts<AcceptAll, AnyType> = true;

template <class>
inline constexpr bool is_stage = false;
template <class Function, class T>
inline constexpr bool is_stage<Stage<Function, T>> = true;

template <class>
inline constexpr bool is_fallback = false;
template <class Accept, class... Members>
inline constexpr bool is_fallback<Fallback<Accept, Members...>> = true;

// The timer of all members, or void.
template <class... Members>
struct CommonTimer {
    using Type = void;
};
template <class T, class... Functions>
struct CommonTimer<Stage<Functions, T>...> {
    using Type = T;
};

template <class...>
struct TypeList {};

// What the members make of arguments, which are lvalues of the types in a TypeList; and what is wrong with them.
template <class CallArgs, class... Members>
struct FallbackTraits {
    static constexpr bool is_callable = false;
    static constexpr bool is_model = false;
    static constexpr bool has_value = false;
    static constexpr bool same_executor = false;
    using Value = AnyType;
    using Executor = boost::asio::any_io_executor;
};
template <class T, class... CallArgs, class... Functions>
struct FallbackTraits<TypeList<CallArgs...>, Stage<Functions, T>...> {
private:
    template <class Common, class... Values>
    struct ValueOf {
        using Type = AnyType;
    };
    template <class... Values>
    struct ValueOf<std::void_t<std::common_type_t<Values...>>, Values...> {
        using Type = std::common_type_t<Values...>;
    };

public:
    static constexpr bool is_callable = (CallableModel<Functions, CallArgs...> && ...);
    static constexpr bool is_model = (ModelFunction<Functions, CallArgs...> && ...);
    template <class FieldValue>
    static constexpr bool fit = std::same_as<FieldValue, AnyType> ||
                                (std::convertible_to<model_value_t<Functions, CallArgs...>, FieldValue> && ...);

    using Value = typename ValueOf<void, model_value_t<Functions, CallArgs...>...>::Type;
    static constexpr bool has_value = !std::same_as<Value, AnyType> && NothrowMovable<Value>;

    using Executor = std::tuple_element_t<0, std::tuple<model_executor_t<Functions, CallArgs...>...>>;
    static constexpr bool same_executor = (std::same_as<model_executor_t<Functions, CallArgs...>, Executor> && ...);
};

}  // namespace detail

}  // namespace sluice
