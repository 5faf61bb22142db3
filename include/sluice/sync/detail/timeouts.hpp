// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/canceller.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/context_bound.hpp>
#include <sluice/sync/detail/intrusive_list.hpp>

#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <algorithm>
#include <chrono>
#include <optional>
#include <utility>

namespace sluice::detail {

// What becomes of a pending timer when the last call has ended. It must not keep io_context::run() from returning.
enum class WhenIdle {
    cancel,        // it is cancelled at once
    cancel_later,  // only if no other call has begun when the handlers that are ready have run: a busy timer is cheaper
};

// The calls that run under one timeout. Since it is the same for all, those that began first are due first, and one
// timer serves them all.
//
// Used like this, by coroutines on one thread or strand:
//
//     Timeouts<T>::Call call(*timeouts, executor);
//     co_await cancelled_by(call, result, body());  // throws if it was cancelled: see throw_timed_out()
//     if (call.expired()) ...                       // it returned its value too late
//
// At a tie the function wins: what is ready when the time is up runs before the call is cancelled.
template <class T>
class Timeouts final : public ContextBound {
public:
    // One call, from its construction to its destruction. Allocates nothing, and keeps its Timeouts alive.
    class Call : public ListHook, public Canceller {
    public:
        // `executor` is that of the running coroutine, and `begun` the current time.
        template <class Executor>
        Call(Timeouts& timeouts, const Executor& executor, typename T::time_point begun)
            : timeouts_(&timeouts), begun_(begun) {
            timeouts.add(*this, executor);
        }
        template <class Executor>
        Call(Timeouts& timeouts, const Executor& executor) : Call(timeouts, executor, now<T>(executor)) {}
        ~Call() {
            unlink();
            timeouts_->removed();
        }

        // Whether the time was up before the call ended or was cancelled from outside.
        bool expired() const noexcept { return expired_; }

    private:
        friend Timeouts;

        boost::intrusive_ptr<Timeouts> timeouts_;
        typename T::time_point begun_;
        bool expired_ = false;
    };

    Timeouts(std::chrono::nanoseconds timeout, WhenIdle when_idle)
        : timeout_(std::chrono::duration_cast<Duration>(std::max(timeout, std::chrono::nanoseconds::zero()))),
          when_idle_(when_idle) {}

private:
    using Duration = typename T::duration;

    using Step = void (Timeouts::*)();

    struct TimerOf {
        template <class Executor>
        explicit TimerOf(Executor coroutine_executor)
            : executor(std::move(coroutine_executor)), timer(executor), post(&Timeouts::post<Executor>) {}

        typename T::executor_type executor;
        T timer;
        void (*post)(Timeouts&, Step);
    };

    template <class Executor>
    void add(Call& call, const Executor& executor) {
        check_clock<T>(executor);
        if (context_gone()) {  // or none yet
            bind_to(executor);
        }
        if (!timer_) {
            timer_.emplace(executor);
        }
        if (!pending_) {
            wait(timeout_);
        }
        calls_.push_back(call);
    }

    void removed() noexcept {
        if (!calls_.empty() || !pending_ || !timer_ || context_gone()) {
            return;
        }
        if (when_idle_ == WhenIdle::cancel) {
            timer_.reset();
        } else if (!std::exchange(check_posted_, true)) {
            timer_->post(*this, &Timeouts::check);
        }
    }

    void check() {
        check_posted_ = false;
        if (calls_.empty()) {
            timer_.reset();
        }
    }

    // Through the executor of the coroutine that the timer was made for: type-erased, it would cost twice as much.
    template <class Executor>
    static void post(Timeouts& timeouts, Step step) {
        auto handler = [self = boost::intrusive_ptr<Timeouts>(&timeouts), step] { ((*self).*step)(); };
        const auto& executor = timeouts.timer_->executor;
        if constexpr (requires { executor.template target<Executor>(); }) {
            if (const auto* const typed = executor.template target<Executor>()) {
                boost::asio::post(*typed, std::move(handler));
                return;
            }
        }
        boost::asio::post(executor, std::move(handler));
    }

    void wait(Duration duration) {
        timer_->timer.expires_after(duration);
        timer_->timer.async_wait(boost::asio::deferred)(
            [self = boost::intrusive_ptr<Timeouts>(this)](const auto&...) { self->on_timer(); });
        pending_ = true;
    }

    // The wait has ended: in time, too early for the calls that are left, or because the timer was destroyed.
    void on_timer() {
        if (!calls_.empty() && left() <= Duration::zero()) {
            timer_->post(*this, &Timeouts::expire);
        } else {
            wait_for_first();
        }
    }

    // Cancelling a call may end it, end others or start others, all inside the call of cancel().
    void expire() {
        while (!calls_.empty() && left() <= Duration::zero()) {
            Call& call = calls_.front();
            call.unlink();
            if (call.cancellable()) {
                call.expired_ = true;
                call.cancel();
            }
        }
        wait_for_first();
    }

    void wait_for_first() {
        pending_ = false;
        if (!calls_.empty()) {
            wait(left());
        }
    }

    // The time until the first call is due.
    Duration left() {
        const std::chrono::nanoseconds past = now<T>(context()) - calls_.front().begun_;
        return timeout_ - std::chrono::duration_cast<Duration>(past);
    }

    void on_context_gone() noexcept override {
        timer_.reset();
        pending_ = check_posted_ = false;
    }

    const Duration timeout_;
    const WhenIdle when_idle_;
    IntrusiveList<Call> calls_;     // in the order in which they began, without those that have expired
    std::optional<TimerOf> timer_;  // for as long as there are calls, at least
    bool pending_ = false;          // on_timer() or expire() is going to be called
    bool check_posted_ = false;
};

}  // namespace sluice::detail
