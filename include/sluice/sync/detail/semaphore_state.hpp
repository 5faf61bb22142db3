// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/detail/wait_queue.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/assert.hpp>
#include <boost/config.hpp>

#include <cstddef>

namespace sluice::detail {

// The state that a StageSemaphore shares with its slots and waiters.
//
// A derived class may *gate* it: then a slot is granted by the overridden hand_over() alone.
class SemaphoreState : public WaitQueue {
public:
    explicit SemaphoreState(std::ptrdiff_t limit) : limit_(checked(limit)), open_(limit_) {}

    bool try_take() noexcept {
        const SequenceChecker::Scope scope(sequence_checker_);
        // While anything waits every slot is taken, so nothing is overtaken.
        BOOST_ASSERT(active_ >= open_ || waiting() == 0);
        if (closed_ || active_ >= open_) {
            return false;
        }
        take();
        return true;
    }

    void give_back() noexcept {
        --active_;
        if (waiting() != 0) {
            hand_over();
        }
    }

    void set_limit(std::ptrdiff_t limit) {
        limit_ = checked(limit);
        set_gated(gated_);
        hand_over();
    }

    void close() noexcept {
        closed_ = true;
        wake_all(WaitOutcome::closed);
        hand_over();
    }

    bool closed() const noexcept { return closed_ || context_gone(); }
    std::ptrdiff_t limit() const noexcept { return limit_; }
    std::ptrdiff_t active() const noexcept { return active_; }
    bool gated() const noexcept { return gated_; }

protected:
    void set_gated(bool gated) noexcept {
        gated_ = gated;
        open_ = gated ? 0 : limit_;
    }

    void take() noexcept { ++active_; }

    // Grants the free slots to those that have waited longest. Not inlined, so that returning a slot is, where nothing
    // waits.
    BOOST_NOINLINE virtual void hand_over() noexcept {
        for (; waiting() != 0 && active_ < limit_; take()) {
            wake(longest_waiting(), WaitOutcome::granted);
        }
    }

    void on_cancel(Waiter& waiter) noexcept override {
        if (waiter.outcome == WaitOutcome::waiting) {
            wake(waiter, WaitOutcome::aborted);
        } else if (waiter.outcome == WaitOutcome::granted) {
            waiter.outcome = WaitOutcome::aborted;  // stays in the ready list; its slot goes to the next waiter
            give_back();
        }
    }

    void on_drop(Waiter& waiter) noexcept override {
        if (waiter.outcome == WaitOutcome::granted) {
            --active_;
        }
    }

private:
    static std::ptrdiff_t checked(std::ptrdiff_t limit) {
        return require(limit >= 0, "StageSemaphore", "limit must not be negative", limit);
    }

    std::ptrdiff_t limit_;
    std::ptrdiff_t open_;        // the limit, or 0 if it is gated
    std::ptrdiff_t active_ = 0;  // taken slots, including those granted to a waiter that has not resumed yet
    bool closed_ = false;
    bool gated_ = false;
};

}  // namespace sluice::detail
