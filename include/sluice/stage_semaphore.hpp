// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/on_executor.hpp>
#include <sluice/detail/operation.hpp>
#include <sluice/detail/semaphore_state.hpp>
#include <sluice/detail/terminate.hpp>
#include <sluice/detail/waiter.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/assert.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <boost/system/system_error.hpp>

#include <cstddef>
#include <exception>
#include <type_traits>
#include <utility>

namespace sluice {

namespace detail {
struct SemaphoreAccess;
}

/// The right to run in a stage: one of a StageSemaphore's slots, or empty.
///
/// Goes back when it is released, assigned to, or destroyed, which must happen on the semaphore's thread or strand. It
/// may outlive the semaphore and the execution context. Giving a slot back posts at most one handler; if memory for
/// that is exhausted, the program terminates, as from any destructor that throws.
///
/// @par g++ 12
/// g++ 12 miscompiles these shapes, in which it makes a bitwise copy of a slot that is given back at the end of the
/// full expression:
/// @li a conditional expression: `free ? Slot() : co_await semaphore.acquire()`, initialised from, assigned from, or
/// given as an argument;
/// @li the braces of an aggregate or an array: `Aggregate{co_await semaphore.acquire(), 1}`, and initializer lists;
/// @li an init-capture: `[slot = co_await semaphore.acquire()] {}`;
/// @li a new-expression: `new Slot(co_await semaphore.acquire())`;
/// @li a conditional expression of operations: `co_await (free ? a.acquire() : b.acquire())`. There it is the operation
/// that is copied, and that terminates.
///
/// A limit that is silently not kept would be worse than a program that ends, so whatever uses such a copy, its
/// destruction included, prints a sentence and terminates, in every build mode. Name the slot first:
/// `Slot slot = co_await semaphore.acquire();`, then move it.
class [[nodiscard]] Slot {
public:
    /// An empty slot.
    Slot() noexcept = default;

    Slot(Slot&& other) noexcept : semaphore_(std::move(other.own())) {}
    Slot& operator=(Slot&& other) noexcept {
        Slot moved(std::move(other));
        moved.semaphore_.swap(own());
        return *this;
    }
    ~Slot() {
        if (semaphore_) {
            release();
        }
    }

    /// Gives the slot back early: the longest waiting coroutine gets it. An empty slot stays empty. O(1).
    void release() noexcept {
        if (const auto semaphore = std::exchange(own(), nullptr)) {
            semaphore->give_back();
        }
    }

    /// Whether this holds a slot.
    explicit operator bool() const noexcept {
        check();
        return semaphore_ != nullptr;
    }

private:
    friend class StageSemaphore;

    // Adopts a slot that was counted already.
    explicit Slot(boost::intrusive_ptr<detail::SemaphoreState> semaphore) noexcept : semaphore_(std::move(semaphore)) {}

    // That this is no copy that nobody constructed.
    void check() const noexcept {
        if (at_ != this && semaphore_) [[unlikely]] {
            detail::terminate_with(
                "sluice::Slot: a bitwise copy, which holds no slot, such as g++ 12 makes of `co_await acquire()` in a "
                "conditional expression, in the braces of an aggregate, in a capture or in a new-expression; name the "
                "slot first: Slot slot = co_await semaphore.acquire();");
        }
    }

    boost::intrusive_ptr<detail::SemaphoreState>& own() noexcept {
        if (at_ != this) [[unlikely]] {
            check();
            at_ = this;  // a copy of an empty slot does no harm
        }
        return semaphore_;
    }

    boost::intrusive_ptr<detail::SemaphoreState> semaphore_;
    const Slot* at_ = this;
};

/// Limits how many coroutines are in a stage at once, strictly first come, first served.
///
/// A slot that comes back is handed to the coroutine that has waited longest, which is resumed through the executor,
/// never from within release(). Nobody overtakes: not a newcomer, not a holder that releases and acquires again at
/// once.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. The semaphore, its slots and the coroutines that use them belong to
/// one thread or strand, that of the executor; waiters are resumed there.
///
/// @par Lifetime
/// Waiters of a destroyed semaphore end with `operation_aborted`; its slots stay valid. The execution context may be
/// destroyed before or after the semaphore: its waiters are then destroyed with it and not resumed.
class StageSemaphore {
public:
    using executor_type = boost::asio::any_io_executor;

    /// `limit` slots; 0 means paused.
    /// @throws std::invalid_argument if `executor` is empty or `limit` is negative.
    template <class Executor>
        requires boost::asio::execution::is_executor<Executor>::value
    StageSemaphore(Executor executor, std::ptrdiff_t limit)
        : state_(detail::make_queue<detail::SemaphoreState>("StageSemaphore", std::move(executor), limit)) {}

    ~StageSemaphore() { state_->abandon(); }

    StageSemaphore(const StageSemaphore&) = delete;
    StageSemaphore& operator=(const StageSemaphore&) = delete;

    class Acquisition;

