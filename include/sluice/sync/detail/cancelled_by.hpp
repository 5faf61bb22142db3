// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/canceller.hpp>

#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/version.hpp>

#include <concepts>
#include <coroutine>
#include <exception>
#include <type_traits>
#include <utility>

// The frames of coroutines are reached by way of Asio's insides, which are the same in these versions. For others there
// is a slower way, which the tests choose for a whole program by SLUICE_PORTABLE_AWAIT.
#if BOOST_VERSION < 108300 || BOOST_VERSION > 109200 || defined(SLUICE_PORTABLE_AWAIT)
#include <sluice/sync/detail/cancelled_by_portable.hpp>
#else

namespace sluice::detail {

// What a coroutine, with everything that it awaits, knows of its cancellation.
struct CancellationSettings {
    boost::asio::cancellation_state state;
    boost::asio::cancellation_slot parent;  // of the state, and of those that reset_cancellation_state() makes
    bool throw_if_cancelled = true;
};

// Names the specialisation of a template that Asio's coroutines befriend.
struct CancellationAccess;

// What cancelled_by() returns.
template <class T, class Executor>
class [[nodiscard]] CancelledBy {
public:
    CancelledBy(Canceller& canceller, OptionalValue<T>& result, boost::asio::awaitable<T, Executor> body) noexcept
        : canceller_(canceller), result_(result), body_(std::move(body)) {}
    ~CancelledBy() { canceller_.slot().clear(); }

    CancelledBy(const CancelledBy&) = delete;  // the relay's handler holds its address
    CancelledBy& operator=(const CancelledBy&) = delete;

    // Never started in this way: only declares to Asio what kind of operation this is.
    template <class Token>
        requires std::same_as<Token, boost::asio::detail::async_operation_probe> ||
                 std::same_as<Token, boost::asio::detail::completion_signature_probe>
    auto operator()(Token token) {
        return boost::asio::async_initiate<Token, void(std::exception_ptr)>([](auto&&...) {}, token);
    }

private:
    template <class, class, class>
    friend class boost::asio::detail::awaitable_async_op;

    // `Access` reaches the settings of the coroutine that awaits this.
    template <class Access, class U>
    void begin(Access access, boost::asio::detail::awaitable_frame<U, Executor>& awaiting) {
        CancellationSettings inside;
        inside.parent = canceller_.slot();
        inside.state = boost::asio::cancellation_state(inside.parent, boost::asio::enable_total_cancellation());
        relay_.connect(access.slot(), canceller_);
        outside_ = access.exchange(inside);
        body_.await_suspend(
            std::coroutine_handle<boost::asio::detail::awaitable_frame<U, Executor>>::from_promise(awaiting));
    }

    template <class Access>
    void end(Access access) {
        if (relay_.signal_gone()) {  // nothing cancels the coroutine any more
            outside_.state = {};
            outside_.parent = {};
        }
        relay_.disconnect();
        access.exchange(outside_);
        if constexpr (std::is_void_v<T>) {
            body_.await_resume();
            result_.emplace();
        } else {
            result_.emplace(body_.await_resume());
        }
    }

    Canceller& canceller_;
    OptionalValue<T>& result_;
    boost::asio::awaitable<T, Executor> body_;
    CancellationSettings outside_;
    CancellationRelay relay_;  // destroyed before the body
};

// When awaited, runs `body` in the awaiting coroutine, as `result.emplace(co_await std::move(body))` would, but lets
// only `canceller` cancel it.
//
// The body begins with a fresh cancellation state: it sees no earlier cancellation and no filter, and whatever it sets
// is undone at its end. A cancellation that reaches the awaiting coroutine meanwhile cancels the canceller from
// outside, and what it leaves in the coroutine's own cancellation state is seen again afterwards.
//
// `canceller`, one for each call, and `result` must live until the end. If the signal of the coroutine is destroyed
// meanwhile, it goes on without one. Nothing is allocated but the two handlers in the slots.
template <class T, class Executor>
auto cancelled_by(Canceller& canceller, OptionalValue<T>& result, boost::asio::awaitable<T, Executor> body) {
    return CancelledBy<T, Executor>(canceller, result, std::move(body));
}

}  // namespace sluice::detail

namespace boost::asio::detail {

template <class Executor>
class awaitable_async_op_handler<sluice::detail::CancellationAccess, Executor> {
public:
    explicit awaitable_async_op_handler(awaitable_frame_base<Executor>& running) noexcept
        : entry_(*Frame::thread_of(running).entry_point()) {}

    cancellation_slot slot() const noexcept { return entry_.cancellation_state_.slot(); }

    sluice::detail::CancellationSettings exchange(const sluice::detail::CancellationSettings& settings) const noexcept {
        return {std::exchange(entry_.cancellation_state_, settings.state),
                std::exchange(entry_.parent_cancellation_slot_, settings.parent),
                std::exchange(entry_.throw_if_cancelled_, settings.throw_if_cancelled)};
    }

private:
    struct Frame : awaitable_frame_base<Executor> {
        // Not by detach_thread(), which co_spawn() would take for a suspension.
        static awaitable_thread<Executor>& thread_of(awaitable_frame_base<Executor>& running) noexcept {
            return *(running.*(&Frame::attached_thread_));
        }
    };

    awaitable_frame<awaitable_thread_entry_point, Executor>& entry_;
};

template <class Signature, class T, class Executor>
class awaitable_async_op<Signature, sluice::detail::CancelledBy<T, Executor>, Executor> {
public:
    // Handler tracking adds an argument.
    awaitable_async_op(sluice::detail::CancelledBy<T, Executor>&& awaited, awaitable_frame_base<Executor>* frame,
                       const auto&...) noexcept
        : operation_(awaited), frame_(*frame) {}

    bool await_ready() const noexcept { return false; }

    // `Promise` is Asio's, or derived from it.
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> awaiting) {
        operation_.begin(Access(frame_), awaiting.promise());
    }

    void await_resume() { operation_.end(Access(frame_)); }

private:
    using Access = awaitable_async_op_handler<sluice::detail::CancellationAccess, Executor>;

    sluice::detail::CancelledBy<T, Executor>& operation_;
    awaitable_frame_base<Executor>& frame_;
};

}  // namespace boost::asio::detail

#endif
