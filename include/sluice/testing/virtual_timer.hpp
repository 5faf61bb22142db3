// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/simulated_time.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/query.hpp>
#include <boost/system/error_code.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>

namespace sluice::testing {

class VirtualTimer;

/// The clock of virtual time: it stands still but when a runner moves it. Each execution context has its own.
struct VirtualClock {
    using duration = std::chrono::nanoseconds;
    using rep = duration::rep;
    using period = duration::period;
    using time_point = std::chrono::time_point<VirtualClock, duration>;
    static constexpr bool is_steady = true;
};

/// The virtual time of one execution context, and who waits for it.
///
/// Deterministic: waits end in the order of their expiry, those of the same expiry in the order in which they began.
class VirtualTime final : public sluice::detail::SimulatedTime {
public:
    using time_point = VirtualClock::time_point;

    explicit VirtualTime(boost::asio::execution_context& context) : SimulatedTime(context) {}

    static VirtualTime& of(boost::asio::execution_context& context) {
        return boost::asio::use_service<VirtualTime>(context);
    }

    /// The time; it begins at the clock's epoch.
    time_point now() const noexcept { return now_; }

    /// How many waits are pending.
    std::size_t pending() const noexcept { return waits_.size(); }

    /// Completes the waits that are due.
    void complete_due() {
        while (!waits_.empty() && waits_.begin()->first.first <= now_) {
            complete(waits_.begin(), {});
        }
    }

    /// Moves on to the next expiry and completes the waits that are due then; false if nobody waits.
    bool advance() {
        if (waits_.empty()) {
            return false;
        }
        now_ = std::max(now_, waits_.begin()->first.first);
        complete_due();
        return true;
    }

    /// Moves the time on by `by`. Waits that are due by then end when the context is run.
    ///
    /// @throws std::invalid_argument if `by` is negative, or more than the clock has left.
    void advance_by(VirtualClock::duration by) {
        if (by.count() < 0 || by > time_point::max() - now_) {
            throw std::invalid_argument("VirtualTime: time must go on, and not beyond the clock's end, got " +
                                        std::to_string(by.count()) + " ns");
        }
        now_ += by;
    }

private:
    friend class VirtualTimer;

    using Handler = boost::asio::any_completion_handler<void(boost::system::error_code)>;
    using Position = std::pair<time_point, std::uint64_t>;
    struct Wait {
        Handler handler;
        VirtualTimer* timer;
        boost::asio::cancellation_slot slot;

        // What lies in the slot resets it here.
        void disconnect() noexcept {
            auto connected = std::exchange(slot, {});
            connected.clear();
        }
    };
    using Waits = std::map<Position, Wait>;

    // Lies in the cancellation slot of a wait, and may be destroyed before the wait: with the signal.
    class OnCancel {
    public:
        OnCancel(VirtualTime& time, Position position) noexcept : time_(time), position_(std::move(position)) {}
        ~OnCancel() {
            if (const auto at = time_.waits_.find(position_); at != time_.waits_.end()) {
                at->second.slot = {};
            }
        }

        OnCancel(const OnCancel&) = delete;
        OnCancel& operator=(const OnCancel&) = delete;

        void operator()(boost::asio::cancellation_type type) const {
            if (type != boost::asio::cancellation_type::none) {
                time_.cancel(Position(position_));  // which destroys this object
            }
        }

    private:
        VirtualTime& time_;
        Position position_;
    };

    Position add(time_point expiry, Wait wait) {
        const Position position(expiry, sequence_++);
        waits_.emplace(position, std::move(wait));
        return position;
    }

    // Takes a wait out and posts its handler.
    void complete(Waits::iterator at, boost::system::error_code error);

    void cancel(Position position) {
        if (const auto at = waits_.find(position); at != waits_.end()) {
            complete(at, boost::asio::error::operation_aborted);
        }
    }

    void shutdown() noexcept override;

    time_point now_;
    std::uint64_t sequence_ = 0;
    Waits waits_;
    bool shut_down_ = false;
};

/// Stands in for `asio::steady_timer` on virtual time.
///
/// It expires only where something moves virtual time: run(), run_until_stalled(), an InterleavingContext, or
/// VirtualTime::advance(). `io_context::run()` does not, and waits for ever.
///
/// @par Thread safety
/// Unsafe, also between distinct timers of one execution context: virtual time is for one thread.
class VirtualTimer {
public:
    using executor_type = boost::asio::any_io_executor;
    using clock_type = VirtualClock;
    using duration = clock_type::duration;
    using time_point = clock_type::time_point;

    template <class Executor>
    explicit VirtualTimer(Executor executor) : time_(&time_of(executor)), executor_(std::move(executor)) {
        expiry_ = time_->now();
    }

