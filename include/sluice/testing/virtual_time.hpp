// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/intrusive_list.hpp>
#include <sluice/testing/detail/indexed_heap.hpp>
#include <sluice/testing/detail/virtual_wait.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/execution_context.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
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
/// began. Waits on one executor that end at once are one handler of it: `poll_one()` ends them all. (In an
/// InterleavingContext each is a handler of its own.)
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
        while (is_due()) {
            const boost::asio::any_io_executor& executor = *waits_.top().executor;
            EndedWaits ended;
            do {
                ended.add(take(waits_.top()));
            } while (!separately_ && is_due() && *waits_.top().executor == executor);
            std::move(ended).post(executor);
        }
    }

    /// Advances to the next expiry and completes the waits that are due then. Returns false if nothing waits.
    bool advance() {
        if (waits_.empty()) {
            return false;
        }
        now_ = std::max(now_, waits_.top_key().expiry);
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
    friend class InterleavingContext;
    friend class VirtualTimer;

    using Wait = sluice::detail::VirtualWait;
    using EndedWaits = sluice::detail::EndedWaits;

    // The part of a timer that its waits use.
    struct TimerState {
        boost::asio::any_io_executor executor;
        sluice::detail::IntrusiveList<Wait> pending;  // in the order in which they began
    };

    // The place of a wait among the others: no two waits have the same.
    struct Position {
        time_point expiry;
        std::uint64_t sequence;

        friend bool operator<(const Position& a, const Position& b) noexcept {
            return a.expiry != b.expiry ? a.expiry < b.expiry : a.sequence < b.sequence;
        }
    };

    // The handler in the cancellation slot of a wait. The signal may be destroyed, and this with it, before the wait.
    class OnCancel {
    public:
        OnCancel(VirtualTime& time, Wait& wait) noexcept : time_(time), wait_(wait) {}
        ~OnCancel() { wait_.slot = {}; }

        OnCancel(const OnCancel&) = delete;
        OnCancel& operator=(const OnCancel&) = delete;

        void operator()(boost::asio::cancellation_type type) const {
            if (type != boost::asio::cancellation_type::none) {
                time_.cancel(wait_);  // which destroys this object
            }
        }

    private:
        VirtualTime& time_;
        Wait& wait_;
    };

    // From now on each wait that ends is a handler of its own, for a context that lets a test choose among them.
    void complete_separately() noexcept { separately_ = true; }

    bool is_due() const noexcept { return !waits_.empty() && waits_.top_key().expiry <= now_; }

    template <class Handler>
    void add(TimerState& timer, time_point expiry, Handler&& handler) {
        if (context_gone_) {
            return;  // a wait that begins while the context is destroyed is dropped like the others
        }
        boost::asio::cancellation_slot slot = boost::asio::get_associated_cancellation_slot(handler);
        auto wait = sluice::detail::make_wait(timer.executor, std::forward<Handler>(handler));
        if (slot.is_connected()) {
            slot.emplace<OnCancel>(*this, *wait);
            wait->slot = slot;
        }
        waits_.push(Position{expiry, sequence_++}, *wait);
        timer.pending.push_back(*wait.release());
    }

    void cancel(Wait& wait) {
        wait.aborted = true;
        EndedWaits ended;
        ended.add(take(wait));
        std::move(ended).post(*wait.executor);
    }

    // Cancels all waits of a timer. Returns their number.
    std::size_t cancel_all(TimerState& timer) {
        std::size_t cancelled = 0;
        while (!timer.pending.empty()) {
            EndedWaits ended;
            do {
                timer.pending.front().aborted = true;
                ended.add(take(timer.pending.front()));
                ++cancelled;
            } while (!separately_ && !timer.pending.empty());
            std::move(ended).post(timer.executor);
        }
        return cancelled;
    }

    // Removes a wait from the heap, its timer and its slot.
    Wait& take(Wait& wait) noexcept {
        waits_.remove(wait);
        wait.unlink();
        wait.disconnect();
        return wait;
    }

    // Dropping a wait may run any code, which may use other timers: so first all are removed.
    void shutdown() noexcept override {
        context_gone_ = true;
        EndedWaits dropped;
        while (!waits_.empty()) {
            dropped.add(take(waits_.top()));
        }
    }

    time_point now_;
    std::uint64_t sequence_ = 0;
    sluice::detail::IndexedHeap<Wait, Position> waits_;
    bool separately_ = false;
    bool context_gone_ = false;
};

}  // namespace sluice::testing
