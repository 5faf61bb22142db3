// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "probes.hpp"
#include "task.hpp"
#include "waiters.hpp"

#include <sluice/sync/barrier.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace test {

using Arrival = Task<std::size_t>;

/// A barrier and its context; a test may destroy either first.
struct BarrierFixture : Waiters {
    explicit BarrierFixture(std::ptrdiff_t parties, std::function<void()> completion = {})
        : barrier(std::in_place, context->get_executor(), parties, std::move(completion)) {}

    /// Starts a coroutine that arrives, without polling.
    Arrival start() {
        return start_waiter<std::size_t>([this] { return barrier->arrive_and_wait(); });
    }

    /// Starts a coroutine and runs its beginning, but no handler after that.
    Arrival start_now() {
        Arrival arrival = start();
        context->restart();
        context->poll_one();
        return arrival;
    }

    /// Starts a coroutine and runs it as far as possible.
    Arrival arrive() {
        Arrival arrival = start();
        poll();
        return arrival;
    }

    std::vector<Arrival> arrive(std::size_t n) {
        return repeat(n, [this] { return arrive(); });
    }

    std::optional<sluice::Barrier> barrier;
};

inline bool broken(const Arrival& arrival) { return arrival.failed_with<sluice::BrokenBarrier>(); }

/// The indices that the arrivals returned. Every arrival must have succeeded.
inline Order indices(std::vector<Arrival>& arrivals) {
    Order order;
    for (Arrival& arrival : arrivals) {
        REQUIRE(arrival.succeeded());
        order.push_back(arrival.value());
    }
    return order;
}

}  // namespace test
