// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <memory>
#include <random>
#include <span>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace properties {

namespace asio = boost::asio;
using sluice::testing::InterleavingContext;
using sluice::testing::VirtualTimer;

/// The source of the decisions of a run: a seed, or the bytes of a fuzzer.
class Choices {
public:
    explicit Choices(std::uint64_t seed) : random_(seed) {}
    explicit Choices(std::span<const std::uint8_t> bytes) : bytes_(bytes), from_bytes_(true) {}

    /// A number less than `n`, which is at least 1.
    std::size_t below(std::size_t n) {
        if (!from_bytes_) {
            return static_cast<std::size_t>(random_() % n);
        }
        if (bytes_.empty()) {
            return n - 1;  // so that nothing unusual happens from here on
        }
        const std::size_t byte = bytes_.front();
        bytes_ = bytes_.subspan(1);
        return byte % n;
    }

    bool one_in(std::size_t n) { return below(n) == 0; }

private:
    std::mt19937_64 random_;
    std::span<const std::uint8_t> bytes_;
    bool from_bytes_ = false;
};

/// Ends the run if a property does not hold.
inline void require(bool holds, std::string_view what) {
    if (!holds) {
        throw std::logic_error(std::string(what));
    }
}

/// Records the first expectation that does not hold, where an exception would be part of the run.
class Expectations {
public:
    void expect(bool holds, const char* what) {
        if (!holds && problem_.empty()) {
            problem_ = what;
        }
    }

    void check_expectations() const { require(problem_.empty(), problem_); }

private:
    std::string problem_;
};

/// A random type of cancellation.
inline asio::cancellation_type some_cancellation(Choices& choices) {
    return static_cast<asio::cancellation_type>(1U << choices.below(3));
}

/// A coroutine of a run.
struct Actor {
    asio::cancellation_signal signal;
    bool started = false;
    bool cancelled = false;  // since it started
    int ends = 0;
    bool aborted = false;  // ended with operation_aborted

    /// Returns false if it is not running.
    bool cancel(asio::cancellation_type type) {
        if (!started || ends != 0) {
            return false;
        }
        cancelled = true;
        signal.emit(type);
        return true;
    }
};

/// Coroutines that must each end exactly once, and may be cancelled.
///
/// Declare it, and everything that the coroutines refer to, before the context: if a property does not hold, the
/// coroutines that still wait are destroyed with the context.
class Actors {
public:
    /// Starts a coroutine. `function` is called with its Actor, returns an awaitable<void>, and lives as long as the
    /// coroutine.
    template <class Function>
    void start(const asio::any_io_executor& executor, Function function) {
        Actor& actor = actors_.emplace_back();
        asio::co_spawn(
            executor,
            [&actor, function = std::move(function)]() mutable -> asio::awaitable<void> {
                co_await asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
                actor.started = true;
                co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
                co_await function(actor);
            },
            asio::bind_cancellation_slot(actor.signal.slot(), [&actor](const std::exception_ptr& error) {
                ++actor.ends;
                if (error) {
                    try {
                        std::rethrow_exception(error);
                    } catch (const boost::system::system_error& e) {
                        if (e.code() != asio::error::operation_aborted) {
                            throw;
                        }
                        actor.aborted = true;
                    }
                }
            }));
    }

    /// Cancels a random one with a random type, if it is running. Returns it, or null if it was not running.
    Actor* cancel_one(Choices& choices) {
        Actor& actor = actors_[choices.below(actors_.size())];
        return actor.cancel(some_cancellation(choices)) ? &actor : nullptr;
    }

    /// Requires that each has ended once, and that only cancelled ones were aborted.
    void check() const {
        for (const Actor& actor : actors_) {
            require(actor.ends == 1, "an actor ended " + std::to_string(actor.ends) + " times");
            require(!actor.aborted || actor.cancelled, "an actor was aborted without a cancellation");
        }
    }

private:
    std::deque<Actor> actors_;
};

inline asio::awaitable<void> pause(Choices& choices) {
    const auto executor = co_await asio::this_coro::executor;
    for (std::size_t n = choices.below(3); n != 0; --n) {
        co_await asio::post(executor, asio::deferred);
    }
    if (choices.one_in(3)) {
        VirtualTimer timer(executor, std::chrono::nanoseconds(choices.below(20)));
        co_await timer.async_wait(asio::deferred);
    }
}

}  // namespace properties
