// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/intrusive_list.hpp>

#include <boost/asio/cancellation_signal.hpp>

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

namespace sluice::detail {

class WaitQueue;

// How a wait stands or ended.
enum class Outcome : std::uint8_t {
    waiting,  // not decided
    granted,  // got what it waited for
    aborted,  // cancelled
    closed,   // the primitive was closed or destroyed
    broken,   // the barrier broke
};

// One suspended coroutine. Lives in that coroutine's own frame, so waiting allocates nothing; the frame is owned by the
// completion handler kept here, which is why the handler is always moved out before it runs or dies.
class Waiter : public ListHook {
public:
    WaitQueue* queue = nullptr;
    Outcome outcome = Outcome::waiting;

    template <class Handler>
    void store(Handler&& handler, boost::asio::cancellation_slot cancellation) {
        using Stored = std::decay_t<Handler>;
        static_assert(sizeof(Stored) <= sizeof(storage_) && alignof(Stored) <= alignof(void*));
        static_assert(std::is_nothrow_move_constructible_v<Stored>);
        cancellation_ = cancellation;
        ::new (static_cast<void*>(storage_)) Stored(std::forward<Handler>(handler));
        finish_ = [](std::byte* storage, bool resume) {
            Stored& stored = *std::launder(reinterpret_cast<Stored*>(storage));
            Stored moved(std::move(stored));
            stored.~Stored();  // NOLINT(bugprone-use-after-move): this is what is left to do
            if (resume) {
                std::move(moved)();
            }
        };
    }

    // Runs the coroutine on from where it waits; its own handler clears the cancellation slot. Nothing may touch this
    // object afterwards.
    void resume() { finish_(storage_, true); }

    // From here on no cancellation comes through.
    void disconnect() noexcept {
        auto cancellation = std::exchange(cancellation_, {});  // what lies in the slot calls forget_slot()
        cancellation.clear();
    }

    // The signal behind the slot is gone, or has another handler: the slot must not be touched any more.
    void forget_slot() noexcept { cancellation_ = {}; }

    // Lets go of the coroutine without running it: Asio destroys its frame, and this object with it, now or later.
    void drop() { finish_(storage_, false); }

private:
    alignas(void*) std::byte storage_[4 * sizeof(void*)];
    void (*finish_)(std::byte*, bool) = nullptr;
    boost::asio::cancellation_slot cancellation_;
};

}  // namespace sluice::detail
