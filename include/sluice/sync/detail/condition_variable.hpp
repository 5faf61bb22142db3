// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/wait_queue.hpp>
#include <sluice/sync/detail/waiter.hpp>

namespace sluice::detail {

// A condition variable for coroutines: a coroutine that is woken checks the condition again.
class ConditionVariable : public WaitQueue {
public:
    void notify_one() noexcept {
        if (waiting() != 0) {
            wake(longest_waiting(), WaitOutcome::granted);
        }
    }

    void notify_all() noexcept { wake_all(WaitOutcome::granted); }

private:
    void on_cancel(Waiter& waiter) noexcept override {
        if (waiter.outcome == WaitOutcome::waiting) {
            wake(waiter, WaitOutcome::aborted);
        } else if (waiter.outcome == WaitOutcome::granted) {
            waiter.outcome = WaitOutcome::aborted;
            notify_one();  // passes the notification on
        }
    }
};

}  // namespace sluice::detail
