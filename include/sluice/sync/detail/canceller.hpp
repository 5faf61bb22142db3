// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>

#include <utility>

namespace sluice::detail {

// Cancels a coroutine once, with every type of cancellation: whatever else happens, its clean-up is not disturbed. See
// cancelled_by().
class Canceller {
public:
    Canceller() noexcept = default;

    Canceller(const Canceller&) = delete;  // what the coroutine waits for holds its address
    Canceller& operator=(const Canceller&) = delete;

    // The coroutine may end inside this call, and with it this object. If a user's cancellation handler throws, the
    // program terminates.
    void cancel() noexcept {
        if (cancellable()) {
            cancelled_ = true;
            signal_.emit(boost::asio::cancellation_type::all);
        }
    }

    // The same for a cancellation that reached the awaiting coroutine.
    void cancel_from_outside() noexcept {
        cancelled_from_outside_ = true;
        cancel();
    }

    // The coroutine has ended, and the one that awaits it is about to resume: it is too late to cancel it.
    void ended() noexcept { ended_ = true; }

    bool cancellable() const noexcept { return !cancelled_ && !ended_; }
    bool cancelled() const noexcept { return cancelled_; }

    // Also if it had been cancelled already.
    bool cancelled_from_outside() const noexcept { return cancelled_from_outside_; }

    boost::asio::cancellation_slot slot() noexcept { return signal_.slot(); }

private:
    boost::asio::cancellation_signal signal_;
    bool cancelled_ = false;
    bool cancelled_from_outside_ = false;
    bool ended_ = false;
};

// Passes a cancellation on to a Canceller. The signal that it listens to may be destroyed first.
class CancellationRelay {
public:
    CancellationRelay() noexcept = default;
    ~CancellationRelay() { disconnect(); }

    CancellationRelay(const CancellationRelay&) = delete;
    CancellationRelay& operator=(const CancellationRelay&) = delete;

    void connect(boost::asio::cancellation_slot slot, Canceller& canceller) {
        if (slot.is_connected()) {
            slot.emplace<OnCancel>(*this, canceller);
            slot_ = slot;
        }
    }

    void disconnect() noexcept {
        auto slot = std::exchange(slot_, {});
        slot.clear();
    }

    // Whether the signal was destroyed while this was connected to it.
    bool signal_gone() const noexcept { return signal_gone_; }

private:
    class OnCancel {
    public:
        OnCancel(CancellationRelay& relay, Canceller& canceller) noexcept : relay_(relay), canceller_(canceller) {}
        ~OnCancel() {
            relay_.signal_gone_ = relay_.slot_.is_connected();
            relay_.slot_ = {};
        }

        OnCancel(const OnCancel&) = delete;
        OnCancel& operator=(const OnCancel&) = delete;

        void operator()(boost::asio::cancellation_type type) const noexcept {
            using boost::asio::cancellation_type;
            if ((type & (cancellation_type::terminal | cancellation_type::partial | cancellation_type::total)) !=
                cancellation_type::none) {
                canceller_.cancel_from_outside();  // which may destroy this object
            }
        }

    private:
        CancellationRelay& relay_;
        Canceller& canceller_;
    };

    boost::asio::cancellation_slot slot_;  // connected while OnCancel is in it
    bool signal_gone_ = false;
};

}  // namespace sluice::detail
