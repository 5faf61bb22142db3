// SPDX-License-Identifier: BSL-1.0
// What becomes of a Slot where g++ 12 copies it bitwise and destroys both copies. Other compilers just move it.
#include <sluice/stage_semaphore.hpp>

#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/assert.hpp>
#include <catch2/catch_test_macros.hpp>

#include <string_view>
#include <utility>

namespace {

int told = 0;  // how often an assertion has named the miscompilation

}  // namespace

void boost::assertion_failed_msg(const char*, const char* msg, const char*, const char*, long) {
    told += std::string_view(msg).starts_with("sluice::Slot: a bitwise copy");
}
void boost::assertion_failed(const char*, const char*, const char*, long) { FAIL("another assertion"); }

namespace {

namespace asio = boost::asio;
using sluice::Slot;
using sluice::StageSemaphore;
using Void = asio::awaitable<void>;

struct Holder {
    Slot slot;
    int number;
};

bool holds(Slot slot) { return static_cast<bool>(slot); }

// Runs `shape` ten times on a semaphore of one slot. It gives whether it held that slot, which must then have been out;
// if it did not, it must have been told. Either way the slot must be back afterwards.
template <class Shape>
void check(Shape shape) {
    asio::io_context context;
    StageSemaphore semaphore(context.get_executor(), 1);
    test::Task task(context.get_executor(), [&]() -> Void {
        for (int i = 0; i != 10; ++i) {
            told = 0;
            const bool held = co_await shape(semaphore);
            CHECK((held || told > 0));
            CHECK(semaphore.active() == 0);
            const Slot free = semaphore.try_acquire();
            CHECK(free);
            CHECK_FALSE(semaphore.try_acquire());
        }
    });
    context.run();
    CHECK(task.succeeded());
}

}  // namespace

TEST_CASE("g++ 12: a slot out of a conditional expression", "[miscompilation]") {
    check([](StageSemaphore& semaphore) -> asio::awaitable<bool> {
        const bool free = semaphore.limit() == 0;
        auto slot = free ? Slot() : co_await semaphore.acquire();
        co_return slot&& semaphore.active() == 1;
    });
    check([](StageSemaphore& semaphore) -> asio::awaitable<bool> {
        StageSemaphore other(semaphore.get_executor(), 1);
        auto slot = semaphore.limit() == 1 ? co_await semaphore.acquire() : co_await other.acquire();
        co_return slot&& semaphore.active() == 1;
    });
}

TEST_CASE("g++ 12: a slot assigned from a conditional expression", "[miscompilation]") {
    check([](StageSemaphore& semaphore) -> asio::awaitable<bool> {
        Slot slot;
        slot = semaphore.limit() == 0 ? Slot() : co_await semaphore.acquire();
        co_return slot&& semaphore.active() == 1;
    });
}

TEST_CASE("g++ 12: a conditional expression as an argument", "[miscompilation]") {
    check([](StageSemaphore& semaphore) -> asio::awaitable<bool> {
        const bool held = holds(semaphore.limit() == 0 ? Slot() : co_await semaphore.acquire());
        co_return held;
    });
}

TEST_CASE("g++ 12: a slot in an aggregate, an array, a capture", "[miscompilation]") {
    check([](StageSemaphore& semaphore) -> asio::awaitable<bool> {
        Holder holder{co_await semaphore.acquire(), 1};
        co_return holder.slot&& semaphore.active() == 1;
    });
    check([](StageSemaphore& semaphore) -> asio::awaitable<bool> {
        Slot slots[] = {co_await semaphore.acquire()};
        co_return slots[0] && semaphore.active() == 1;
    });
    check([](StageSemaphore& semaphore) -> asio::awaitable<bool> {
        const auto holder = [slot = co_await semaphore.acquire()] { return static_cast<bool>(slot); };
        co_return holder() && semaphore.active() == 1;
    });
}

TEST_CASE("g++ 12: what was copied bitwise can be assigned to, and moved from", "[miscompilation]") {
    check([](StageSemaphore& semaphore) -> asio::awaitable<bool> {
        auto slot = semaphore.limit() == 0 ? Slot() : co_await semaphore.acquire();
        Slot taken = std::move(slot);
        const bool held = taken && semaphore.active() == 1;
        taken.release();
        slot = semaphore.try_acquire();
        co_return held&& slot&& semaphore.active() == 1;
    });
}
