// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"

#include <sluice/sync/stage_semaphore.hpp>

#include <algorithm>
#include <cstddef>
#include <deque>
#include <iterator>
#include <optional>
#include <string>
#include <utility>

namespace properties {

/// The holders of slots and the waiters, as StageSemaphore documents them.
struct SemaphoreModel {
    std::ptrdiff_t limit = 0;
    std::ptrdiff_t held = 0;
    std::deque<const Actor*> granted;  // have a slot and have not resumed, in this order
    std::deque<const Actor*> waiting;  // first come, first served
    bool closed = false;               // or destroyed

    std::ptrdiff_t active() const { return held + std::ssize(granted); }
    bool has_free() const { return !closed && active() < limit && waiting.empty(); }
    void hand_over() {
        for (; !waiting.empty() && active() < limit; waiting.pop_front()) {
            granted.push_back(waiting.front());
        }
    }
    void cancel(const Actor* actor) {
        std::erase(waiting, actor);
        std::erase(granted, actor);
        hand_over();
    }

    /// At most one slot, which is returned in the destructor.
    struct Held {
        SemaphoreModel& model;
        std::ptrdiff_t slots = 0;

        ~Held() { release(); }
        void take() { model.held += ++slots; }
        void release() {
            model.held -= std::exchange(slots, 0);
            model.hand_over();
        }
    };
};

/// Coroutines acquire, hold, release and are cancelled while the limit changes and the semaphore is closed or
/// destroyed.
inline void check_semaphore(Choices& choices) {
    SemaphoreModel model;
    std::optional<sluice::StageSemaphore> semaphore;
    std::ptrdiff_t last_active = 0;
    Actors actors;

    const auto check = [&](const char* when) {
        const auto hold = [when](bool holds, const char* what) {
            if (!holds) {
                require(false, std::string(what) + ' ' + when);
            }
        };
        if (semaphore) {
            const std::ptrdiff_t active = semaphore->active();
            hold(active <= std::max(model.limit, last_active), "active() grew above the limit");
            hold(active >= model.limit || semaphore->waiting() == 0, "a slot is free although a coroutine waits");
            hold(active == model.active(), "active() is wrong");
            hold(semaphore->waiting() == model.waiting.size(), "waiting() is wrong");
            last_active = active;
        }
    };
    const auto acquire = [&](const Actor& actor) -> asio::awaitable<sluice::Slot> {
        const bool free = model.has_free();
        const bool waits = !free && !model.closed;
        if (waits) {
            model.waiting.push_back(&actor);
        }
        sluice::Slot slot;
        try {
            slot = co_await semaphore->acquire();
        } catch (const boost::system::system_error& error) {
            require(actor.cancelled || model.closed, "an acquire was aborted without a cancellation");
            require(std::ranges::count(model.granted, &actor) == 0, "a granted acquire was aborted");
            if (actor.cancelled || error.code() != asio::error::operation_aborted) {
                throw;
            }
            co_return sluice::Slot();
        }
        require(static_cast<bool>(slot), "acquire returned an empty slot");
        require(!actor.cancelled, "a cancelled acquire returned a slot");
        require(free || waits, "a closed semaphore returned a slot");
        if (waits) {
            require(!model.granted.empty() && model.granted.front() == &actor, "a waiter was overtaken");
            model.granted.pop_front();
        }
        co_return slot;
    };
    const auto worker = [&](const Actor& actor) -> asio::awaitable<void> {
        for (std::size_t rounds = 1 + choices.below(3); rounds != 0; --rounds) {
            co_await pause(choices);
            if (!semaphore) {
                co_return;
            }
            check("before an acquire");
            SemaphoreModel::Held held{model};  // destroyed after the slot
            sluice::Slot slot;
            if (choices.one_in(4)) {
                const bool free = model.has_free();
                slot = semaphore->try_acquire();
                require(static_cast<bool>(slot) == free, "try_acquire is wrong about a free slot");
            } else {
                slot = co_await acquire(actor);
            }
            if (!slot) {
                continue;
            }
            held.take();
            co_await pause(choices);
            if (choices.one_in(3)) {
                check("before a release");
                slot.release();
                held.release();
                check("after a release");
                require(!slot, "a released slot is not empty");
            }
        }
    };
    InterleavingContext context([&](std::size_t n) { return choices.below(n); });

    const auto set_limit = [&](std::size_t limit) {
        model.limit = static_cast<std::ptrdiff_t>(limit);
        model.hand_over();
        semaphore->set_limit(model.limit);
        check("after set_limit");
    };
    semaphore.emplace(context.get_executor(), 0);
    set_limit(choices.below(4));
    for (std::size_t workers = 1 + choices.below(8); workers != 0; --workers) {
        actors.start(context.get_executor(), worker);
    }
    for (std::size_t steps = 0; steps < 400 && context.run_one(); ++steps) {
        check("after a step");
        if (semaphore && choices.one_in(12)) {
            set_limit(choices.below(4));
        }
        if (semaphore && choices.one_in(60)) {
            model.closed = true;
            model.waiting.clear();
            choices.one_in(2) ? semaphore.reset() : semaphore->close();
            check("after close");
        }
        if (choices.one_in(8)) {
            model.cancel(actors.cancel_one(choices));
            check("after a cancellation");
        }
    }
    if (semaphore) {
        set_limit(8);
    }
    while (context.run_one()) {
        check("at the end");
    }
    actors.check();
    require(model.active() == 0 && model.waiting.empty(), "a slot or a waiter was lost");
}

}  // namespace properties
