// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <functional>
#include <stdexcept>
#include <string>
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

// Returns `executor`, or throws std::invalid_argument if it is empty.
template <class Executor>
Executor require_executor(const std::string& owner, Executor executor) {
    if constexpr (std::is_constructible_v<bool, const Executor&>) {
        if (!static_cast<bool>(executor)) {
            throw std::invalid_argument(owner + ": the executor must not be empty");
        }
    }
    return executor;
}

}  // namespace sluice::detail
