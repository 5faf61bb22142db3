// SPDX-License-Identifier: BSL-1.0
#include <sluice/sluice.hpp>
#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>

#include <cstddef>

namespace asio = boost::asio;

std::size_t met();

namespace {

asio::awaitable<void> meet(sluice::StageSemaphore& semaphore, sluice::Barrier& barrier, std::size_t& met) {
    {
        const auto slot = co_await semaphore.acquire();
    }
    co_await barrier.arrive_and_wait();
    ++met;
}

}  // namespace

// Returns how many of three parties have been through one slot and met at the barrier.
std::size_t met() {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    sluice::Barrier barrier(context.get_executor(), 3);
    std::size_t met = 0;
    const auto body = [&](sluice::TaskGroup& group) -> asio::awaitable<void> {
        for (int i = 0; i < 3; ++i) group.spawn(meet(semaphore, barrier, met));
        co_return;
    };
    asio::co_spawn(context, sluice::with_task_group(body), asio::detached);
    context.run();
    return met;
}
