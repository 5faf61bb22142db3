// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"

#include <sluice/stage_semaphore.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <vector>

namespace properties {

/// Coroutines acquire, hold, release and are cancelled while the limit changes and the semaphore is closed or
/// destroyed.
inline void check_semaphore(Choices& choices) {
    InterleavingContext context([&](std::size_t n) { return choices.below(n); });
    auto limit = static_cast<std::ptrdiff_t>(choices.below(4));
    std::optional<sluice::StageSemaphore> semaphore(std::in_place, context.get_executor(), limit);
    Actors actors(context.get_executor());

    std::ptrdiff_t held = 0;
    std::size_t queued = 0;           // how many have asked for a slot so far
    std::vector<std::size_t> served;  // of those that had to wait, in which order they went on
    bool closed = false;

    const auto worker = [&]() -> asio::awaitable<void> {
        for (std::size_t rounds = 1 + choices.below(3); rounds != 0; --rounds) {
            co_await pause(choices);
            if (!semaphore) {
                co_return;
            }
            sluice::Slot slot;
            if (choices.one_in(4)) {
                const bool free = !closed && semaphore->active() < semaphore->limit() && semaphore->waiting() == 0;
                slot = semaphore->try_acquire();
                require(static_cast<bool>(slot) == free, "try_acquire is wrong about a free slot");
                if (!slot) {
                    continue;
                }
            } else {
                const bool waits = semaphore->active() >= semaphore->limit();
                const std::size_t ticket = queued++;
                slot = co_await semaphore->acquire();
                require(static_cast<bool>(slot), "acquire gave an empty slot");
                if (waits) {
                    served.push_back(ticket);
                }
            }
            ++held;
            const struct Held {
                std::ptrdiff_t& count;
                ~Held() { --count; }
            } counted{held};
            require(!semaphore || held <= semaphore->active(), "more slots are held than are counted");
            co_await pause(choices);
            if (choices.one_in(3)) {
                slot.release();
                require(!slot, "a released slot is not empty");
            }
        }
    };
    const std::size_t workers = 1 + choices.below(8);
    for (std::size_t i = 0; i < workers; ++i) {
        actors.start(worker);
    }

    std::ptrdiff_t most = limit;  // the highest limit since the semaphore was last within it
    for (std::size_t steps = 0; steps < 400 && context.run_one(); ++steps) {
        if (semaphore) {
            require(semaphore->active() <= most, "the limit was exceeded");
            if (semaphore->active() <= limit) {
                most = limit;
            }
            if (choices.one_in(12)) {
                limit = static_cast<std::ptrdiff_t>(choices.below(4));
                most = std::max(most, limit);
                semaphore->set_limit(limit);
                require(semaphore->active() >= limit || semaphore->waiting() == 0 || closed,
                        "a free slot and a waiter at the same time");
            }
            if (choices.one_in(100)) {
                semaphore->close();
                closed = true;
                require(semaphore->waiting() == 0, "closing left a waiter");
            }
            if (choices.one_in(150)) {
                semaphore.reset();
            }
        }
        if (choices.one_in(8)) {
            actors.cancel_one(choices);
        }
    }
    if (semaphore) {
        semaphore->set_limit(8);
    }
    context.run();

    actors.check();
    require(held == 0, "a slot is held by nobody");
    if (semaphore) {
        require(semaphore->active() == 0, "a slot was lost");
        require(semaphore->waiting() == 0, "a waiter was lost");
    }
    for (std::size_t i = 1; i < served.size(); ++i) {
        require(served[i - 1] < served[i], "somebody was overtaken");
    }
}

}  // namespace properties
