// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <functional>
#include <type_traits>

namespace sluice::detail {

// Whether a callable is empty. Those of a type that cannot be empty are not.
template <class T>
bool is_empty(const T& object) {
    if constexpr (std::is_pointer_v<T> || std::is_member_pointer_v<T>) {
        return object == nullptr;
    } else if constexpr (requires { object.operator bool(); }) {
        return !object;
    } else {
        return false;
    }
}
template <class T>
bool is_empty(const std::reference_wrapper<T>& object) {
    if constexpr (std::is_function_v<T>) {
        return false;
    } else {
        return is_empty(object.get());
    }
}

// The same for an executor.
template <class Executor>
bool is_empty_executor(const Executor& executor) {
    if constexpr (std::is_constructible_v<bool, const Executor&>) {
        return !static_cast<bool>(executor);
    } else {
        return false;
    }
}

}  // namespace sluice::detail
