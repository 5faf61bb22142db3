// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/wait_queue.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>

#include <utility>

namespace sluice::detail {

// Cancels the waits of one coroutine, and of those that it awaits, for as long as they have the cancellation state that
// this has made. Asio allocates memory for the handler that cancels a wait, anew for each. This needs none.
//
// It is told of a cancellation by the filter of that state. It learns from the filter's destruction that the state was
// replaced.
class WaitCanceller {
public:
    WaitCanceller() noexcept = default;
    WaitCanceller(const WaitCanceller&) = delete;
    WaitCanceller& operator=(const WaitCanceller&) = delete;

    // Returns a cancellation state that lets terminal cancellation through, as a coroutine's does by default. The
    // signal of `parent` must be destroyed before this.
    boost::asio::cancellation_state connect(boost::asio::cancellation_slot parent) {
        const boost::asio::cancellation_state state(parent, Filter(*this), boost::asio::enable_terminal_cancellation());
        slot_ = state.slot();
        return state;
    }

    // `waiter` is about to wait, in a coroutine whose cancellation state has this slot. Returns whether this cancels
    // the wait, until it has called end().
    bool begin(Waiter& waiter, const boost::asio::cancellation_slot& slot) noexcept {
        if (!slot_.is_connected() || slot_ != slot) {
            return false;
        }
        waiter_ = &waiter;
        return true;
    }
    void end() noexcept { waiter_ = nullptr; }

private:
    class Filter {
    public:
        explicit Filter(WaitCanceller& canceller) noexcept : canceller_(&canceller) {}
        Filter(Filter&& other) noexcept : canceller_(std::exchange(other.canceller_, nullptr)) {}
        ~Filter() {
            if (canceller_) {
                canceller_->slot_ = {};
            }
        }

        boost::asio::cancellation_type operator()(boost::asio::cancellation_type type) const {
            const boost::asio::cancellation_type passed = type & boost::asio::cancellation_type::terminal;
            if (passed != boost::asio::cancellation_type::none && canceller_->waiter_) {
                canceller_->waiter_->queue->cancel(*canceller_->waiter_);
            }
            return passed;
        }

    private:
        WaitCanceller* canceller_;
    };

    Waiter* waiter_ = nullptr;             // that waits
    boost::asio::cancellation_slot slot_;  // of the state, until that is replaced
};

}  // namespace sluice::detail
