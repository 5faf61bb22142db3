// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/bitwise_copy.hpp>
#include <sluice/sync/detail/semaphore_state.hpp>

#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <utility>

namespace sluice {

/// One of a StageSemaphore's slots, or empty. Move-only.
///
/// The slot is returned when the object is released, assigned to or destroyed, which must happen on the semaphore's
/// thread or strand. It may outlive the semaphore and the execution context. Returning a slot posts at most one
/// handler; if memory for that is exhausted, the program terminates.
///
/// @par g++ 12
/// g++ 12 miscompiles these shapes: it makes a bitwise copy of a slot, and returns the original at the end of the full
/// expression.
/// @li a conditional expression as initialiser, operand or argument: `free ? Slot() : co_await semaphore.acquire()`;
/// @li the braces of an aggregate, an array or an initializer list: `Aggregate{co_await semaphore.acquire(), 1}`;
/// @li an init-capture: `[slot = co_await semaphore.acquire()] {}`;
/// @li a new-expression: `new Slot(co_await semaphore.acquire())`;
/// @li a conditional expression of operations, whose operation is copied: `co_await (free ? a.acquire() :
/// b.acquire())`.
///
/// Any use of such a copy, including its destruction, prints a message and terminates in every build mode, since a
/// limit must not be exceeded silently. Name the slot first, then move it: `Slot slot = co_await semaphore.acquire();`
class [[nodiscard]] Slot {
public:
    Slot() noexcept = default;

    Slot(Slot&& other) noexcept : semaphore_(std::move(other.own())) {}
    Slot& operator=(Slot&& other) noexcept {
        Slot moved(std::move(other));
        moved.semaphore_.swap(own());
        return *this;
    }
    ~Slot() {
        if (semaphore_) {
            own()->give_back();
        }
    }

    /// Returns the slot early; the coroutine that has waited longest gets it. Does nothing if this is empty. O(1).
    void release() noexcept {
        if (const auto semaphore = std::exchange(own(), nullptr)) {
            semaphore->give_back();
        }
    }

    explicit operator bool() const noexcept {
        check();
        return semaphore_ != nullptr;
    }

private:
    friend class StageSemaphore;

    // Adopts a slot that has been counted already.
    explicit Slot(boost::intrusive_ptr<detail::SemaphoreState> semaphore) noexcept : semaphore_(std::move(semaphore)) {}

    void check() const noexcept {
        if (address_.is_bitwise_copy() && semaphore_) [[unlikely]] {
            detail::ConstructedAt::terminate(
                "sluice::Slot: a bitwise copy, which holds no slot, such as g++ 12 makes of `co_await acquire()` in a "
                "conditional expression, in the braces of an aggregate, in a capture or in a new-expression; name the "
                "slot first: Slot slot = co_await semaphore.acquire();");
        }
    }

    boost::intrusive_ptr<detail::SemaphoreState>& own() noexcept {
        if (address_.is_bitwise_copy()) [[unlikely]] {
            check();
            address_.reset();  // a copy of an empty slot is harmless
        }
        return semaphore_;
    }

    boost::intrusive_ptr<detail::SemaphoreState> semaphore_;
    detail::ConstructedAt address_;
};

}  // namespace sluice
