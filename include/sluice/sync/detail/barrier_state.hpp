// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/intrusive_list.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/detail/sequence_checker.hpp>
#include <sluice/sync/detail/wait_queue.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <utility>

namespace sluice::detail {

// A party that waits. Completing a phase does not touch its parties, since there may be many: their outcome stays
// `waiting`, and the barrier's generation, which has moved on, says that they were released.
struct BarrierWaiter : Waiter {
    std::uint64_t generation = 0;
    std::size_t index = 0;
};

// The state that a Barrier shares with its waiters.
class BarrierState : public WaitQueue {
public:
    // The outcome of an arrival.
    enum class Arrived { early, last, refused };

    BarrierState(std::ptrdiff_t parties, std::function<void()> completion)
        : parties_(require(parties >= 1, "Barrier", "parties must be at least 1", parties)),
          missing_(parties_),
          completion_(std::move(completion)) {}

    // Counts one arrival, unless the barrier is closed, broken or without parties.
    Arrived arrive() noexcept {
        const SequenceChecker::Scope scope(sequence_checker_);
        if (closed() || broken_ || missing_ == 0) {
            return Arrived::refused;
        }
        return --missing_ == 0 ? Arrived::last : Arrived::early;
    }

    // To be called after an early arrival and before its wait begins.
    void join(BarrierWaiter& waiter) noexcept {
        waiter.generation = generation_;
        waiter.index = waiting();
    }

    // Later phases need one party fewer.
    void drop_party() noexcept { --parties_; }

    // Completes the phase after its last arrival, and returns the index of that arrival. The caller keeps this object
    // alive, since the completion function may destroy the barrier.
    std::size_t complete_phase() {
        const std::size_t index = waiting();
        IntrusiveList<Waiter> released;
        take_waiting(released);
        if (std::exchange(renumber_, false)) {
            released.for_each(
                [n = std::size_t{0}](Waiter& waiter) mutable { static_cast<BarrierWaiter&>(waiter).index = n++; });
        }
        ++generation_;
        missing_ = parties_;  // arrivals from here on belong to the next phase
        if (completion_) {
            try {
                completion_();
            } catch (...) {
                released.for_each([](Waiter& waiter) { waiter.outcome = WaitOutcome::broken; });
                make_ready(released);
                abort();
                throw;
            }
        }
        ++phase_;
        make_ready(released);
        return index;
    }

    void abort() noexcept {
        broken_ = true;
        restart_phase();
    }

    void reset() noexcept {
        broken_ = false;
        restart_phase();
    }

    void close() noexcept {
        closed_ = true;
        wake_all(WaitOutcome::closed);
    }

    std::ptrdiff_t parties() const noexcept { return parties_; }
    std::uint64_t phase() const noexcept { return phase_; }
    bool broken() const noexcept { return broken_; }
    bool closed() const noexcept { return closed_ || context_gone(); }

private:
    void restart_phase() noexcept {
        missing_ = parties_;
        renumber_ = false;
        wake_all(WaitOutcome::broken);
    }

    void on_cancel(Waiter& waiter) noexcept override {
        if (waiter.outcome == WaitOutcome::waiting && static_cast<BarrierWaiter&>(waiter).generation == generation_) {
            ++missing_;
            renumber_ = true;
            wake(waiter, WaitOutcome::aborted);
        }
    }

    std::ptrdiff_t parties_;        // of the next phase
    std::ptrdiff_t missing_;        // arrivals that the current phase still needs
    std::uint64_t phase_ = 0;       // completed phases
    std::uint64_t generation_ = 0;  // the same, plus phases whose completion function is running or has thrown
    bool renumber_ = false;         // an arrival was withdrawn: the indices of the others have a gap
    bool broken_ = false;
    bool closed_ = false;
    std::function<void()> completion_;
};

}  // namespace sluice::detail
