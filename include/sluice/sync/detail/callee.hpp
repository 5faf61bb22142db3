// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/frame_pool.hpp>

#include <functional>
#include <type_traits>

namespace sluice::detail {

template <class T>
inline constexpr bool is_reference_wrapper = false;
template <class T>
inline constexpr bool is_reference_wrapper<std::reference_wrapper<T>> = true;

// Returns the object on which a pointer to a member is called: `object` itself, or what it refers or points to, as in
// std::invoke.
template <class Class, class Member, class Object>
auto& object_of(Member Class::*, Object& object) {
    if constexpr (std::is_base_of_v<Class, std::remove_cv_t<Object>>) {
        return object;
    } else if constexpr (is_reference_wrapper<std::remove_cv_t<Object>>) {
        return object.get();
    } else {
        return *object;
    }
}

// A member function as a callable. It has a frame of its own for the temporaries to which arguments are converted.
template <class Member>
struct MemberCallee {
    Member member;

    template <class Object, class... Args>
    auto operator()(Object& object, Args&... args) const {
        return call<std::invoke_result_t<Member, Object&, Args&...>>(Pooled(), member, object, args...);
    }

private:
    template <class Coroutine, class Object, class... Args>
    static Coroutine call(Pooled, Member member, Object& object, Args&... args) {
        co_return co_await (object_of(member, object).*member)(args...);
    }
};

// A coroutine starts after its function has returned. By then a temporary that std::invoke converted an argument to has
// been destroyed. So a user's callable is called as `co_await callee(function)(args...)`: the temporary then belongs to
// the full expression and lives in the frame of the awaiting coroutine.
template <class Function>
decltype(auto) callee(Function& function) noexcept {
    if constexpr (is_reference_wrapper<std::remove_cv_t<Function>>) {
        return callee(function.get());
    } else if constexpr (std::is_member_pointer_v<Function>) {
        return MemberCallee<std::remove_cv_t<Function>>{function};
    } else {
        return (function);
    }
}

}  // namespace sluice::detail
