// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/testing/interleaving.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
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
#include <utility>

namespace properties {

namespace asio = boost::asio;
using sluice::testing::InterleavingContext;
using sluice::testing::VirtualTimer;

/// Where the decisions of a run come from: a seed, or the bytes of a fuzzer.
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
            return n - 1;  // so that nothing out of the ordinary happens any more
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

/// Ends the run: a property does not hold.
inline void require(bool holds, const std::string& what) {
    if (!holds) {
        throw std::logic_error(what);
    }
}

/// Coroutines that must each end exactly once, and may be cancelled meanwhile.
class Actors {
public:
    explicit Actors(asio::any_io_executor executor) : executor_(std::move(executor)) {}

    /// Starts `function`, which gives an awaitable<void> and is kept as long as its coroutine. An exception other than
    /// operation_aborted makes check() fail.
    template <class Function>
    void start(Function function) {
        Actor& actor = actors_.emplace_back();
        asio::co_spawn(
            executor_,
            [&actor, function = std::move(function)]() mutable -> asio::awaitable<void> {
                co_await asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
                actor.started = true;
                co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
                co_await function();
            },
            asio::bind_cancellation_slot(actor.signal.slot(), [&actor](const std::exception_ptr& error) {
                ++actor.ends;
                if (error) {
                    try {
                        std::rethrow_exception(error);
                    } catch (const boost::system::system_error& e) {
                        if (e.code() != asio::error::operation_aborted) {
                            actor.problem = e.what();
                        }
                    } catch (const std::exception& e) {
                        actor.problem = e.what();
                    }
                }
            }));
    }

    std::size_t size() const { return actors_.size(); }

    void cancel(std::size_t i, asio::cancellation_type type = asio::cancellation_type::terminal) {
        if (actors_[i].started && actors_[i].ends == 0) {
            actors_[i].signal.emit(type);
        }
    }

    void cancel_one(Choices& choices) {
        constexpr asio::cancellation_type types[] = {asio::cancellation_type::terminal,
                                                     asio::cancellation_type::partial, asio::cancellation_type::total};
        cancel(choices.below(actors_.size()), types[choices.below(3)]);
    }

    /// Every one of them has ended, once, and as it should.
    void check() const {
        for (const Actor& actor : actors_) {
            require(actor.ends == 1, "an actor ended " + std::to_string(actor.ends) + " times");
            require(actor.problem.empty(), "an actor failed: " + actor.problem);
        }
    }

private:
    struct Actor {
        asio::cancellation_signal signal;
        bool started = false;
        int ends = 0;
        std::string problem;
    };

    asio::any_io_executor executor_;
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
