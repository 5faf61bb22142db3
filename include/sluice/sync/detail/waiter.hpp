// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/intrusive_list.hpp>

#include <boost/asio/cancellation_signal.hpp>

#include <cstddef>
#include <cstdint>
#include <new>
#include <type_traits>
#include <utility>

namespace sluice::detail {

class WaitQueue;

// The state of a wait.
enum class WaitOutcome : std::uint8_t {
    waiting,  // undecided
    granted,  // got what it waited for
    aborted,  // cancelled
    closed,   // the primitive was closed or destroyed
    broken,   // the barrier broke
    refused,  // by the line of an endpoint
};

// One suspended coroutine. Lives in that coroutine's own frame, so waiting allocates nothing. The completion handler
// stored here owns the frame, and is therefore always moved out before it runs or is destroyed.
class Waiter : public ListHook {
public:
    WaitQueue* queue = nullptr;
    WaitOutcome outcome = WaitOutcome::waiting;

    // In the line of an endpoint.
    bool is_line_waiter = false;
    bool is_line_entry = false;
    bool returns = false;      // to the place of its ticket
    std::uint32_t ticket = 0;  // its place in the order of arrival

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
            stored.~Stored();  // NOLINT(bugprone-use-after-move): nothing else is done with it
            if (resume) {
                std::move(moved)();
            }
        };
    }

    // Resumes the coroutine, whose own handler clears the cancellation slot. Nothing may use this object afterwards.
    void resume() { finish_(storage_, true); }

    // Ends the connection to the cancellation signal.
    void disconnect() noexcept {
        auto cancellation = std::exchange(cancellation_, {});  // the handler in the slot calls forget_slot()
        cancellation.clear();
    }

    // The slot's signal is gone or has another handler: the slot must not be used any more.
    void forget_slot() noexcept { cancellation_ = {}; }

    // Drops the coroutine without resuming it: Asio destroys its frame, and this object with it, now or later.
    void drop() { finish_(storage_, false); }

private:
    alignas(void*) std::byte storage_[4 * sizeof(void*)];
    void (*finish_)(std::byte*, bool) = nullptr;
    boost::asio::cancellation_slot cancellation_;
};

}  // namespace sluice::detail
