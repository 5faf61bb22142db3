// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/barrier_state.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/operation_awaiter.hpp>
#include <sluice/sync/detail/wait_operation.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/assert.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <stdexcept>
#include <utility>

namespace sluice {

/// Thrown to the parties of a Barrier that breaks, and to those that arrive at a broken one.
class BrokenBarrier : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

/// A reusable barrier: no party leaves a phase until every party has arrived at it.
///
/// When the last party arrives, the completion function runs, the phase is complete, and the barrier is ready for the
/// next phase: a fast party may arrive again before slow ones have resumed. The last arrival continues at once or,
/// after many immediate completions in a row, through the executor, so that a tight loop cannot starve other handlers.
/// The others resume through the executor in the order of their arrival.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. The barrier and its parties belong to one thread or strand, that of
/// the executor; waiters resume there.
///
/// @par Lifetime
/// When the barrier is destroyed its waiters end with `operation_aborted`. The execution context may be destroyed
/// before or after the barrier; the waiters are then destroyed with it and do not resume.
class Barrier {
public:
    using executor_type = boost::asio::any_io_executor;

    /// @param executor Resumes the waiters.
    /// @param parties The number of arrivals that complete a phase; at least 1.
    /// @param completion Unless empty, runs once in each phase, on the stack of the last arrival and before any party
    /// resumes. Inside it, arrivals, abort() and reset() apply to the next phase; a phase that is completed there
    /// resumes first. If it throws, the barrier breaks: the last arrival gets the exception, the others BrokenBarrier.
    /// @throws std::invalid_argument if `executor` is empty or `parties` is less than 1.
    template <class Executor>
        requires boost::asio::execution::is_executor<Executor>::value
    Barrier(Executor executor, std::ptrdiff_t parties, std::function<void()> completion = {})
        : state_(detail::make_queue<detail::BarrierState>("Barrier", std::move(executor), parties,
                                                          std::move(completion))) {}

    ~Barrier() { state_->close(); }

    Barrier(const Barrier&) = delete;
    Barrier& operator=(const Barrier&) = delete;

    class Arrival;

    /// Returns an operation which, when awaited, arrives, waits until the phase is complete, and returns the index of
    /// this arrival.
    ///
    /// @code
    /// const bool leader = co_await barrier.arrive_and_wait() == 0;  // true for exactly one party of each phase
    /// @endcode
    ///
    /// Indices count the arrivals that waited in this phase, from 0: each phase in which any party waits has exactly
    /// one index 0. A party that drops out takes no index.
    ///
    /// Await it immediately and only once, in a coroutine with any type of executor; the party arrives then. It
    /// converts to `asio::awaitable<std::size_t, E>` where one is needed. An operation that is destroyed without having
    /// been awaited, moved from or converted counts as forgotten, and asserts.
    ///
    /// @throws BrokenBarrier if the barrier is broken, or breaks or is reset during the wait, or if every party has
    /// dropped out.
    /// @throws boost::system::system_error with `operation_aborted` if the wait was cancelled or the barrier destroyed.
    /// Rethrows, at the last arrival, what the completion function threw.
    ///
    /// @par Cancellation
    /// Terminal, partial and total; StageSemaphore::acquire() says which types reach the wait. A cancelled waiter is
    /// withdrawn in O(1) as if it had never arrived: the phase needs another arrival in its place. A cancellation that
    /// comes after the phase was completed, or the barrier broke or was reset, does not affect this wait. So in a race
    /// with a timer by Asio's `||` the timer may win although the phase is complete; with_timeout() returns the index.
    ///
    /// @note With Boost 1.83, race parties only inside a coroutine; see StageSemaphore::acquire().
    ///
    /// @par Complexity
    /// O(1); O(parties) for the last arrival if another was withdrawn in its phase. Allocates only Asio's
    /// cancellation-slot entry.
    Arrival arrive_and_wait() noexcept;

    /// Arrives at the current phase without waiting, and leaves: later phases need one party fewer. When no party is
    /// left, later arrivals throw BrokenBarrier. If this is the last arrival, rethrows what the completion function
    /// threw; the party has dropped out then.
    /// @throws BrokenBarrier if the barrier is broken or has no parties; the party has not dropped out then.
    /// @throws boost::system::system_error with `operation_aborted` if the execution context has been destroyed.
    void arrive_and_drop() {
        const auto state = state_;  // the completion function may destroy the barrier
        const bool last = arrive(*state);
        state->drop_party();
        if (last) {
            state->complete_phase();
        }
    }

