// SPDX-License-Identifier: BSL-1.0
// slot_shapes SHAPE: acquires the only slot of a semaphore in an expression in which g++ 12 makes a bitwise copy of it,
// and uses the slot. Either prints "holds its slot", as with other compilers, or terminates with the message of
// sluice::Slot, but never continues without a slot.
#include <sluice/sync/stage_semaphore.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <cstdio>
#include <exception>
#include <memory>
#include <string_view>
#include <utility>

namespace {

namespace asio = boost::asio;
using sluice::Slot;
using sluice::StageSemaphore;

struct Holder {
    Slot slot;
    int number;
};

bool holds(Slot slot) { return static_cast<bool>(slot); }

asio::awaitable<bool> take(StageSemaphore& semaphore, std::string_view shape) {
    const bool free = semaphore.limit() == 0;
    bool held = false;
    if (shape == "conditional") {
        auto slot = free ? Slot() : co_await semaphore.acquire();
        held = slot && semaphore.active() == 1;
    } else if (shape == "conditional_of_two") {
        StageSemaphore other(semaphore.get_executor(), 1);
        auto slot = free ? co_await other.acquire() : co_await semaphore.acquire();
        held = slot && semaphore.active() == 1;
    } else if (shape == "not_looked_at") {  // only held, like most slots
        auto slot = free ? Slot() : co_await semaphore.acquire();
        held = semaphore.active() == 1;
    } else if (shape == "moved_from") {
        auto slot = free ? Slot() : co_await semaphore.acquire();
        Slot taken = std::move(slot);
        held = taken && semaphore.active() == 1;
    } else if (shape == "assigned") {
        Slot slot;
        slot = free ? Slot() : co_await semaphore.acquire();
        held = slot && semaphore.active() == 1;
    } else if (shape == "argument") {
        held = holds(free ? Slot() : co_await semaphore.acquire());
    } else if (shape == "aggregate") {
        Holder holder{co_await semaphore.acquire(), 1};
        held = holder.slot && semaphore.active() == 1;
    } else if (shape == "array") {
        Slot slots[] = {co_await semaphore.acquire()};
        held = slots[0] && semaphore.active() == 1;
    } else if (shape == "capture") {
        const auto holder = [slot = co_await semaphore.acquire()] { return static_cast<bool>(slot); };
        held = holder() && semaphore.active() == 1;
    } else if (shape == "conditional_operation") {
        StageSemaphore other(semaphore.get_executor(), 1);
        Slot slot = co_await (free ? other.acquire() : semaphore.acquire());
        held = slot && semaphore.active() == 1;
    } else if (shape == "new") {
        const std::unique_ptr<Slot> slot(new Slot(co_await semaphore.acquire()));
        held = *slot && semaphore.active() == 1;
    } else if (shape == "empty") {  // no slot is lost: an empty one may be copied, assigned to and destroyed
        auto slot = !free ? Slot() : co_await semaphore.acquire();
        held = !slot;
        slot = semaphore.try_acquire();
        held = held && slot && semaphore.active() == 1;
    }
    co_return held;
}

}  // namespace

int main(int argc, char** argv) {
    asio::io_context context;
    StageSemaphore semaphore(context.get_executor(), 1);
    bool held = false;
    asio::co_spawn(context, take(semaphore, argc > 1 ? argv[1] : ""),
                   [&](const std::exception_ptr&, bool held_it) { held = held_it; });
    context.run();
    std::puts(held && semaphore.active() == 0 ? "holds its slot" : "goes on without a slot");
}
