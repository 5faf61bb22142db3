// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/argument.hpp>
#include <sluice/stage/detail/fallback_traits.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/model_function.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>

#include <boost/asio/any_io_executor.hpp>

#include <concepts>
#include <optional>
#include <type_traits>

namespace sluice::detail {

// Whether a pointer to a member points to a field of a record, which is an optional.
template <class Record, class Member>
inline constexpr bool is_field_of = false;
template <class Record, class Value, class Class>
inline constexpr bool is_field_of<Record, std::optional<Value> Class::*> = std::derived_from<Record, Class>;

// Whether a value fits a field. If that is no optional, or the model returns no value, another message says so.
template <class Value, class Field>
inline constexpr bool fits_field = true;
template <class Value, class FieldValue>
    requires(!std::same_as<Value, AnyType>)
inline constexpr bool fits_field<Value, std::optional<FieldValue>> = std::convertible_to<Value, FieldValue>;

// The value of a field; AnyType if it is no optional.
template <class Field>
struct FieldValue {
    using Type = AnyType;
};
template <class Value>
struct FieldValue<std::optional<Value>> {
    using Type = Value;
};
template <class Field>
using field_value_t = typename FieldValue<Field>::Type;

// The form in which a step stores an argument until its attempts have ended: a field of the record as such, an lvalue
// as a reference, and an rvalue as an object.
template <class Record, class Arg>
struct StepArgument {
    using Stored = Arg;
    static Arg&& store(Record&, std::remove_reference_t<Arg>& arg) noexcept { return static_cast<Arg&&>(arg); }
};
template <class Record, class Arg>
    requires is_field_of<Record, std::remove_cvref_t<Arg>>
struct StepArgument<Record, Arg> {
    using Stored = FieldArgument<
        typename std::remove_cvref_t<std::invoke_result_t<std::remove_cvref_t<Arg>, Record&>>::value_type>;
    static Stored store(Record& record, std::remove_cvref_t<Arg> field) noexcept { return {record.*field}; }
};

// A step: what its stage makes of the arguments, and what is wrong with it.
template <class Record, class StageType, class... Args>
struct StepTraits {
    static constexpr bool is_stage = false;
    static constexpr bool is_fallback = false;
    static constexpr bool is_callable = false;
    static constexpr bool is_model = false;
    template <class Field>
    static constexpr bool fits = true;
    template <class Field>
    static constexpr bool accepts = true;
    using Executor = boost::asio::any_io_executor;
};
template <class Record, class Function, class T, class... Args>
struct StepTraits<Record, Stage<Function, T>, Args...> {
    template <class Arg>
    using CallArgument = call_argument_t<typename StepArgument<Record, Arg>::Stored>;

    static constexpr bool is_stage = true;
    static constexpr bool is_fallback = false;
    static constexpr bool is_callable = CallableModel<Function, CallArgument<Args>...>;
    static constexpr bool is_model = ModelFunction<Function, CallArgument<Args>...>;
    template <class Field>
    static constexpr bool fits = fits_field<model_value_t<Function, CallArgument<Args>...>, Field>;
    template <class Field>
    static constexpr bool accepts = true;
    using Executor = model_executor_t<Function, CallArgument<Args>...>;
};
template <class Record, class Accept, class... Members, class... Args>
struct StepTraits<Record, Fallback<Accept, Members...>, Args...> {
    using Traits =
        FallbackTraits<TypeList<call_argument_t<typename StepArgument<Record, Args>::Stored>...>, Members...>;

    static constexpr bool is_stage = true;
    static constexpr bool is_fallback = true;
    static constexpr bool is_callable = Traits::is_callable;
    static constexpr bool is_model = Traits::is_model;
    template <class Field>
    static constexpr bool fits = !is_model || Traits::template fit<field_value_t<Field>>;
    template <class Field>
    static constexpr bool accepts = detail::accepts<Accept, field_value_t<Field>>;
    using Executor = std::conditional_t<Traits::same_executor, typename Traits::Executor, void>;
};

}  // namespace sluice::detail
