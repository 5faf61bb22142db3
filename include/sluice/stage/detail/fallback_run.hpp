// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/fallback_coroutine.hpp>
#include <sluice/sync/detail/bitwise_copy.hpp>
#include <sluice/sync/detail/frame_pool.hpp>

#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/version.hpp>

#include <concepts>
#include <coroutine>
#include <exception>
#include <tuple>
#include <type_traits>
#include <utility>

// See stage_run.hpp.
#if BOOST_VERSION < 108300 || BOOST_VERSION > 109200 || defined(SLUICE_PORTABLE_AWAIT)

namespace sluice::detail {

template <class FallbackType, class Target, class... Args>
auto run_fallback(Target target, Args... args) {
    return FallbackCoroutine<FallbackType, Target, Args...>::run(Pooled(), std::move(target),
                                                                 static_cast<Args&&>(args)...);
}

}  // namespace sluice::detail

#else

namespace sluice::detail {

// A step through a fallback, awaited once. It makes its coroutine when it is awaited, and none if the field is filled;
// and it finds out when g++ 12 has copied it bitwise, which two coroutines would not survive.
template <class FallbackType, class Target, class... Args>
class [[nodiscard]] FallbackRun {
    using Coroutine = FallbackCoroutine<FallbackType, Target, Args...>;

public:
    using value_type = typename Coroutine::Returned;
    using executor_type = typename Coroutine::Executor;
    using Awaitable = boost::asio::awaitable<value_type, executor_type>;

    FallbackRun(Target target, Args... args) : target_(std::move(target)), args_(static_cast<Args&&>(args)...) {}

    // Before it is awaited.
    FallbackRun(FallbackRun&& other) noexcept(std::is_nothrow_move_constructible_v<Target> &&
                                              std::is_nothrow_move_constructible_v<std::tuple<Args...>>)
        : target_(std::move(other.target_)), args_(std::move(other.args_)) {}

    operator Awaitable() && { return coroutine(); }
    Awaitable operator()() { return coroutine(); }

    // Never started in this way: only declares to Asio that this is an operation.
    template <class Token>
        requires std::same_as<Token, boost::asio::detail::async_operation_probe> ||
                 std::same_as<Token, boost::asio::detail::completion_signature_probe>
    auto operator()(Token token) {
        return boost::asio::async_initiate<Token, void(std::exception_ptr)>([](auto&&...) {}, token);
    }

private:
    template <class, class, class>
    friend class boost::asio::detail::awaitable_async_op;

    // Returns whether there is nothing to be awaited.
    bool begin() {
        if (address_.is_bitwise_copy()) [[unlikely]] {
            ConstructedAt::terminate(
                "sluice: a bitwise copy of a step, such as g++ 12 makes of `co_await (short ? run.step(...) : "
                "run.step(...))`; write the two co_awaits one by one");
        }
        if (target_.is_filled()) {
            target_.begins();
            return true;
        }
        coroutine_ = coroutine();
        return false;
    }

    value_type end() { return coroutine_.valid() ? coroutine_.await_resume() : target_.skipped(); }

    Awaitable coroutine() {
        return std::apply(
            [&](auto&... args) { return Coroutine::run(Pooled(), std::move(target_), static_cast<Args&&>(args)...); },
            args_);
    }

    ConstructedAt address_;
    Target target_;
    std::tuple<Args...> args_;
    Awaitable coroutine_;
};

template <class FallbackType, class Target, class... Args>
auto run_fallback(Target target, Args... args) {
    return FallbackRun<FallbackType, Target, Args...>(std::move(target), static_cast<Args&&>(args)...);
}

}  // namespace sluice::detail

// What co_await makes of it.
template <class Signature, class FallbackType, class Target, class... Args, class Executor>
class boost::asio::detail::awaitable_async_op<Signature, sluice::detail::FallbackRun<FallbackType, Target, Args...>,
                                              Executor> {
public:
    using Run = sluice::detail::FallbackRun<FallbackType, Target, Args...>;

    // Handler tracking adds an argument.
    awaitable_async_op(Run&& run, awaitable_frame_base<Executor>*, const auto&...) noexcept : run_(run) {}

    bool await_ready() { return run_.begin(); }

    // `Promise` is Asio's, or derived from it.
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> awaiting) {
        suspend(awaiting.promise());
    }

    auto await_resume() { return run_.end(); }

private:
    template <class U>
    void suspend(awaitable_frame<U, Executor>& awaiting) {
        run_.coroutine_.await_suspend(std::coroutine_handle<awaitable_frame<U, Executor>>::from_promise(awaiting));
    }

    Run& run_;
};

#endif
