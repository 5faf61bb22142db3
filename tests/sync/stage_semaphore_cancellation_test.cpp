// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/stage_semaphore.hpp>

#include "support/probes.hpp"
#include "support/semaphore_fixture.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <random>
#include <vector>

namespace {

namespace asio = boost::asio;
using sluice::Slot;
using sluice::StageSemaphore;
using test::any_cancellation;
using test::first_numbers;
using test::Order;
using test::SemaphoreFixture;
using test::Task;

// Is cancelled while it does not look, and then acquires a slot.
asio::awaitable<Slot> acquire_after_cancellation(StageSemaphore& semaphore, bool looks) {
    co_await asio::this_coro::throw_if_cancelled(false);
    co_await test::yield();
    co_await asio::this_coro::throw_if_cancelled(looks);
    co_return co_await semaphore.acquire();
}

asio::awaitable<bool> was_served(StageSemaphore& semaphore) {
    try {
        const Slot slot = co_await semaphore.acquire();
        co_return true;
    } catch (const boost::system::system_error&) {
        co_return false;
    }
}

}  // namespace

TEST_CASE("semaphore: a cancelled waiter leaves the queue and the others keep their places",
          "[semaphore][cancellation]") {
    const auto type = any_cancellation();
    const std::size_t which = GENERATE(1U, 2U, 3U);
    SemaphoreFixture f(1);
    auto tasks = f.acquire(4);
    tasks[which].cancel(type);
    CHECK(f.counts(1, 2));  // at once
    f.poll();
    CHECK(tasks[which].aborted());
    f.semaphore->set_limit(4);
    f.poll();
    Order others = first_numbers(4);
    std::erase(others, which);
    CHECK(f.order == others);
    CHECK(f.counts(3, 0));
}

TEST_CASE("semaphore: after the only waiter is cancelled, the slot is free for the next acquire",
          "[semaphore][cancellation]") {
    SemaphoreFixture f(1);
    Slot held = f.semaphore->try_acquire();
    Task<Slot> waiter = f.acquire();
    waiter.cancel(any_cancellation());
    held.release();  // before the cancelled waiter has resumed
    CHECK(f.counts(0, 0));
    CHECK(f.semaphore->try_acquire());
    f.poll();
    CHECK(waiter.aborted());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a cancelled waiter that acquires again has lost its place", "[semaphore][cancellation]") {
    SemaphoreFixture f(0);
    Task<> impatient(f.context->get_executor(), [&f]() -> asio::awaitable<void> {
        const bool served = co_await was_served(*f.semaphore);
        CHECK_FALSE(served);
        co_await asio::this_coro::reset_cancellation_state();
        const Slot slot = co_await f.semaphore->acquire();
        f.order.push_back(77);
    });
    const auto patient = f.acquire(2);
    impatient.cancel(any_cancellation());
    f.poll();
    CHECK(f.counts(0, 3));
    f.semaphore->set_limit(3);
    f.poll();
    CHECK(f.order == Order{0, 1, 77});
    CHECK(impatient.succeeded());
}

TEST_CASE("semaphore: a slot granted to a waiter that is cancelled before it resumes goes to the next",
          "[semaphore][cancellation]") {
    const auto type = any_cancellation();
    SemaphoreFixture f(1);
    Slot held = f.semaphore->try_acquire();
    auto tasks = f.acquire(4);
    held.release();
    REQUIRE(f.counts(1, 3));
    tasks[0].cancel(type);
    CHECK(f.counts(1, 2));
    tasks[1].cancel(type);  // it has just been granted the slot
    CHECK(f.counts(1, 1));
    tasks[1].cancel(type);  // the second time has no effect
    CHECK(f.counts(1, 1));
    f.poll();
    CHECK(tasks[0].aborted());
    CHECK(tasks[1].aborted());
    CHECK(tasks[2].succeeded());
    CHECK_FALSE(tasks[3].done());
    CHECK(f.order == Order{2});
    CHECK(f.counts(1, 1));
}

TEST_CASE("semaphore: a slot granted to a waiter that is cancelled before it resumes is free if nothing else waits",
          "[semaphore][cancellation]") {
    SemaphoreFixture f(1);
    Slot held = f.semaphore->try_acquire();
    Task<Slot> waiter = f.acquire();
    held.release();
    waiter.cancel(any_cancellation());
    CHECK(f.counts(0, 0));
    CHECK(f.semaphore->try_acquire());
    f.poll();
    CHECK(waiter.aborted());
    CHECK(f.order.empty());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a granted slot that cancellation returns is not handed on above a lowered limit",
          "[semaphore][cancellation]") {
    SemaphoreFixture f(2);
    auto tasks = f.acquire(4);
    tasks[0].value().release();
    f.semaphore->set_limit(1);
    tasks[2].cancel(any_cancellation());
    CHECK(f.counts(1, 1));
    f.poll();
    CHECK(tasks[2].aborted());
    CHECK_FALSE(tasks[3].done());
}

TEST_CASE("semaphore: cancellation wins until the waiter runs, even if it is the next to resume",
          "[semaphore][cancellation]") {
    SemaphoreFixture f(0);
    std::vector<Task<Slot>> tasks;
    const Task<> killer(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        const Slot slot = co_await f.semaphore->acquire();
        tasks[0].cancel();  // to be resumed by the same handler
        co_await test::yield();
    });
    tasks = f.acquire(2);
    f.semaphore->set_limit(2);
    CHECK(f.counts(2, 1));
    f.poll();
    CHECK(tasks[0].aborted());
    CHECK(tasks[1].succeeded());
    CHECK(f.counts(1, 0));
}