    template <class Executor>
    VirtualTimer(Executor executor, duration after) : VirtualTimer(std::move(executor)) {
        expires_after(after);
    }

    ~VirtualTimer() { cancel(); }

    VirtualTimer(const VirtualTimer&) = delete;
    VirtualTimer& operator=(const VirtualTimer&) = delete;

    /// The virtual time of the executor's context.
    template <class Executor>
    static time_point now(const Executor& executor) {
        return time_of(executor).now();
    }

    /// Completes when the time of expiry is reached, never inside this call.
    ///
    /// @par Completion signature
    /// `void(boost::system::error_code)`
    /// @li success: the timer expired.
    /// @li `asio::error::operation_aborted`: the wait was cancelled, the expiry changed, or the timer destroyed.
    ///
    /// @par Cancellation
    /// Terminal, partial, total.
    template <boost::asio::completion_token_for<void(boost::system::error_code)> Token>
    auto async_wait(Token&& token) {
        return boost::asio::async_initiate<Token, void(boost::system::error_code)>(
            [](auto handler, VirtualTimer* timer) { timer->start(std::move(handler)); }, token, this);
    }

    /// Sets the expiry and cancels the waits for the old one; gives their number.
    std::size_t expires_after(duration after) {
        const time_point now = time_->now();
        return expires_at(after > time_point::max() - now ? time_point::max() : now + after);
    }
    std::size_t expires_at(time_point at) {
        const std::size_t cancelled = cancel();
        expiry_ = at;
        return cancelled;
    }

    time_point expiry() const noexcept { return expiry_; }

    /// Cancels all waits on this timer; gives their number.
    std::size_t cancel() {
        const std::size_t cancelled = waits_.size();
        while (!waits_.empty()) {
            time_->cancel(*waits_.begin());
        }
        return cancelled;
    }

    executor_type get_executor() const { return executor_; }

private:
    template <class Executor>
    static VirtualTime& time_of(const Executor& executor) {
        return VirtualTime::of(boost::asio::query(executor, boost::asio::execution::context));
    }

    void start(VirtualTime::Handler handler) {
        if (time_->shut_down_) {
            return;  // whoever waits while the context is destroyed is dropped like the others
        }
        auto slot = boost::asio::get_associated_cancellation_slot(handler);
        VirtualTime& time = *time_;
        const auto position = time.add(expiry_, {std::move(handler), this, slot});
        waits_.insert(position);
        if (slot.is_connected()) {
            slot.emplace<VirtualTime::OnCancel>(time, position);
        }
    }

    friend class VirtualTime;

    VirtualTime* time_;
    executor_type executor_;
    time_point expiry_;
    std::set<VirtualTime::Position> waits_;  // that are pending; they sort in the order in which they began
};

inline void VirtualTime::complete(Waits::iterator at, boost::system::error_code error) {
    const Position position = at->first;
    at->second.disconnect();
    Wait wait = std::move(at->second);
    waits_.erase(at);
    wait.timer->waits_.erase(position);
    boost::asio::post(wait.timer->executor_, boost::asio::append(std::move(wait.handler), error));
}

inline void VirtualTime::shutdown() noexcept {
    shut_down_ = true;
    for (auto& [position, wait] : waits_) {
        wait.disconnect();
        wait.timer->waits_.clear();
    }
    Waits dropped;
    dropped.swap(waits_);
}

/// Runs what is ready, then, whenever nothing is, what waits for the next point in virtual time. Returns how much
/// virtual time went by when nothing is left that could run, though coroutines may still wait for something, or when
/// the context was stopped. Does not block. Lets out what a handler throws. Called again, it goes on.
inline VirtualClock::duration run_until_stalled(boost::asio::io_context& context) {
    VirtualTime& time = VirtualTime::of(context);
    const auto begin = time.now();
    const auto work = boost::asio::make_work_guard(context);  // without any the context stops of itself
    context.restart();
    do {
        do {
            time.complete_due();
        } while (context.poll_one() != 0);
    } while (!context.stopped() && time.advance());
    return time.now() - begin;
}

/// Runs everything to its end, as run_until_stalled(), and returns how much virtual time went by.
///
/// @throws std::logic_error if something is left that waits, and nothing that could end the wait: a slot that nobody
/// gives back, a party that does not arrive, another timer than VirtualTimer, work on another thread, a work guard.
inline VirtualClock::duration run(boost::asio::io_context& context) {
    const auto elapsed = run_until_stalled(context);
    if (!context.stopped()) {
        throw std::logic_error(
            "sluice::testing::run: a coroutine still waits, for something that never comes, for another thread, or for "
            "another timer than VirtualTimer; if that is what you test, call run_until_stalled()");
    }
    return elapsed;
}

}  // namespace sluice::testing
