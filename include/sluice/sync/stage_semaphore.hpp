// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/operation_awaiter.hpp>
#include <sluice/sync/detail/semaphore_state.hpp>
#include <sluice/sync/detail/wait_operation.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/slot.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/assert.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <cstddef>
#include <exception>
#include <utility>

namespace sluice {

namespace detail {
struct EndpointState;
}

/// Limits how many coroutines hold a slot at once. Strictly first come, first served.
///
/// A returned slot is handed to the coroutine that has waited longest, which resumes through the executor, never inside
/// release(). Nothing overtakes: neither a newcomer, nor a holder that releases its slot and at once acquires again.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. The semaphore, its slots and the coroutines that use them belong to
/// one thread or strand, that of the executor; waiters resume there.
///
/// @par Lifetime
/// When the semaphore is destroyed its waiters end with `operation_aborted`, and its slots stay valid. The execution
/// context may be destroyed before or after the semaphore; the waiters are then destroyed with it and do not resume.
class StageSemaphore {
public:
    using executor_type = boost::asio::any_io_executor;

    /// @param executor Resumes the waiters.
    /// @param limit The number of slots. 0 means paused.
    /// @throws std::invalid_argument if `executor` is empty or `limit` is negative.
    template <class Executor>
        requires boost::asio::execution::is_executor<Executor>::value
    StageSemaphore(Executor executor, std::ptrdiff_t limit)
        : state_(detail::make_queue<detail::SemaphoreState>("StageSemaphore", std::move(executor), limit)) {}

    ~StageSemaphore() { state_->close(); }

    StageSemaphore(const StageSemaphore&) = delete;
    StageSemaphore& operator=(const StageSemaphore&) = delete;

    class Acquisition;

    /// Returns an operation which, when awaited, waits for a slot and returns it.
    ///
    /// @code
    /// sluice::Slot slot = co_await semaphore.acquire();
    /// @endcode
    ///
    /// Await it immediately and only once, in a coroutine with any type of executor. It converts to
    /// `asio::awaitable<Slot, E>` where one is needed. An operation that is destroyed without having been awaited,
    /// moved from or converted counts as forgotten, and asserts; that includes one that is kept across another
    /// suspension and is destroyed there with its coroutine.
    ///
    /// The coroutine continues at once, without suspending, if a slot is free or the semaphore is closed, and otherwise
    /// resumes through the executor. After at most 64 acquires in a row that continued at once, with no wait for this
    /// semaphore between them, the next goes through the executor too, so that a tight loop cannot starve other
    /// handlers. Slots are granted in the order of the requests, but a coroutine that finds a free slot continues
    /// before one that was granted a slot earlier and has not resumed yet.
    ///
    /// @throws boost::system::system_error with `operation_aborted` if the wait was cancelled, or if the semaphore was
    /// closed or destroyed before a slot was granted.
    ///
    /// @par Cancellation
    /// Terminal, partial and total. The waiter leaves the queue in O(1) and loses its place. Until the coroutine
    /// resumes, cancellation wins: a waiter that is cancelled after it was granted a slot ends with
    /// `operation_aborted`, and the slot goes to the next. Cancellation never loses or creates a slot.
    ///
    /// The coroutine decides which types reach the wait: one that `co_spawn` started lets only terminal cancellation
    /// through, unless it calls `this_coro::reset_cancellation_state`. One that was cancelled earlier and continues, by
    /// `this_coro::throw_if_cancelled(false)`, waits like any other: only a cancellation during the wait ends it.
    ///
    /// @note With Boost 1.83, race coroutines that acquire only from inside another coroutine, or use
    /// with_task_group(). A `make_parallel_group` of `co_spawn`s that is created outside the event loop lets
    /// `operation_aborted` escape into the loop when the first coroutine takes a free slot and those that have not
    /// begun are cancelled.
    ///
    /// @par Complexity
    /// O(1). Allocates only Asio's cancellation-slot entry.
    Acquisition acquire() noexcept;

