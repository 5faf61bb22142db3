// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/clock.hpp>

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/append.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/post.hpp>
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

/// The clock of virtual time, which advances only when a test or a runner advances it. Each execution context has its
/// own time.
struct VirtualClock {
    using duration = std::chrono::nanoseconds;
    using rep = duration::rep;
    using period = duration::period;
    using time_point = std::chrono::time_point<VirtualClock, duration>;
    static constexpr bool is_steady = true;
};

/// The virtual time of one execution context, and the waits for it.
///
/// Deterministic: waits end in the order of their expiry, and those with the same expiry in the order in which they
/// began.
///
/// @par Thread safety
/// Unsafe: virtual time is for one thread.
class VirtualTime final : public sluice::detail::SimulatedTime {
public:
    using time_point = VirtualClock::time_point;

    explicit VirtualTime(boost::asio::execution_context& context) : SimulatedTime(context) {}

    static VirtualTime& of(boost::asio::execution_context& context) {
        return boost::asio::use_service<VirtualTime>(context);
    }

    /// The current time, from the clock's epoch on.
    time_point now() const noexcept { return now_; }

    /// The number of pending waits.
    std::size_t pending() const noexcept { return waits_.size(); }

    /// Completes the waits that are due.
    void complete_due() {
        while (!waits_.empty() && waits_.begin()->first.first <= now_) {
            complete(waits_.begin(), {});
        }
    }

    /// Advances to the next expiry and completes the waits that are due then. Returns false if nothing waits.
    bool advance() {
        if (waits_.empty()) {
            return false;
        }
        now_ = std::max(now_, waits_.begin()->first.first);
        complete_due();
        return true;
    }

    /// Advances by `by`. Waits that are due by then complete when the context runs.
    ///
    /// @throws std::invalid_argument if `by` is negative or reaches beyond the end of the clock.
    void advance_by(VirtualClock::duration by) {
        if (by.count() < 0 || by > time_point::max() - now_) {
            throw std::invalid_argument(
                "VirtualTime: the time to advance by must not be negative, nor reach beyond the clock's end, got " +
                std::to_string(by.count()) + " ns");
        }
        now_ += by;
    }

private:
    friend class VirtualTimer;

    using Handler = boost::asio::any_completion_handler<void(boost::system::error_code)>;
    using Position = std::pair<time_point, std::uint64_t>;

    // The part of a timer that its waits use.
    struct TimerState {
        boost::asio::any_io_executor executor;
        std::set<Position> pending;  // sorted in the order in which the waits began
    };

    struct Wait {
        Handler handler;
        TimerState* timer;
        boost::asio::cancellation_slot slot;
    };
    using Waits = std::map<Position, Wait>;

    // The handler in the cancellation slot of a wait. The signal may be destroyed, and this with it, before the wait.
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

    void add(TimerState& timer, time_point expiry, Handler handler) {
        if (context_gone_) {
            return;  // a wait that begins while the context is destroyed is dropped like the others
        }
        auto slot = boost::asio::get_associated_cancellation_slot(handler);
        const Position position(expiry, sequence_++);
        waits_.emplace(position, Wait{std::move(handler), &timer, slot});
        timer.pending.insert(position);
        if (slot.is_connected()) {
            slot.emplace<OnCancel>(*this, position);
        }
    }

    void cancel(Position position) {
        if (const auto at = waits_.find(position); at != waits_.end()) {
            complete(at, boost::asio::error::operation_aborted);
        }
    }

    // Removes a wait and posts its handler.
    void complete(Waits::iterator at, boost::system::error_code error) {
        Wait wait = std::move(at->second);
        wait.timer->pending.erase(at->first);
        waits_.erase(at);  // before the slot is cleared, whose handler would look for the wait
        wait.slot.clear();
        boost::asio::post(wait.timer->executor, boost::asio::append(std::move(wait.handler), error));
    }

    void shutdown() noexcept override {
        context_gone_ = true;
        Waits dropped;
        dropped.swap(waits_);
        for (auto& [position, wait] : dropped) {
            wait.slot.clear();
            wait.timer->pending.clear();
        }
    }

    time_point now_;
    std::uint64_t sequence_ = 0;
    Waits waits_;
    bool context_gone_ = false;
};

}  // namespace sluice::testing
