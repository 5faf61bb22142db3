// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/broken_barrier.hpp>
#include <sluice/detail/intrusive_list.hpp>
#include <sluice/detail/wait_queue.hpp>
#include <sluice/detail/waiter.hpp>

#include <boost/asio/error.hpp>
#include <boost/system/system_error.hpp>

#include <cstddef>
#include <cstdint>
#include <functional>
#include <stdexcept>
#include <string>
#include <utility>

namespace sluice::detail {

// A party that waits. When its phase completes nobody touches it, for there may be many: its outcome stays `waiting`,
// and that its round has passed says the rest.
struct Arrival : Waiter {
    std::uint64_t round = 0;
    std::size_t index = 0;
};

// What a Barrier shares with its waiters.
class BarrierState : public WaitQueue {
public:
    BarrierState(std::ptrdiff_t parties, std::function<void()> completion)
        : parties_(checked(parties)), missing_(parties_), completion_(std::move(completion)) {}

    // Counts one arrival; whether it was the last of its phase.
    bool arrive() {
        const OneThread::Section section(one_thread_);
        if (closed_ || context_gone()) {
            throw boost::system::system_error(boost::asio::error::operation_aborted, "Barrier::arrive_and_wait");
        }
        if (broken_) {
            throw BrokenBarrier("Barrier: broken, and not reset since");
        }
        if (missing_ == 0) {
            throw BrokenBarrier("Barrier: every party has dropped out");
        }
        return --missing_ == 0;
    }

    // To be called before the arrival's wait begins.
    void join(Arrival& arrival) noexcept {
        arrival.round = round_;
        arrival.index = waiting();
    }

    // Ends the phase that everyone has arrived at, and gives the last arrival's index. The caller keeps this object
    // alive: the completion may destroy the barrier.
    std::size_t complete_phase() {
        const std::size_t index = waiting();
        IntrusiveList<Waiter> released;
        take_waiting(released);
        if (std::exchange(withdrawn_, false)) {
            released.for_each(
                [n = std::size_t{0}](Waiter& waiter) mutable { static_cast<Arrival&>(waiter).index = n++; });
        }
        ++round_;
        missing_ = parties_;  // who arrives from now on belongs to the next phase
        if (completion_) {
            try {
                completion_();
            } catch (...) {
                released.for_each([](Waiter& waiter) { waiter.outcome = Outcome::broken; });
                make_ready(released);
                abort();
                throw;
            }
        }
        ++phase_;
        make_ready(released);
        return index;
    }

    void drop() {
        const bool last = arrive();
        --parties_;
        if (last) {
            complete_phase();
        }
    }

    void abort() noexcept {
        broken_ = true;
        begin_phase_anew();
    }

    void reset() noexcept {
        broken_ = false;
        begin_phase_anew();
    }

    void close() noexcept {
        closed_ = true;
        wake_all(Outcome::closed);
    }

    std::ptrdiff_t parties() const noexcept { return parties_; }
    std::uint64_t phase() const noexcept { return phase_; }
    bool broken() const noexcept { return broken_; }

private:
    static std::ptrdiff_t checked(std::ptrdiff_t parties) {
        if (parties < 1) {
            throw std::invalid_argument("Barrier: parties must be at least 1, got " + std::to_string(parties));
        }
        return parties;
    }

    void begin_phase_anew() noexcept {
        missing_ = parties_;
        withdrawn_ = false;
        wake_all(Outcome::broken);
    }

    void on_cancel(Waiter& waiter) noexcept override {
        if (waiter.outcome == Outcome::waiting && static_cast<Arrival&>(waiter).round == round_) {
            ++missing_;
            withdrawn_ = true;
            wake(waiter, Outcome::aborted);
        }
    }

    std::ptrdiff_t parties_;   // of the next phase
    std::ptrdiff_t missing_;   // arrivals that the current phase still needs
    std::uint64_t phase_ = 0;  // complete
    std::uint64_t round_ = 0;  // the same, and those whose completion function runs or has thrown
    bool withdrawn_ = false;   // someone was, and those that wait are to be numbered anew
    bool broken_ = false;
    bool closed_ = false;
    std::function<void()> completion_;
};

}  // namespace sluice::detail