    /// Takes a slot if one is free and nothing waits. Otherwise, or if the semaphore is closed, returns an empty Slot.
    /// O(1).
    Slot try_acquire() noexcept { return state_->try_take() ? Slot(state_) : Slot(); }

    /// Changes the limit. Raising it resumes one waiter for each new slot. Lowering it takes no slot away: while
    /// `active() > limit()`, returned slots are not handed on.
    /// @throws std::invalid_argument if `limit` is negative; nothing changes then.
    void set_limit(std::ptrdiff_t limit) { state_->set_limit(limit); }

    /// Ends every wait, and every later acquire(), with `operation_aborted`. Slots that are taken or granted can still
    /// be returned. Closing again has no effect.
    void close() noexcept { state_->close(); }

    std::ptrdiff_t limit() const noexcept { return state_->limit(); }

    /// The number of taken slots, including those granted to a coroutine that has not resumed yet.
    std::ptrdiff_t active() const noexcept { return state_->active(); }

    /// The number of coroutines that wait and have not been granted a slot.
    std::size_t waiting() const noexcept { return state_->waiting(); }

    /// Empty once the execution context has been destroyed.
    executor_type get_executor() const { return state_->get_executor(); }

private:
    // For code that must know what became of a semaphore after it may have been destroyed.
    friend const boost::intrusive_ptr<detail::SemaphoreState>& state_of(const StageSemaphore& semaphore) noexcept {
        return semaphore.state_;
    }

    // The line of an endpoint is a semaphore that is granted otherwise.
    friend struct detail::EndpointState;
    explicit StageSemaphore(boost::intrusive_ptr<detail::SemaphoreState> state) noexcept : state_(std::move(state)) {}

    // The slot that a waiter in its queue was granted.
    friend Slot granted_slot(const StageSemaphore& semaphore) noexcept { return semaphore.granted(); }
    Slot granted() const noexcept { return Slot(state_); }

    boost::intrusive_ptr<detail::SemaphoreState> state_;
};

/// The operation that StageSemaphore::acquire() returns.
class [[nodiscard]] StageSemaphore::Acquisition : public detail::WaitOperation<Acquisition, Slot> {
public:
    /// Moves an operation that has not been awaited yet.
    Acquisition(Acquisition&& other) noexcept : state_(std::move(other.state_)) { take_over(other); }

private:
    friend class StageSemaphore;
    friend WaitOperation;

    static void check_awaited(bool awaited) noexcept {
        BOOST_ASSERT_MSG(awaited,
                         "sluice::StageSemaphore: acquire() was called and not awaited, so that no slot is held: write "
                         "Slot slot = co_await semaphore.acquire();");
        static_cast<void>(awaited);
    }

    explicit Acquisition(boost::intrusive_ptr<detail::SemaphoreState> state) noexcept : state_(std::move(state)) {}

    bool decide() noexcept {
        if (state_->try_take()) {
            waiter_.outcome = detail::WaitOutcome::granted;
            return true;
        }
        if (state_->closed()) {
            waiter_.outcome = detail::WaitOutcome::closed;
            return true;
        }
        return false;
    }

    bool failed() const noexcept { return waiter_.outcome != detail::WaitOutcome::granted; }

    std::exception_ptr error() const {
        const bool closed = waiter_.outcome == detail::WaitOutcome::closed;
        return std::make_exception_ptr(detail::operation_aborted(
            closed ? "StageSemaphore::acquire: the semaphore was closed" : "StageSemaphore::acquire"));
    }

    Slot value() noexcept { return Slot(std::move(state_)); }

    boost::intrusive_ptr<detail::SemaphoreState> state_;
    detail::Waiter waiter_;
};

inline StageSemaphore::Acquisition StageSemaphore::acquire() noexcept { return Acquisition(state_); }

}  // namespace sluice
