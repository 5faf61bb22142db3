// SPDX-License-Identifier: BSL-1.0
// The loops that the rows about primitives measure. Each turn is one operation.
#pragma once

#include "limiters.hpp"

#include <sluice/sync/barrier.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>

#include <algorithm>
#include <cstddef>
#include <utility>

namespace benchmark {

/// The activity of a coroutine while it holds a slot.
enum class Holding { nothing, one_post };

/// The base of all loops: the executor, and a record of the work, to be checked afterwards.
template <class AnExecutor, Holding holding = Holding::one_post>
class Loop {
public:
    using executor_type = AnExecutor;

    std::size_t turns() const noexcept { return turns_; }

    /// The greatest number of coroutines that held a slot at once.
    std::size_t most_inside() const noexcept { return most_inside_; }

protected:
    using Executor = AnExecutor;

    explicit Loop(Executor executor) : executor_(std::move(executor)) {}

    auto post() const { return asio::post(executor_, asio::deferred); }

    void enter() noexcept { most_inside_ = std::max(most_inside_, ++inside_); }
    void leave() noexcept {
        --inside_;
        ++turns_;
    }

    static constexpr bool posts = holding == Holding::one_post;

private:
    Executor executor_;
    std::size_t inside_ = 0;
    std::size_t most_inside_ = 0;
    std::size_t turns_ = 0;
};

/// The floor of everything that waits: the post alone.
template <class Executor>
class PostLoop : public Loop<Executor> {
public:
    PostLoop(Executor executor, std::size_t) : Loop<Executor>(std::move(executor)) {}

    asio::awaitable<void, Executor> operator()(std::size_t turns) {
        for (std::size_t i = 0; i < turns; ++i) {
            this->enter();
            co_await this->post();
            this->leave();
        }
    }
};

/// The floor of a wait that is over at once: awaiting a coroutine that does nothing.
template <class Executor>
class EmptyCoroutineLoop : public Loop<Executor> {
public:
    EmptyCoroutineLoop(Executor executor, std::size_t) : Loop<Executor>(std::move(executor)) {}

    asio::awaitable<void, Executor> operator()(std::size_t turns) {
        for (std::size_t i = 0; i < turns; ++i) {
            co_await empty();
            this->enter();
            this->leave();
        }
    }

private:
    static asio::awaitable<void, Executor> empty() { co_return; }
};

template <class Executor, Holding holding = Holding::one_post>
class SluiceLoop : public Loop<Executor, holding> {
public:
    SluiceLoop(Executor executor, std::size_t limit)
        : Loop<Executor, holding>(executor), semaphore_(executor, static_cast<std::ptrdiff_t>(limit)) {}

    asio::awaitable<void, Executor> operator()(std::size_t turns) {
        for (std::size_t i = 0; i < turns; ++i) {
            sluice::Slot slot = co_await semaphore_.acquire();
            this->enter();
            if constexpr (SluiceLoop::posts) {
                co_await this->post();
            }
            this->leave();
        }
    }

private:
    sluice::StageSemaphore semaphore_;
};

/// A semaphore with an acquire() to await, and a release().
template <template <class> class Semaphore, class Executor, Holding holding = Holding::one_post>
class SemaphoreLoop : public Loop<Executor, holding> {
public:
    SemaphoreLoop(Executor executor, std::size_t limit)
        : Loop<Executor, holding>(executor), semaphore_(executor, limit) {}

    asio::awaitable<void, Executor> operator()(std::size_t turns) {
        for (std::size_t i = 0; i < turns; ++i) {
            co_await semaphore_.acquire();
            this->enter();
            if constexpr (SemaphoreLoop::posts) {
                co_await this->post();
            }
            this->leave();
            semaphore_.release();
        }
    }

private:
    Semaphore<Executor> semaphore_;
};

/// A channel whose operations are in the loop itself, without an acquire() around them.
template <class Executor, Holding holding = Holding::one_post>
class InlineChannelLoop : public Loop<Executor, holding> {
public:
    InlineChannelLoop(Executor executor, std::size_t limit)
        : Loop<Executor, holding>(executor), semaphore_(executor, limit) {}

    asio::awaitable<void, Executor> operator()(std::size_t turns) {
        for (std::size_t i = 0; i < turns; ++i) {
            if (!semaphore_.try_acquire()) {
                co_await semaphore_.async_acquire();
            }
            this->enter();
            if constexpr (InlineChannelLoop::posts) {
                co_await this->post();
            }
            this->leave();
            semaphore_.release();
        }
    }

private:
    ChannelSemaphore<Executor> semaphore_;
};

/// A barrier with an arrive_and_wait() to await.
template <class Executor, class Barrier>
class BarrierLoop : public Loop<Executor> {
public:
    BarrierLoop(Executor executor, std::size_t parties)
        : Loop<Executor>(executor), barrier_(executor, static_cast<std::ptrdiff_t>(parties)) {}

    asio::awaitable<void, Executor> operator()(std::size_t phases) {
        for (std::size_t i = 0; i < phases; ++i) {
            this->enter();
            co_await barrier_.arrive_and_wait();
            this->leave();
        }
    }

private:
    Barrier barrier_;
};

}  // namespace benchmark
