// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "probes.hpp"
#include "task.hpp"
#include "waiters.hpp"

#include <sluice/sync/stage_semaphore.hpp>

#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

namespace test {

/// A semaphore and its context; a test may destroy either first.
struct SemaphoreFixture : Waiters {
    explicit SemaphoreFixture(std::ptrdiff_t limit) : semaphore(std::in_place, context->get_executor(), limit) {}

    /// Starts a coroutine that acquires a slot, without polling.
    Task<sluice::Slot> start() {
        return start_waiter<sluice::Slot>([this] { return semaphore->acquire(); });
    }

    /// Starts a coroutine and runs it as far as possible.
    Task<sluice::Slot> acquire() {
        Task<sluice::Slot> task = start();
        poll();
        return task;
    }

    std::vector<Task<sluice::Slot>> acquire(std::size_t n) {
        return repeat(n, [this] { return acquire(); });
    }

    bool counts(std::ptrdiff_t active, std::size_t waiting) const {
        return semaphore->active() == active && semaphore->waiting() == waiting;
    }

    std::optional<sluice::StageSemaphore> semaphore;
};

}  // namespace test
