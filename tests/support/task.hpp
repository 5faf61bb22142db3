// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/timer.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

namespace test {

namespace asio = boost::asio;
using sluice::testing::VirtualTime;
using sluice::testing::VirtualTimer;

/// A coroutine that a test started: how it ended, and a way to cancel it. May die before its coroutine.
///
/// It begins when the context is run; nothing happens inside the constructor. It must not be cancelled before then: on
/// Boost 1.83 that would escape into the event loop.
template <class T = void>
class Task {
public:
    /// `function` gives an awaitable<T> and lives as long as its coroutine.
    template <class Function>
    Task(const asio::any_io_executor& executor, Function function) {
        asio::co_spawn(executor, run(std::move(function), state_),
                       asio::bind_cancellation_slot(state_->signal.slot(), End{state_}));
    }

    void cancel(asio::cancellation_type type = asio::cancellation_type::terminal) { state_->signal.emit(type); }

    bool done() const { return state_->ends == 1; }
    int ends() const { return state_->ends; }
    bool succeeded() const { return done() && state_->value.has_value() && !state_->error; }

    /// What it gave; only if it succeeded.
    auto& value() { return state_->value.value(); }

    template <class Exception>
    bool failed_with() const {
        if (!done() || !state_->error) {
            return false;
        }
        try {
            std::rethrow_exception(state_->error);
        } catch (const Exception&) {
            return true;
        } catch (...) {
            return false;
        }
    }

    /// Whether it ended with operation_aborted.
    bool aborted() const {
        if (!done() || !state_->error) {
            return false;
        }
        try {
            std::rethrow_exception(state_->error);
        } catch (const boost::system::system_error& error) {
            return error.code() == asio::error::operation_aborted;
        } catch (...) {
            return false;
        }
    }

    std::exception_ptr error() const { return state_->error; }

private:
    struct State {
        asio::cancellation_signal signal;
        std::optional<std::conditional_t<std::is_void_v<T>, bool, T>> value;
        std::exception_ptr error;
        int ends = 0;
    };

    struct End {
        std::shared_ptr<State> state;

        void operator()(const std::exception_ptr& error) const {
            state->error = error;
            ++state->ends;
        }
    };

    // All that depends on the type of the function: co_spawn costs far more to compile.
    template <class Function>
    static asio::awaitable<void> run(Function function, std::shared_ptr<State> state) {
        // Total cancellation as well: by default a coroutine lets only the terminal one through.
        co_await asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
        if constexpr (std::is_void_v<T>) {
            co_await function();
            state->value.emplace(true);
        } else {
            state->value.emplace(co_await function());
        }
    }

    std::shared_ptr<State> state_ = std::make_shared<State>();
};

/// Waits in virtual time.
inline asio::awaitable<void> sleep(std::chrono::nanoseconds duration) {
    return sluice::sleep_for<VirtualTimer>(duration);
}

/// Gives every other ready handler a turn.
inline asio::awaitable<void> yield() { co_await asio::post(co_await asio::this_coro::executor, asio::deferred); }

/// Runs one handler, or moves time on to the next wait; false if nothing is left to do.
inline bool step(asio::io_context& context) {
    context.restart();
    return context.poll_one() != 0 || VirtualTime::of(context).advance();
}

}  // namespace test
