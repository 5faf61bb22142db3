// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/call_signature.hpp>

#include <optional>
#include <type_traits>

namespace sluice::detail {

// An argument of a stage run that is the value of an optional, read when an attempt begins.
template <class Value>
struct FieldArgument {
    const std::optional<Value>& field;
};

template <class Arg>
inline constexpr bool is_field_argument = false;
template <class Value>
inline constexpr bool is_field_argument<FieldArgument<Value>> = true;

// The type of the lvalue that the model function is called with for an argument that a stage run stores as an `Arg`: a
// reference as it is, and an object as const, since a retry must see it unchanged.
template <class Arg>
struct CallArgument {
    using Type = const Arg&;
};
template <class Arg>
struct CallArgument<Arg&> {
    using Type = Arg&;
};
template <class Value>
struct CallArgument<FieldArgument<Value>> {
    using Type = const Value&;
};
template <class Arg>
using call_argument_t = typename CallArgument<Arg>::Type;

// Returns that lvalue. `Arg` is not deduced.
template <class Arg>
call_argument_t<Arg> read_argument(std::remove_reference_t<Arg>& arg) noexcept {
    if constexpr (is_field_argument<Arg>) {
        return *arg.field;
    } else {
        return arg;  // NOLINT(bugprone-return-const-ref-from-parameter): never a temporary
    }
}

// Whether there is none, since the optional is empty.
template <class Arg>
bool is_missing(std::remove_reference_t<Arg>& arg) noexcept {
    if constexpr (is_field_argument<Arg>) {
        return !arg.field;
    } else {
        return false;
    }
}

// Whether a call makes no object that must outlive it: each parameter is a reference that its lvalue binds to, or a
// plain value. A coroutine may refer to another parameter, and to the temporary that an argument was converted to. Only
// a signature can tell.
template <class Signature, class... Args>
inline constexpr bool binds_to = false;
template <class Returned, class... Parameters, class... Args>
    requires(sizeof...(Parameters) == sizeof...(Args))
inline constexpr bool binds_to<Returned(Parameters...), Args...> =
    (... && (std::is_reference_v<Parameters>
                 ? std::is_convertible_v<std::remove_reference_t<Args>*, std::remove_reference_t<Parameters>*>
                 : std::is_trivially_copyable_v<Parameters>));

}  // namespace sluice::detail
