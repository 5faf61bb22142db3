// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/canceller.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/context_bound.hpp>
#include <sluice/sync/detail/wait_queue.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/intrusive/set.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstdint>
#include <optional>
#include <utility>

namespace sluice::detail {

// What becomes of a pending timer when the last entry has ended. It must not keep io_context::run() from returning.
enum class WhenIdle {
    cancel,        // it is cancelled at once
    cancel_later,  // only if no other has begun when the handlers that are ready have run: a busy timer is cheaper
};

// What is to end at a time, if it has not ended before: kept in the order of these times, with one timer for all.
//
// Used like this, by coroutines on one thread or strand:
//
//     Timeouts<T>::Call call(*timeouts, executor, due_after<T>(now, timeout));
//     co_await cancelled_by(call, result, body());  // throws if it was cancelled: see throw_timed_out()
//     if (call.expired()) ...                       // it returned its value too late
//
// At a tie the function wins: what is ready when the time is up runs before the call is cancelled. Those that are due
// at the same time expire in the order in which they began.
//
// O(log n) to begin and to end, among n.
template <class T>
class Timeouts final : public ContextBound {
    using Time = typename T::time_point;
    using Hook = boost::intrusive::set_base_hook<boost::intrusive::link_mode<boost::intrusive::auto_unlink>>;

public:
    // Lasts from its construction to its destruction. Allocates nothing, and keeps its Timeouts alive.
    class Entry : public Hook {
    public:
        Entry(const Entry&) = delete;
        Entry& operator=(const Entry&) = delete;

        // Whether the time was up before it ended.
        bool expired() const noexcept { return expired_; }

    protected:
        // `executor` is that of the running coroutine.
        template <class Executor>
        Entry(Timeouts& timeouts, const Executor& executor, Time due) : timeouts_(&timeouts), due_(due) {
            timeouts.add(*this, executor);
        }
        ~Entry() {
            Hook::unlink();
            timeouts_->removed();
        }

        bool expired_ = false;

    private:
        friend Timeouts;

        // The time is up. May destroy this, and begin and end others.
        virtual void expire() noexcept = 0;

        friend bool operator<(const Entry& a, const Entry& b) noexcept { return a.due_ < b.due_; }

        boost::intrusive_ptr<Timeouts> timeouts_;
        const Time due_;
    };

    // A coroutine that is cancelled when its time is up.
    class Call final : public Entry, public Canceller {
    public:
        template <class Executor>
        Call(Timeouts& timeouts, const Executor& executor, Time due) : Entry(timeouts, executor, due) {}

    private:
        void expire() noexcept override {
            if (cancellable()) {
                this->expired_ = true;
                cancel();
            }
        }
    };

    // The same for a wait in a queue, for as long as `waiter` has not resumed.
    class Wait final : public Entry {
    public:
        template <class Executor>
        Wait(Timeouts& timeouts, const Executor& executor, Time due, Waiter& waiter)
            : Entry(timeouts, executor, due), waiter_(waiter) {}

    private:
        void expire() noexcept override {
            this->expired_ = true;
            waiter_.queue->cancel(waiter_);
        }

        Waiter& waiter_;
    };

    explicit Timeouts(WhenIdle when_idle) : when_idle_(when_idle) {}

private:
    using Duration = typename T::duration;

    using Step = void (Timeouts::*)();

    struct TimerOf {
        template <class Executor>
        explicit TimerOf(Executor coroutine_executor)
            : executor(std::move(coroutine_executor)), timer(executor), post(&Timeouts::post<Executor>) {}
        TimerOf(const TimerOf& other) : executor(other.executor), timer(executor), post(other.post) {}

        typename T::executor_type executor;
        T timer;
        void (*post)(Timeouts&, Step);
    };

    template <class Executor>
    void add(Entry& entry, const Executor& executor) {
        check_clock<T>(executor);
        if (context_gone()) {  // or none yet
            bind_to(executor);
        }
        if (!timer()) {
            timer().emplace(executor);
        }
        entries_.insert(entry);
        if (!pending_ || entry.due_ < wakes_at_) {
            try {
                wait_until(entries_.begin()->due_);
            } catch (...) {
                static_cast<Hook&>(entry).unlink();
                throw;
            }
        }
    }

