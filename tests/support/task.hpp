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
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>

#include <chrono>
#include <cstddef>
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

/// Whether an exception is a system_error with operation_aborted.
inline bool is_aborted(const std::exception_ptr& error) {
    try {
        if (error) {
            std::rethrow_exception(error);
        }
    } catch (const boost::system::system_error& e) {
        return e.code() == asio::error::operation_aborted;
    } catch (...) {
    }
    return false;
}

/// A coroutine started by a test: how it ended, and a way to cancel it. May be destroyed before its coroutine.
///
/// It begins when the context runs; nothing happens inside the constructor. Do not cancel it before it begins: with
/// Boost 1.83 the exception would escape into the event loop.
template <class T = void>
class Task {
public:
    /// `function` returns an awaitable<T>, and lives as long as its coroutine.
    template <class Function>
    Task(const asio::any_io_executor& executor, Function function) {
        asio::co_spawn(executor, run(std::move(function), state_),
                       asio::bind_cancellation_slot(state_->signal.slot(), End{state_}));
    }

    void cancel(asio::cancellation_type type = asio::cancellation_type::terminal) { state_->signal.emit(type); }

    bool done() const { return state_->ends == 1; }
    int ends() const { return state_->ends; }
    bool succeeded() const { return done() && state_->value.has_value() && !state_->error; }

    /// The value that it returned; only if it succeeded.
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
    bool aborted() const { return done() && is_aborted(state_->error); }

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

    // Only this depends on the type of the function, since co_spawn is slow to compile.
    template <class Function>
    static asio::awaitable<void> run(Function function, std::shared_ptr<State> state) {
        // By default a coroutine lets only terminal cancellation through.
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

/// Waits until it is cancelled.
inline asio::awaitable<void> wait_forever() {
    asio::steady_timer timer(co_await asio::this_coro::executor, asio::steady_timer::time_point::max());
    co_await timer.async_wait(asio::deferred);
}

/// Lets every other ready handler run first.
inline asio::awaitable<void> yield() { co_await asio::post(co_await asio::this_coro::executor, asio::deferred); }

/// Runs all handlers that are or become ready, and returns their number.
inline std::size_t poll(asio::io_context& context) {
    context.restart();
    return context.poll();
}

/// Runs one handler, or advances virtual time to the next wait. Returns false if nothing is left to do.
inline bool step(asio::io_context& context) {
    context.restart();
    return context.poll_one() != 0 || VirtualTime::of(context).advance();
}

/// Takes `n` steps; returns false if there were fewer.
inline bool steps(asio::io_context& context, int n) {
    while (n-- > 0) {
        if (!step(context)) {
            return false;
        }
    }
    return true;
}

}  // namespace test
