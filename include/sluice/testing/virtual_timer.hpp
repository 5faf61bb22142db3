// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/testing/virtual_time.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/query.hpp>
#include <boost/system/error_code.hpp>

#include <cstddef>
#include <utility>

namespace sluice::testing {

/// A replacement for `asio::steady_timer` on virtual time.
///
/// It expires only where something advances virtual time: run(), run_until_stalled(), an InterleavingContext, or
/// VirtualTime::advance(). `io_context::run()` does not, and waits forever.
///
/// @par Thread safety
/// Unsafe, even between distinct timers of one execution context: virtual time is for one thread.
class VirtualTimer {
public:
    using executor_type = boost::asio::any_io_executor;
    using clock_type = VirtualClock;
    using duration = clock_type::duration;
    using time_point = clock_type::time_point;

    template <class Executor>
    explicit VirtualTimer(Executor executor) : time_(&time_of(executor)), state_{std::move(executor), {}} {
        expiry_ = time_->now();
    }

    template <class Executor>
    VirtualTimer(Executor executor, duration after) : VirtualTimer(std::move(executor)) {
        expires_after(after);
    }

    ~VirtualTimer() { cancel(); }

    VirtualTimer(const VirtualTimer&) = delete;
    VirtualTimer& operator=(const VirtualTimer&) = delete;

    /// Returns the virtual time of a context, or of the executor's context.
    static time_point now(boost::asio::execution_context& context) { return VirtualTime::of(context).now(); }
    template <class Executor>
        requires boost::asio::execution::is_executor<Executor>::value
    static time_point now(const Executor& executor) {
        return time_of(executor).now();
    }

    /// Waits until the time of expiry. Never completes inside this call.
    ///
    /// @par Completion signature
    /// `void(boost::system::error_code)`
    /// @li success: the timer expired.
    /// @li `asio::error::operation_aborted`: the wait was cancelled, the expiry changed, or the timer destroyed.
    ///
    /// @par Cancellation
    /// Terminal, partial and total.
    template <boost::asio::completion_token_for<void(boost::system::error_code)> Token>
    auto async_wait(Token&& token) {
        return boost::asio::async_initiate<Token, void(boost::system::error_code)>(
            [](auto handler, VirtualTimer* timer) {
                timer->time_->add(timer->state_, timer->expiry_, std::move(handler));
            },
            token, this);
    }

    /// Sets the expiry, and cancels the waits for the old one. Returns their number.
    std::size_t expires_after(duration after) {
        const time_point now = time_->now();
        return expires_at(after > time_point::max() - now ? time_point::max() : now + after);
    }
    std::size_t expires_at(time_point at) {
        const std::size_t cancelled = cancel();
        expiry_ = at;
        return cancelled;
    }

    time_point expiry() const noexcept { return expiry_; }

    /// Cancels all waits on this timer. Returns their number.
    std::size_t cancel() { return state_.pending.empty() ? 0 : time_->cancel_all(state_); }

    executor_type get_executor() const { return state_.executor; }

private:
    template <class Executor>
    static VirtualTime& time_of(const Executor& executor) {
        return VirtualTime::of(boost::asio::query(executor, boost::asio::execution::context));
    }

    VirtualTime* time_;
    VirtualTime::TimerState state_;
    time_point expiry_;
};

}  // namespace sluice::testing
