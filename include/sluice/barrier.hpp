// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/broken_barrier.hpp>
#include <sluice/detail/barrier_state.hpp>
#include <sluice/detail/on_executor.hpp>
#include <sluice/detail/operation.hpp>
#include <sluice/detail/waiter.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/assert.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <boost/system/system_error.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <type_traits>
#include <utility>

namespace sluice {

/// A reusable meeting point: nobody leaves a phase until every party has arrived at it.
///
/// When the last party arrives, the completion function runs, the phase is complete, and the barrier is at once ready
/// for the next phase: a fast party may arrive again before slow ones have resumed. The last arrival goes on at once
/// (but every so often through the executor, lest a loop of them gives nobody else a turn), the others are resumed
/// through the executor in the order of their arrival.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. The barrier and its parties belong to one thread or strand, that of
/// the executor; waiters are resumed there.
///
/// @par Lifetime
/// Waiters of a destroyed barrier end with `operation_aborted`. The execution context may be destroyed before or after
/// the barrier: its waiters are then destroyed with it and not resumed.
class Barrier {
public:
    using executor_type = boost::asio::any_io_executor;

    /// `completion`, if not empty, runs once per phase, on the stack of the last arrival and before anyone resumes.
    /// Arrivals, abort() and reset() from inside it concern the next phase; a phase that they complete is resumed
    /// first. If it throws, the barrier is broken: the exception goes to the last arrival, BrokenBarrier to the others.
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

    /// Arrives, then waits until the phase is complete. Gives the index of this arrival among those that waited in this
    /// phase, from 0: each phase in which anyone waits has exactly one index 0. A party that dropped out takes no
    /// index.
    ///
    /// To be awaited at once, and once, in a coroutine of any type of executor, which is when the party arrives;
    /// converts to an `asio::awaitable<std::size_t, E>` where one is asked for. One that is destroyed without having
    /// been awaited, moved from or converted is taken for forgotten, and asserts.
    ///
    /// @throws BrokenBarrier if the barrier is broken, or breaks or is reset during the wait, or if every party has
    /// dropped out.
    /// @throws boost::system::system_error with `operation_aborted` if the wait was cancelled or the barrier destroyed.
    /// @throws what the completion function threw, at the last arrival.
    ///
    /// @par Cancellation
    /// Terminal, partial, total. A cancelled waiter is withdrawn in O(1), as if it had never arrived: the phase needs
    /// another arrival in its place. A phase that is complete stays complete: cancellation is then too late for this
    /// wait, as it is when the barrier was broken or reset. So in a race with a timer by Asio's `||` the timer may win
    /// although the party has arrived; with_timeout() then returns the arrival. (Which types of cancellation reach the
    /// wait: see StageSemaphore::acquire().)
    ///
    /// @note With Boost 1.83, race parties inside a coroutine only; see StageSemaphore::acquire().
    ///
    /// @par Complexity
    /// O(1); O(parties) for the last arrival if one was withdrawn in its phase. No allocation beside the cancellation
    /// slot's entry.
    Arrival arrive_and_wait() noexcept;

    /// Arrives at the current phase without waiting, and leaves: later phases need one party fewer. With no party left,
    /// later arrivals throw BrokenBarrier.
    /// @throws BrokenBarrier if the barrier is broken or without parties; what the completion function threw, if this
    /// was the last arrival. The party has dropped out in the second case only.
    void arrive_and_drop() {
        const auto state = state_;
        state->drop();
    }

    /// Breaks the barrier: every waiter ends with BrokenBarrier, and so does every arrival until reset().
    void abort() noexcept { state_->abort(); }

    /// Begins the current phase anew, mending a broken barrier: every waiter ends with BrokenBarrier. Parties that
    /// dropped out stay out.
    void reset() noexcept { state_->reset(); }

    /// Parties that the next phase needs.
    std::ptrdiff_t parties() const noexcept { return state_->parties(); }

    /// Parties that wait in the current phase.
    std::size_t waiting() const noexcept { return state_->waiting(); }

    /// How many phases are complete; inside the completion function, not counting the one it completes.
    std::uint64_t phase() const noexcept { return state_->phase(); }

    bool broken() const noexcept { return state_->broken(); }

    /// Empty once the execution context has been destroyed.
    executor_type get_executor() const { return state_->get_executor(); }

private:
    boost::intrusive_ptr<detail::BarrierState> state_;
};

/// What Barrier::arrive_and_wait() gives: an asynchronous operation that gives the index of the arrival.
class [[nodiscard]] Barrier::Arrival : public detail::Operation<Arrival, std::size_t> {
public:
    /// Moves an operation that has yet to be awaited.
    Arrival(Arrival&& other) noexcept : state_(std::move(other.state_)) { take_over(other); }

private:
    friend class Barrier;
    friend Operation;

    static void check_awaited(bool awaited) noexcept {
        BOOST_ASSERT_MSG(awaited,
                         "sluice::Barrier: arrive_and_wait() was called and not awaited, so that nobody has arrived: "
                         "write co_await barrier.arrive_and_wait()");
        static_cast<void>(awaited);
    }

    explicit Arrival(boost::intrusive_ptr<detail::BarrierState> state) noexcept : state_(std::move(state)) {}

    template <class Handler>
    void start(Handler&& handler) {
        try {
            if (state_->arrive()) {
                const auto state = state_;  // the completion function may destroy the barrier
                waiter_.index = state->complete_phase();
                waiter_.outcome = detail::Outcome::granted;
            }
        } catch (...) {
            error_ = std::current_exception();
            waiter_.outcome = detail::Outcome::aborted;
        }
        if (waiter_.outcome == detail::Outcome::waiting) {
            state_->join(waiter_);
        }
        complete_or_enter(*state_, waiter_, std::forward<Handler>(handler));
    }

    // This object is gone when the handler returns; the handler does not lie in it.
    template <class Handler>
    void complete(Handler&& handler) {
        if (waiter_.outcome == detail::Outcome::broken) {
            error_ = std::make_exception_ptr(BrokenBarrier("Barrier: broke or was reset during the wait"));
        } else if (waiter_.outcome == detail::Outcome::closed) {
            error_ = aborted("Barrier::arrive_and_wait: the barrier was destroyed");
        } else if (waiter_.outcome == detail::Outcome::aborted && !error_) {
            error_ = aborted("Barrier::arrive_and_wait");
        }
        std::forward<Handler>(handler)(std::exchange(error_, nullptr), std::size_t{waiter_.index});
    }

    static std::exception_ptr aborted(const char* why) {
        return std::make_exception_ptr(boost::system::system_error(boost::asio::error::operation_aborted, why));
    }

    boost::intrusive_ptr<detail::BarrierState> state_;
    std::exception_ptr error_;
    detail::Arrival waiter_;
};

inline Barrier::Arrival Barrier::arrive_and_wait() noexcept { return Arrival(state_); }

}  // namespace sluice
