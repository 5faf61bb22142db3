// SPDX-License-Identifier: BSL-1.0
// The peers of StageSemaphore and Barrier, as a competent user of Asio would write them.
#pragma once

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/basic_waitable_timer.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/experimental/channel.hpp>
#include <boost/system/error_code.hpp>

#include <chrono>
#include <cstddef>

namespace benchmark {

namespace asio = boost::asio;

/// A channel with capacity for as many messages as there are slots: sending takes a slot, receiving returns it. First
/// come, first served. The signature is the one that Asio documents.
template <class Executor>
class ChannelSemaphore {
public:
    ChannelSemaphore(Executor executor, std::size_t limit) : slots_(executor, limit) {}

    bool try_acquire() { return slots_.try_send(boost::system::error_code()); }

    /// The operation itself, without a coroutine around it.
    auto async_acquire() { return slots_.async_send(boost::system::error_code(), asio::deferred); }

    asio::awaitable<void, Executor> acquire() {
        if (!try_acquire()) {
            co_await async_acquire();
        }
    }

    void release() {
        slots_.try_receive([](boost::system::error_code) {});
    }

private:
    asio::experimental::channel<Executor, void(boost::system::error_code)> slots_;
};

/// The same with messages without content, which a channel only counts.
template <class Executor>
class EmptyChannelSemaphore {
public:
    EmptyChannelSemaphore(Executor executor, std::size_t limit) : slots_(executor, limit) {}

    bool try_acquire() { return slots_.try_send(); }

    asio::awaitable<void, Executor> acquire() {
        if (!try_acquire()) {
            co_await slots_.async_send(asio::deferred);
        }
    }

    void release() {
        slots_.try_receive([](auto&&...) {});
    }

private:
    asio::experimental::channel<Executor, void()> slots_;
};

template <class Executor>
using Timer =
    asio::basic_waitable_timer<std::chrono::steady_clock, asio::wait_traits<std::chrono::steady_clock>, Executor>;

/// A timer that never expires, as a condition variable. Not fair: a newcomer may overtake a woken waiter.
template <class Executor>
class TimerSemaphore {
public:
    TimerSemaphore(Executor executor, std::size_t limit)
        : free_(limit), released_(executor, std::chrono::steady_clock::time_point::max()) {}

    asio::awaitable<void, Executor> acquire() {
        while (free_ == 0) {
            co_await released_.async_wait(asio::as_tuple(asio::deferred));
        }
        --free_;
    }

    void release() {
        ++free_;
        released_.cancel_one();
    }

private:
    std::size_t free_;
    Timer<Executor> released_;
};

/// The same for a barrier. cancel() wakes exactly the current waiters, so phases stay apart.
template <class Executor>
class TimerBarrier {
public:
    TimerBarrier(Executor executor, std::ptrdiff_t parties)
        : parties_(parties), complete_(executor, std::chrono::steady_clock::time_point::max()) {}

    asio::awaitable<void, Executor> arrive_and_wait() {
        if (++arrived_ == parties_) {
            arrived_ = 0;
            complete_.cancel();
        } else {
            co_await complete_.async_wait(asio::as_tuple(asio::deferred));
        }
    }

private:
    std::ptrdiff_t parties_;
    std::ptrdiff_t arrived_ = 0;
    Timer<Executor> complete_;
};

}  // namespace benchmark
