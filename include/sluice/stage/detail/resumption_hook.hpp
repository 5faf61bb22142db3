// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/asio/awaitable.hpp>

#include <coroutine>

namespace sluice::detail {

// Stands in for the coroutine of one of Asio's frames while that awaits something: when the frame is resumed, a
// function is called instead of the coroutine.
//
// It begins as a coroutine's frame does with g++ and with clang, with the functions that resume and destroy it, so that
// a coroutine_handle can refer to it. It may be destroyed before the coroutine, whose frame it then leaves as it was.
class ResumptionHook {
public:
    ResumptionHook() = default;
    ~ResumptionHook() {
        if (frame_) {
            restore_(*this);
        }
    }

    ResumptionHook(const ResumptionHook&) = delete;
    ResumptionHook& operator=(const ResumptionHook&) = delete;

    // When `frame` is resumed, calls `self.template resumed<T>()`, which begins by detaching this.
    template <class T, class Executor, class Self>
    void attach(boost::asio::detail::awaitable_frame<T, Executor>& frame, Self& self) noexcept {
        frame_ = &frame;
        self_ = &self;
        resume_ = [](ResumptionHook* hook) { static_cast<Self*>(hook->self_)->template resumed<T>(); };
        destroy_ = [](ResumptionHook* hook) { hook->template detach<T, Executor>().destroy(); };
        restore_ = [](ResumptionHook& hook) { hook.template detach<T, Executor>(); };
        resumed_by(frame) = std::coroutine_handle<>::from_address(this);
    }

    // The frame is resumed by its own coroutine again, which is returned.
    template <class T, class Executor>
    std::coroutine_handle<> detach() noexcept {
        auto& frame = this->template frame<T, Executor>();
        frame_ = nullptr;
        return resumed_by(frame) = coroutine_of(frame);
    }

    template <class T, class Executor>
    boost::asio::detail::awaitable_frame<T, Executor>& frame() noexcept {
        return *static_cast<boost::asio::detail::awaitable_frame<T, Executor>*>(frame_);
    }

private:
    template <class Frame>
    static std::coroutine_handle<> coroutine_of(Frame& frame) noexcept {
        return std::coroutine_handle<Frame>::from_promise(frame);
    }

    template <class T, class Executor>
    static std::coroutine_handle<>& resumed_by(boost::asio::detail::awaitable_frame<T, Executor>& frame) noexcept {
        struct Access : boost::asio::detail::awaitable_frame_base<Executor> {
            static std::coroutine_handle<>& of(boost::asio::detail::awaitable_frame_base<Executor>& other) noexcept {
                return other.*(&Access::coro_);
            }
        };
        return Access::of(frame);
    }

    void (*resume_)(ResumptionHook*) = nullptr;
    void (*destroy_)(ResumptionHook*) = nullptr;
    void (*restore_)(ResumptionHook&) = nullptr;
    void* frame_ = nullptr;  // while it is attached
    void* self_ = nullptr;
};

}  // namespace sluice::detail