TEST_CASE("semaphore: once the waiter has its slot, cancellation does not take the slot away",
          "[semaphore][cancellation]") {
    SemaphoreFixture f(1);
    Slot kept;
    Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        kept = co_await f.semaphore->acquire();
        co_await test::sleep(std::chrono::hours(1));
    });
    Slot held = f.semaphore->try_acquire();
    f.poll();
    held.release();
    f.poll();
    task.cancel(any_cancellation());
    f.poll();
    CHECK(task.aborted());
    CHECK(kept);
    CHECK(f.counts(1, 0));
}

TEST_CASE("semaphore: a waiter that is both closed out and cancelled, in either order, is counted once",
          "[semaphore][cancellation]") {
    SemaphoreFixture f(0);
    auto tasks = f.acquire(2);
    tasks[0].cancel();
    f.semaphore->close();
    tasks[1].cancel();
    CHECK(f.counts(0, 0));
    f.poll();
    CHECK(tasks[0].aborted());
    CHECK(tasks[1].aborted());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: its counts agree with a reference model under random operations",
          "[semaphore][cancellation][stress]") {
    for (unsigned seed = 1; seed != 31; ++seed) {
        INFO("seed " << seed);
        std::mt19937 random(seed);
        const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
        SemaphoreFixture f(2);
        std::vector<Task<Slot>> tasks;
        std::ptrdiff_t limit = 2;
        std::deque<std::size_t> waiting;
        std::deque<std::size_t> granted;
        std::deque<std::size_t> cancelled;
        std::deque<std::size_t> holding;

        const auto active = [&] { return static_cast<std::ptrdiff_t>(granted.size() + holding.size()); };
        const auto take = [&](std::deque<std::size_t>& from) {
            const auto at = from.begin() + static_cast<std::ptrdiff_t>(below(from.size()));
            const std::size_t number = *at;
            from.erase(at);
            return number;
        };
        const auto hand_over = [&] {
            for (; active() < limit && !waiting.empty(); waiting.pop_front()) {
                granted.push_back(waiting.front());
            }
        };
        const auto poll = [&] {
            f.poll();
            holding.insert(holding.end(), granted.begin(), granted.end());
            granted.clear();
            bool as_expected = true;
            for (const std::size_t number : waiting) {
                as_expected = as_expected && !tasks[number].done();
            }
            for (const std::size_t number : cancelled) {
                as_expected = as_expected && tasks[number].aborted();
            }
            for (const std::size_t number : holding) {
                as_expected = as_expected && tasks[number].succeeded() && tasks[number].value();
            }
            REQUIRE(as_expected);
        };

        for (int step = 0; step != 400; ++step) {
            switch (below(8)) {
                case 0:
                case 1:
                case 2:
                    tasks.push_back(f.start());
                    waiting.push_back(tasks.size() - 1);
                    hand_over();
                    poll();
                    break;
                case 3:
                    if (!waiting.empty()) {
                        cancelled.push_back(take(waiting));
                        tasks[cancelled.back()].cancel();
                    }
                    break;
                case 4:
                    if (!granted.empty()) {
                        cancelled.push_back(take(granted));
                        tasks[cancelled.back()].cancel();
                        hand_over();
                    }
                    break;
                case 5:
                    if (!holding.empty()) {
                        tasks[take(holding)].value().release();
                        hand_over();
                    }
                    break;
                case 6:
                    limit = static_cast<std::ptrdiff_t>(below(6));
                    f.semaphore->set_limit(limit);
                    hand_over();
                    break;
                default:
                    if (below(3) == 0) {
                        poll();
                    }
            }
            REQUIRE(f.counts(active(), waiting.size()));
        }
        poll();
        Order served = f.order;
        std::ranges::sort(served);
        CHECK(f.order == served);  // all that were served were served in order
    }
}

TEST_CASE("semaphore: 100,000 waiters, half of them granted a slot, are cancelled and leave none behind",
          "[semaphore][cancellation][stress]") {
    constexpr std::size_t n = 100'000;
    SemaphoreFixture f(0);
    auto tasks = test::repeat(n, [&] { return f.start(); });
    f.poll();
    f.semaphore->set_limit(n / 2);
    CHECK(f.counts(n / 2, n / 2));
    std::shuffle(tasks.begin(), tasks.end(), std::mt19937(1));
    for (Task<Slot>& task : tasks) {
        task.cancel();
    }
    CHECK(f.counts(0, 0));
    f.poll();
    CHECK(f.order.empty());
    CHECK(std::ranges::all_of(tasks, &Task<Slot>::aborted));
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: cancellation wins over a free slot that comes through the executor",
          "[semaphore][cancellation]") {
    SemaphoreFixture f(1);
    std::size_t taken = 0;
    Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        for (;;) {
            const Slot slot = co_await f.semaphore->acquire();
            ++taken;
        }
    });
    f.context->poll_one();  // until an acquire goes through the executor
    REQUIRE(taken > 10);
    REQUIRE(f.counts(1, 0));
    const std::size_t before = taken;
    task.cancel();
    f.poll();
    CHECK(task.aborted());
    CHECK(taken == before);
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a coroutine that was cancelled earlier takes no free slot, unless it continues all the same",
          "[semaphore][cancellation]") {
    const bool looks = GENERATE(true, false);
    const auto type = any_cancellation();
    SemaphoreFixture f(1);
    Task<Slot> task(f.context->get_executor(), [&] { return acquire_after_cancellation(*f.semaphore, looks); });
    f.context->poll_one();
    task.cancel(type);
    f.poll();
    CHECK(task.aborted() == looks);
    CHECK(task.succeeded() == !looks);
    CHECK(f.counts(looks ? 0 : 1, 0));
}
