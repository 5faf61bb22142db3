// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/wait_queue.hpp>
#include <sluice/detail/waiter.hpp>

#include <boost/assert.hpp>

#include <cstddef>
#include <stdexcept>
#include <string>

namespace sluice::detail {

// What a StageSemaphore shares with its slots and waiters.
class SemaphoreState : public WaitQueue {
public:
    explicit SemaphoreState(std::ptrdiff_t limit) : limit_(checked(limit)) {}

    bool try_take() noexcept {
        const OneThread::Section section(one_thread_);
        // While anyone waits every slot is out, so there is nobody to overtake.
        BOOST_ASSERT(active_ >= limit_ || waiting() == 0);
        if (closed_ || active_ >= limit_) {
            return false;
        }
        ++active_;
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
        hand_over();
    }

    void close() noexcept {
        closed_ = true;
        wake_all(Outcome::closed);
    }

    // The StageSemaphore is destroyed.
    void abandon() noexcept {
        abandoned_ = true;
        close();
    }

    bool closed() const noexcept { return closed_ || context_gone(); }
    bool abandoned() const noexcept { return abandoned_; }
    std::ptrdiff_t limit() const noexcept { return limit_; }
    std::ptrdiff_t active() const noexcept { return active_; }

private:
    static std::ptrdiff_t checked(std::ptrdiff_t limit) {
        if (limit < 0) {
            throw std::invalid_argument("StageSemaphore: limit must not be negative, got " + std::to_string(limit));
        }
        return limit;
    }

    // Gives what is free to those who have waited longest.
    void hand_over() noexcept {
        for (; waiting() != 0 && active_ < limit_; ++active_) {
            wake(longest_waiting(), Outcome::granted);
        }
    }

    void on_cancel(Waiter& waiter) noexcept override {
        if (waiter.outcome == Outcome::waiting) {
            wake(waiter, Outcome::aborted);
        } else if (waiter.outcome == Outcome::granted) {
            waiter.outcome = Outcome::aborted;  // stays in the ready list; the slot goes to the next one
            give_back();
        }
    }

    void on_drop(Waiter& waiter) noexcept override {
        if (waiter.outcome == Outcome::granted) {
            --active_;
        }
    }

    std::ptrdiff_t limit_;
    std::ptrdiff_t active_ = 0;  // slots out, those granted to a waiter that has yet to resume included
    bool closed_ = false;
    bool abandoned_ = false;
};

}  // namespace sluice::detail