    /// Waits for a slot. To be awaited at once, and once, in a coroutine of any type of executor; converts to an
    /// `asio::awaitable<Slot, E>` where one is asked for. One that is destroyed without having been awaited, moved from
    /// or converted is taken for forgotten, and asserts.
    ///
    /// Completes at once when a slot is free, and through the executor when it has to wait. Of many free ones in a row
    /// some go through the executor as well, lest a loop of them gives nobody else a turn. Slots are granted in the
    /// order in which they were asked for, but coroutines need not go on in that order: one that finds a slot free goes
    /// on at once, while one that was granted a slot before may have yet to resume.
    ///
    /// @throws boost::system::system_error with `operation_aborted` if the wait was cancelled, or the semaphore was
    /// closed or destroyed before it was granted a slot.
    ///
    /// @par Cancellation
    /// Terminal, partial, total. The waiter leaves the queue in O(1) and loses its place. One that is cancelled after
    /// it was granted a slot and before it resumes is cancelled too, and the slot goes to the next: until the coroutine
    /// runs again, cancellation wins. No cancellation loses or creates a slot.
    ///
    /// Which types reach the wait is decided by the coroutine: one that co_spawn started lets terminal cancellation
    /// alone through, unless it calls `this_coro::reset_cancellation_state`. A coroutine that was cancelled earlier and
    /// goes on, by `this_coro::throw_if_cancelled(false)`, waits like any other: only a cancellation during the wait
    /// ends it.
    ///
    /// @note With Boost 1.83, race coroutines that acquire inside a coroutine or by with_task_group(): from a
    /// `make_parallel_group` of `co_spawn`s that is made outside the event loop, `operation_aborted` escapes into it,
    /// when the first of them takes a free slot and those that have not begun are cancelled.
    ///
    /// @par Complexity
    /// O(1), no allocation beside the cancellation slot's entry.
    Acquisition acquire() noexcept;

    /// Takes a slot if one is free and nobody waits; else, and when closed, gives an empty Slot. O(1).
    Slot try_acquire() noexcept { return state_->try_take() ? Slot(state_) : Slot(); }

    /// Changes the limit. Raising it resumes exactly as many waiters as there are new slots; lowering it takes no slot
    /// away: while `active() > limit()` slots that come back are not handed on.
    /// @throws std::invalid_argument if `limit` is negative; nothing has changed then.
    void set_limit(std::ptrdiff_t limit) { state_->set_limit(limit); }

    /// Ends every wait, and every later acquire(), with `operation_aborted`. Slots that are out, or granted, still come
    /// back. Closing again does nothing.
    void close() noexcept { state_->close(); }

    std::ptrdiff_t limit() const noexcept { return state_->limit(); }

    /// Slots that are out; those granted to a coroutine that has yet to resume count.
    std::ptrdiff_t active() const noexcept { return state_->active(); }

    /// Coroutines that wait and have not been granted a slot.
    std::size_t waiting() const noexcept { return state_->waiting(); }

    /// Empty once the execution context has been destroyed.
    executor_type get_executor() const { return state_->get_executor(); }

private:
    friend struct detail::SemaphoreAccess;

    boost::intrusive_ptr<detail::SemaphoreState> state_;
};

/// What StageSemaphore::acquire() gives: an asynchronous operation that gives a Slot.
class [[nodiscard]] StageSemaphore::Acquisition : public detail::Operation<Acquisition, Slot> {
public:
    /// Moves an operation that has yet to be awaited.
    Acquisition(Acquisition&& other) noexcept : state_(std::move(other.state_)) { take_over(other); }

private:
    friend class StageSemaphore;
    friend Operation;

    static void check_awaited(bool awaited) noexcept {
        BOOST_ASSERT_MSG(awaited,
                         "sluice::StageSemaphore: acquire() was called and not awaited, so that no slot is held: write "
                         "Slot slot = co_await semaphore.acquire();");
        static_cast<void>(awaited);
    }

    explicit Acquisition(boost::intrusive_ptr<detail::SemaphoreState> state) noexcept : state_(std::move(state)) {}

    template <class Handler>
    void start(Handler&& handler) {
        using detail::Outcome;
        if (state_->try_take()) {
            waiter_.outcome = Outcome::granted;
        } else if (state_->closed()) {
            waiter_.outcome = Outcome::closed;
        }
        complete_or_enter(*state_, waiter_, std::forward<Handler>(handler));
    }

    // This object is gone when the handler returns; the handler does not lie in it.
    template <class Handler>
    void complete(Handler&& handler) {
        if (waiter_.outcome == detail::Outcome::granted) {
            std::forward<Handler>(handler)(std::exception_ptr(), Slot(std::move(state_)));
        } else {
            const boost::system::system_error aborted(boost::asio::error::operation_aborted,
                                                      waiter_.outcome == detail::Outcome::closed
                                                          ? "StageSemaphore::acquire: the semaphore was closed"
                                                          : "StageSemaphore::acquire");
            std::forward<Handler>(handler)(std::make_exception_ptr(aborted), Slot());
        }
    }

    boost::intrusive_ptr<detail::SemaphoreState> state_;
    detail::Waiter waiter_;
};

inline StageSemaphore::Acquisition StageSemaphore::acquire() noexcept { return Acquisition(state_); }

namespace detail {

// For those that must know what became of a semaphore when it may have been destroyed.
struct SemaphoreAccess {
    static const boost::intrusive_ptr<SemaphoreState>& state(const StageSemaphore& semaphore) noexcept {
        return semaphore.state_;
    }
};

}  // namespace detail

}  // namespace sluice