    void removed() noexcept {
        if (!entries_.empty() || !pending_ || !timer() || context_gone()) {
            return;
        }
        if (when_idle_ == WhenIdle::cancel) {
            stop();
        } else if (!std::exchange(check_posted_, true)) {
            timer()->post(*this, &Timeouts::check);
        }
    }

    void check() {
        check_posted_ = false;
        if (entries_.empty()) {
            stop();
        }
    }

    // Through the executor of the coroutine that the timer was made for: type-erased, it would cost twice as much.
    template <class Executor>
    static void post(Timeouts& timeouts, Step step) {
        auto handler = [self = boost::intrusive_ptr<Timeouts>(&timeouts), step] { ((*self).*step)(); };
        const auto& executor = timeouts.timer()->executor;
        if constexpr (requires { executor.template target<Executor>(); }) {
            if (const auto* const typed = executor.template target<Executor>()) {
                boost::asio::post(*typed, std::move(handler));
                return;
            }
        }
        boost::asio::post(executor, std::move(handler));
    }

    // In place of a wait that is pending, which goes on if this throws.
    void wait_until(Time time) {
        std::optional<TimerOf>& next = timers_[pending_ ? 1 - current_ : current_];
        if (pending_) {
            next.emplace(*timer());
        }
        next->timer.expires_after(std::max(left(time), Duration::zero()));
        next->timer.async_wait(boost::asio::deferred)(
            [self = boost::intrusive_ptr<Timeouts>(this), number = waits_ + 1](const auto&...) {
                if (number == self->waits_) {
                    self->on_timer();
                }
            });
        ++waits_;
        if (pending_) {
            timer().reset();
            current_ = 1 - current_;
        }
        wakes_at_ = time;
        pending_ = true;
    }

    std::optional<TimerOf>& timer() noexcept { return timers_[current_]; }

    void stop() noexcept {
        timer().reset();
        ++waits_;
        pending_ = false;
    }

    // The wait has ended: in time, or too early for those that are left.
    void on_timer() {
        pending_ = false;
        if (is_due()) {
            timer()->post(*this, &Timeouts::expire);
            pending_ = true;
        } else {
            wait_for_first();
        }
    }

    // An entry that expires may end itself and others, and begin others, all inside the call.
    void expire() {
        while (is_due()) {
            Entry& entry = *entries_.begin();
            static_cast<Hook&>(entry).unlink();
            entry.expire();
        }
        wait_for_first();
    }

    void wait_for_first() {
        pending_ = false;
        if (!entries_.empty()) {
            wait_until(entries_.begin()->due_);
        }
    }

    bool is_due() { return !entries_.empty() && left(entries_.begin()->due_) <= Duration::zero(); }

    // The time until then, rounded up.
    Duration left(Time time) { return std::chrono::ceil<Duration>(time - now<T>(context())); }

    void on_context_gone() noexcept override {
        timer().reset();
        pending_ = check_posted_ = false;
    }

    const WhenIdle when_idle_;
    boost::intrusive::multiset<Entry, boost::intrusive::constant_time_size<false>> entries_;  // that have not expired
    std::array<std::optional<TimerOf>, 2> timers_;  // the current one for as long as there are entries, at least
    unsigned current_ = 0;
    Time wakes_at_{};          // when the timer expires, if it is pending
    std::uint64_t waits_ = 0;  // the number of the latest
    bool pending_ = false;     // on_timer() or expire() is going to be called
    bool check_posted_ = false;
};

// The time that is `timeout` after `begun`. A timeout of more than a century is one, so that no sum overflows; nothing
// lasts until the end of time.
template <class T>
typename T::time_point due_after(typename T::time_point begun, std::chrono::nanoseconds timeout) {
    using Time = typename T::time_point;
    constexpr std::chrono::nanoseconds century = std::chrono::hours(24 * 36525);
    const auto duration =
        std::chrono::ceil<typename Time::duration>(std::clamp(timeout, std::chrono::nanoseconds::zero(), century));
    return begun > Time::max() - duration ? Time::max() : begun + duration;
}

}  // namespace sluice::detail