    /// Breaks the barrier: every wait ends with BrokenBarrier, and so does every arrival until reset().
    void abort() noexcept { state_->abort(); }

    /// Restarts the current phase and repairs a broken barrier: every wait ends with BrokenBarrier. Parties that
    /// dropped out stay out.
    void reset() noexcept { state_->reset(); }

    /// The number of parties that the next phase needs.
    std::ptrdiff_t parties() const noexcept { return state_->parties(); }

    /// The number of parties that wait in the current phase.
    std::size_t waiting() const noexcept { return state_->waiting(); }

    /// The number of completed phases. Inside the completion function, the phase it completes does not count yet.
    std::uint64_t phase() const noexcept { return state_->phase(); }

    bool broken() const noexcept { return state_->broken(); }

    /// Empty once the execution context has been destroyed.
    executor_type get_executor() const { return state_->get_executor(); }

private:
    // Arrives, and returns whether this was the last arrival of its phase.
    static bool arrive(detail::BarrierState& state) {
        const auto arrived = state.arrive();
        if (arrived == detail::BarrierState::Arrived::refused) {
            if (state.closed()) {
                throw detail::operation_aborted("Barrier::arrive_and_wait");
            }
            throw BrokenBarrier(state.broken() ? "Barrier: broken, and not reset since"
                                               : "Barrier: every party has dropped out");
        }
        return arrived == detail::BarrierState::Arrived::last;
    }

    boost::intrusive_ptr<detail::BarrierState> state_;
};

/// The operation that Barrier::arrive_and_wait() returns.
class [[nodiscard]] Barrier::Arrival : public detail::WaitOperation<Arrival, std::size_t> {
public:
    /// Moves an operation that has not been awaited yet.
    Arrival(Arrival&& other) noexcept : state_(std::move(other.state_)) { take_over(other); }

private:
    friend class Barrier;
    friend WaitOperation;

    static void check_awaited(bool awaited) noexcept {
        BOOST_ASSERT_MSG(awaited,
                         "sluice::Barrier: arrive_and_wait() was called and not awaited, so that no party has arrived: "
                         "write co_await barrier.arrive_and_wait()");
        static_cast<void>(awaited);
    }

    explicit Arrival(boost::intrusive_ptr<detail::BarrierState> state) noexcept : state_(std::move(state)) {}

    bool decide() noexcept {
        try {
            if (arrive(*state_)) {
                const auto state = state_;  // the completion function may destroy the barrier
                waiter_.index = state->complete_phase();
                waiter_.outcome = detail::WaitOutcome::granted;
                return true;
            }
            state_->join(waiter_);
            return false;
        } catch (...) {
            error_ = std::current_exception();
            waiter_.outcome = detail::WaitOutcome::aborted;
            return true;
        }
    }

    bool failed() const noexcept {
        using detail::WaitOutcome;  // the parties of a completed phase still have the first
        return waiter_.outcome != WaitOutcome::waiting && waiter_.outcome != WaitOutcome::granted;
    }

    std::exception_ptr error() {
        using detail::WaitOutcome;
        if (waiter_.outcome == WaitOutcome::broken) {
            return std::make_exception_ptr(BrokenBarrier("Barrier: broke or was reset during the wait"));
        }
        if (waiter_.outcome == WaitOutcome::closed) {
            return std::make_exception_ptr(
                detail::operation_aborted("Barrier::arrive_and_wait: the barrier was destroyed"));
        }
        if (!error_) {
            return std::make_exception_ptr(detail::operation_aborted("Barrier::arrive_and_wait"));
        }
        return std::exchange(error_, nullptr);
    }

    std::size_t value() const noexcept { return waiter_.index; }

    boost::intrusive_ptr<detail::BarrierState> state_;
    std::exception_ptr error_;
    detail::BarrierWaiter waiter_;
};

inline Barrier::Arrival Barrier::arrive_and_wait() noexcept { return Arrival(state_); }

}  // namespace sluice
