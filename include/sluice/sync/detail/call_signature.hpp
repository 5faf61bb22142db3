// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

namespace sluice::detail {

// The signature of a function pointer, or of a call operator, as the type Returned(Args...); void(...) if it has other
// qualifiers than these.
template <class Member>
struct CallSignature {
    using Type = void(...);
};
template <class Class, class Returned, class... Args>
struct CallSignature<Returned (Class::*)(Args...)> {
    using Type = Returned(Args...);
};
template <class Class, class Returned, class... Args>
struct CallSignature<Returned (Class::*)(Args...) const> {
    using Type = Returned(Args...);
};
template <class Class, class Returned, class... Args>
struct CallSignature<Returned (Class::*)(Args...) noexcept> {
    using Type = Returned(Args...);
};
template <class Class, class Returned, class... Args>
struct CallSignature<Returned (Class::*)(Args...) const noexcept> {
    using Type = Returned(Args...);
};
template <class Returned, class... Args>
struct CallSignature<Returned (*)(Args...)> {
    using Type = Returned(Args...);
};
template <class Returned, class... Args>
struct CallSignature<Returned (*)(Args...) noexcept> {
    using Type = Returned(Args...);
};

// The signature of a callable that has only one, and otherwise void(...).
template <class Function>
struct SignatureOf : CallSignature<Function> {};
template <class Function>
    requires requires { &Function::operator(); }
struct SignatureOf<Function> : CallSignature<decltype(&Function::operator())> {};

template <class Function>
using signature_of_t = typename SignatureOf<Function>::Type;

}  // namespace sluice::detail
