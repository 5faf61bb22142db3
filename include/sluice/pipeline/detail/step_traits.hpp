// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/argument.hpp>
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
    static constexpr bool is_callable = false;
    static constexpr bool is_model = false;
    using Value = AnyType;
    using Executor = boost::asio::any_io_executor;
};
template <class Record, class Function, class T, class... Args>
struct StepTraits<Record, Stage<Function, T>, Args...> {
    template <class Arg>
    using CallArgument = call_argument_t<typename StepArgument<Record, Arg>::Stored>;

    static constexpr bool is_stage = true;
    static constexpr bool is_callable = CallableModel<Function, CallArgument<Args>...>;
    static constexpr bool is_model = ModelFunction<Function, CallArgument<Args>...>;
    using Value = model_value_t<Function, CallArgument<Args>...>;
    using Executor = model_executor_t<Function, CallArgument<Args>...>;
};

}  // namespace sluice::detail
