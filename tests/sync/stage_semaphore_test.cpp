// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage_error.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/testing/run.hpp>

#include "support/probes.hpp"
#include "support/semaphore_fixture.hpp"
#include "support/task.hpp"
#include "support/waiters.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <limits>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using sluice::Slot;
using sluice::StageSemaphore;
using test::first_numbers;
using test::Order;
using test::SemaphoreFixture;
using test::StackSpan;
using test::Task;

static_assert(!std::is_copy_constructible_v<Slot> && !std::is_copy_assignable_v<Slot>);
static_assert(std::is_nothrow_default_constructible_v<Slot>);
static_assert(std::is_nothrow_move_constructible_v<Slot> && std::is_nothrow_move_assignable_v<Slot>);
static_assert(!std::is_convertible_v<Slot, bool> && std::is_constructible_v<bool, Slot>);
static_assert(!std::is_copy_constructible_v<StageSemaphore> && !std::is_move_constructible_v<StageSemaphore>);
static_assert(!std::is_copy_assignable_v<StageSemaphore> && !std::is_move_assignable_v<StageSemaphore>);
static_assert(std::is_convertible_v<StageSemaphore::Acquisition, asio::awaitable<Slot>>);
static_assert(!std::is_copy_constructible_v<StageSemaphore::Acquisition>);
// Only a coroutine that awaits it keeps an acquisition alive.
static_assert(!std::is_invocable_v<StageSemaphore::Acquisition, asio::use_future_t<>>);
static_assert(!std::is_invocable_v<StageSemaphore::Acquisition, asio::detached_t>);
static_assert(!std::is_invocable_v<StageSemaphore::Acquisition, void (*)(std::exception_ptr, Slot)>);

}  // namespace

TEST_CASE("semaphore: a new semaphore has all its slots free", "[semaphore]") {
    SemaphoreFixture f(3);
    CHECK(f.semaphore->limit() == 3);
    CHECK(f.counts(0, 0));
    CHECK(f.semaphore->get_executor() == asio::any_io_executor(f.context->get_executor()));
}

TEST_CASE("semaphore: a negative limit throws, names the value, and changes nothing", "[semaphore]") {
    asio::io_context context;
    const auto limit = GENERATE(std::ptrdiff_t{-1}, std::ptrdiff_t{-7}, std::numeric_limits<std::ptrdiff_t>::min());
    const auto names_value = MessageMatches(ContainsSubstring(std::to_string(limit)));
    CHECK_THROWS_MATCHES(StageSemaphore(context.get_executor(), limit), std::invalid_argument, names_value);

    SemaphoreFixture f(1);
    const auto tasks = f.acquire(2);
    CHECK_THROWS_MATCHES(f.semaphore->set_limit(limit), std::invalid_argument, names_value);
    CHECK(f.semaphore->limit() == 1);
    CHECK(f.counts(1, 1));
    CHECK(f.poll() == 0);
}

TEST_CASE("semaphore: acquire continues without suspending if a slot is free", "[semaphore]") {
    SemaphoreFixture f(1);
    bool others_ran = true;
    const Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        bool other_ran = false;
        asio::post(*f.context, [&] { other_ran = true; });
        const Slot slot = co_await f.semaphore->acquire();
        others_ran = other_ran;
        co_await test::yield();
    });
    f.poll();
    CHECK(task.succeeded());
    CHECK_FALSE(others_ran);
}

TEST_CASE("semaphore: at most as many coroutines get a slot as the limit allows", "[semaphore]") {
    SemaphoreFixture f(3);
    const auto tasks = f.acquire(5);
    CHECK(f.counts(3, 2));
    CHECK(f.order == Order{0, 1, 2});
    CHECK(tasks[2].succeeded());
    CHECK_FALSE(tasks[3].done());
}

TEST_CASE("semaphore: a slot is returned when it is released, destroyed, or assigned to", "[semaphore]") {
    SemaphoreFixture f(2);
    std::optional<Slot> slot = f.semaphore->try_acquire();
    REQUIRE(*slot);
    REQUIRE(f.counts(1, 0));
    SECTION("released") {
        slot->release();
        CHECK_FALSE(*slot);
    }
    SECTION("destroyed") { slot.reset(); }
    SECTION("assigned an empty slot") {
        *slot = Slot();
        CHECK_FALSE(*slot);
    }
    SECTION("assigned another slot") {
        Slot other = f.semaphore->try_acquire();
        CHECK(f.counts(2, 0));
        *slot = std::move(other);
        CHECK(*slot);
        CHECK(f.counts(1, 0));
        slot.reset();
    }
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: releasing an empty slot has no effect", "[semaphore]") {
    Slot empty;
    CHECK_FALSE(empty);
    empty.release();
    CHECK_FALSE(empty);

    SemaphoreFixture f(1);
    Slot slot = f.semaphore->try_acquire();
    slot.release();
    slot.release();
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a slot that is moved still counts once", "[semaphore]") {
    SemaphoreFixture f(2);
    Slot first = f.semaphore->try_acquire();
    Slot second(std::move(first));
    CHECK_FALSE(first);  // NOLINT(bugprone-use-after-move)
    CHECK(second);
    first = std::move(second);
    CHECK(first);
    CHECK_FALSE(second);  // NOLINT(bugprone-use-after-move)
    Slot& same = first;
    first = std::move(same);
    CHECK(first);
    CHECK(f.counts(1, 0));
    std::swap(first, second);
    CHECK(second);
    CHECK(f.counts(1, 0));
    second.release();
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: strictly first come, first served", "[semaphore]") {
    SemaphoreFixture f(3);
    auto tasks = f.acquire(100);
    for (std::size_t i = 0; i != tasks.size(); ++i) {
        REQUIRE(tasks[i].succeeded());
        tasks[i].value().release();
        if (i % 4 != 0) {  // sometimes several are granted before one resumes
            f.poll();
        }
    }
    f.poll();
    CHECK(f.order == first_numbers(100));
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a holder that releases and acquires again at once does not overtake", "[semaphore]") {
    SemaphoreFixture f(1);
    Order order;
    const auto visit_twice = [&](std::size_t number) {
        return Task<>(f.context->get_executor(), [&f, &order, number]() -> asio::awaitable<void> {
            Slot slot = co_await f.semaphore->acquire();
            order.push_back(number);
            co_await test::yield();
            slot.release();
            slot = co_await f.semaphore->acquire();
            order.push_back(number);
        });
    };
    const std::vector tasks{visit_twice(0), visit_twice(1), visit_twice(2)};
    f.poll();
    CHECK(order == Order{0, 1, 2, 0, 1, 2});
}

TEST_CASE("semaphore: a newcomer does not overtake a waiter that was granted a slot and has not resumed",
          "[semaphore]") {
    SemaphoreFixture f(1);
    Slot held = f.semaphore->try_acquire();
    const auto waiter = f.acquire();
    const auto newcomer = f.start();  // begins before the waiter is resumed
    held.release();
    CHECK(f.counts(1, 0));
    CHECK_FALSE(f.semaphore->try_acquire());
    f.poll();
    CHECK(f.order == Order{0});
    CHECK(waiter.succeeded());
    CHECK_FALSE(newcomer.done());
    CHECK(f.counts(1, 1));
}

TEST_CASE("semaphore: try_acquire takes a free slot, and returns an empty one if none is free", "[semaphore]") {
    SemaphoreFixture f(1);
    const Slot slot = f.semaphore->try_acquire();
    CHECK(slot);
    CHECK(f.counts(1, 0));
    CHECK_FALSE(f.semaphore->try_acquire());
    CHECK(f.counts(1, 0));
}

TEST_CASE("semaphore: try_acquire returns an empty slot while any coroutine waits", "[semaphore]") {
    SemaphoreFixture f(1);
    auto tasks = f.acquire(3);
    for (Task<Slot>& task : tasks) {
        CHECK_FALSE(f.semaphore->try_acquire());
        task.value().release();
        CHECK(f.semaphore->try_acquire().operator bool() == (&task == &tasks.back()));
        f.poll();
    }
}

TEST_CASE("semaphore: limit 0 means paused", "[semaphore]") {
    SemaphoreFixture f(0);
    auto tasks = f.acquire(2);
    CHECK_FALSE(f.semaphore->try_acquire());
    CHECK(f.counts(0, 2));
    CHECK(f.order.empty());
    f.semaphore->set_limit(1);
    f.poll();
    CHECK(f.order == Order{0});

    f.semaphore->set_limit(0);  // paused again, while a slot is taken
    CHECK(f.counts(1, 1));
    tasks[0].value().release();
    f.poll();
    CHECK(f.counts(0, 1));
    CHECK(f.order == Order{0});
}

TEST_CASE("semaphore: raising the limit wakes exactly one waiter for each new slot", "[semaphore]") {
    SemaphoreFixture f(1);
    const auto tasks = f.acquire(6);
    f.semaphore->set_limit(3);
    CHECK(f.semaphore->limit() == 3);
    CHECK(f.counts(3, 3));  // at once
    CHECK(f.order == Order{0});
    f.poll();
    CHECK(f.order == Order{0, 1, 2});
    f.semaphore->set_limit(3);
    CHECK(f.poll() == 0);
    f.semaphore->set_limit(100);
    f.poll();
    CHECK(f.order == first_numbers(6));
    CHECK(f.counts(6, 0));
}

TEST_CASE("semaphore: lowering the limit takes no slot away and takes effect as slots are returned", "[semaphore]") {
    SemaphoreFixture f(4);
    auto tasks = f.acquire(6);
    f.semaphore->set_limit(2);
    CHECK(f.semaphore->limit() == 2);
    CHECK(f.counts(4, 2));
    CHECK(std::all_of(tasks.begin(), tasks.begin() + 4, [](auto& task) { return bool(task.value()); }));
    CHECK_FALSE(f.semaphore->try_acquire());

    for (const std::size_t i : {0U, 1U}) {  // nothing is handed on while the limit is reached
        tasks[i].value().release();
        CHECK(f.poll() == 0);
    }
    CHECK(f.counts(2, 2));
    tasks[2].value().release();
    f.poll();
    CHECK(f.order == Order{0, 1, 2, 3, 4});
    CHECK(f.counts(2, 1));
}

TEST_CASE("semaphore: raising a limit that stays at or below active wakes no waiter", "[semaphore]") {
    SemaphoreFixture f(4);
    const auto tasks = f.acquire(6);
    f.semaphore->set_limit(1);
    f.semaphore->set_limit(4);
    CHECK(f.counts(4, 2));
    CHECK(f.poll() == 0);
    f.semaphore->set_limit(5);
    CHECK(f.counts(5, 1));
}

TEST_CASE("semaphore: a call that ends a wait does not resume the waiter itself", "[semaphore]") {
    SemaphoreFixture f(1);
    Slot held = f.semaphore->try_acquire();
    Task<Slot> waiter = f.acquire();
    SECTION("release") { held.release(); }
    SECTION("the slot's destructor") { held = Slot(); }
    SECTION("set_limit") { f.semaphore->set_limit(2); }
    SECTION("close") { f.semaphore->close(); }
    SECTION("the semaphore's destructor") { f.semaphore = std::nullopt; }
    SECTION("cancellation") { waiter.cancel(); }
    CHECK_FALSE(waiter.done());
    CHECK(f.order.empty());
    f.poll();
    CHECK(waiter.done());
}

TEST_CASE("semaphore: a coroutine that releases continues before the one that gets its slot", "[semaphore]") {
    SemaphoreFixture f(1);
    std::vector<std::string> log;
    const Task<> holder(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        Slot slot = co_await f.semaphore->acquire();
        co_await test::yield();
        log.emplace_back("before");
        slot.release();
        log.emplace_back("after");
    });
    const Task<> waiter(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        const Slot slot = co_await f.semaphore->acquire();
        log.emplace_back("waiter");
    });
    f.poll();
    CHECK(log == std::vector<std::string>{"before", "after", "waiter"});
}

TEST_CASE("semaphore: a burst of returned slots posts one handler", "[semaphore]") {
    SemaphoreFixture f(3);
    auto tasks = f.acquire(6);
    for (const std::size_t i : {0U, 1U, 2U}) {
        tasks[i].value().release();
    }
    CHECK(f.context->poll_one() == 1);
    CHECK(f.order == first_numbers(6));
    CHECK(f.context->poll() == 0);

    tasks[3].value().release();  // with no waiter, no handler is posted
    CHECK(f.poll() == 0);
}

TEST_CASE("semaphore: a waiter woken by one that was just resumed lets other handlers run first", "[semaphore]") {
    SemaphoreFixture f(1);
    auto tasks = f.acquire(1);
    const auto pass_on = [&] {
        return Task<>(f.context->get_executor(), [&f]() -> asio::awaitable<void> {
            const Slot slot = co_await f.semaphore->acquire();
            f.order.push_back(1);
        });
    };
    const std::vector waiters{pass_on(), pass_on()};
    f.poll();
    tasks[0].value().release();
    asio::post(*f.context, [&] { f.order.push_back(7); });
    f.poll();
    CHECK(f.order == Order{0, 1, 7, 1});
}

TEST_CASE("semaphore: close ends every wait and every later acquire", "[semaphore]") {
    SemaphoreFixture f(1);
    auto tasks = f.acquire(3);
    f.semaphore->close();
    CHECK(f.counts(1, 0));
    const auto later = f.acquire();  // begins before the waiters have resumed
    CHECK(tasks[1].aborted());
    CHECK(tasks[2].aborted());
    CHECK(later.aborted());
    CHECK(tasks[0].value());

    tasks[0].value().release();  // a taken slot can still be returned
    CHECK(f.counts(0, 0));
    CHECK(f.acquire().aborted());  // though a slot is free
    CHECK_FALSE(f.semaphore->try_acquire());
    f.semaphore->set_limit(9);
    CHECK(f.acquire().aborted());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: the error of a waiter that was closed out says so, that of a cancelled one does not",
          "[semaphore]") {
    SemaphoreFixture f(0);
    auto cancelled = f.acquire();
    auto closed = f.acquire();
    f.poll();
    cancelled.cancel();
    f.semaphore->close();
    f.poll();
    auto late = f.acquire();
    f.poll();
    CHECK(cancelled.aborted());
    CHECK(closed.aborted());
    CHECK(late.aborted());
    const auto message = [](const Task<Slot>& task) { return sluice::StageError(task.error()).message(); };
    CHECK(message(cancelled).starts_with("StageSemaphore::acquire: Operation canceled"));
    CHECK(message(closed).starts_with("StageSemaphore::acquire: the semaphore was closed: Operation canceled"));
    CHECK(message(late) == message(closed));
}

TEST_CASE("semaphore: an empty executor is rejected", "[semaphore]") {
    CHECK_THROWS_WITH(StageSemaphore(asio::any_io_executor(), 1), "StageSemaphore: the executor must not be empty");
}

TEST_CASE("semaphore: closing again has no effect", "[semaphore]") {
    SemaphoreFixture f(1);
    auto tasks = f.acquire(2);
    f.semaphore->close();
    f.semaphore->close();
    f.poll();
    f.semaphore->close();
    CHECK(f.poll() == 0);
    CHECK(tasks[1].aborted());
    CHECK(f.counts(1, 0));
}

TEST_CASE("semaphore: a slot granted before close reaches its waiter and can be returned", "[semaphore]") {
    SemaphoreFixture f(1);
    auto tasks = f.acquire(3);
    tasks[0].value().release();
    f.semaphore->close();
    CHECK(f.counts(1, 0));
    SECTION("the waiter uses it") {
        f.poll();
        CHECK(tasks[1].succeeded());
        tasks[1].value().release();
    }
    SECTION("the waiter is cancelled before it resumes") {
        tasks[1].cancel();
        CHECK(f.counts(0, 0));
        f.poll();
        CHECK(tasks[1].aborted());
    }
    CHECK(tasks[2].aborted());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: an acquire that is never awaited takes no slot", "[semaphore]") {
    SemaphoreFixture f(1);
    {
        const asio::awaitable<Slot> never = f.semaphore->acquire();
        CHECK(f.counts(0, 0));
    }
    CHECK(f.semaphore->try_acquire());
}

TEST_CASE("semaphore: an exception that escapes from a resumed coroutine into the loop loses no other waiter",
          "[semaphore]") {
    const std::size_t thrower = GENERATE(0U, 1U, 2U);
    const bool on_strand = GENERATE(false, true);  // where the exception passes through the resuming function
    asio::io_context context;
    const auto executor = on_strand ? asio::any_io_executor(asio::make_strand(context)) : context.get_executor();
    StageSemaphore semaphore(executor, 0);
    const auto acquire = [&]() -> asio::awaitable<Slot> { return semaphore.acquire(); };
    std::vector<Task<Slot>> tasks = test::start_three<Slot>(executor, acquire, thrower);
    sluice::testing::run_until_stalled(context);
    semaphore.set_limit(3);
    REQUIRE(semaphore.active() == 3);
    CHECK_THROWS_AS(sluice::testing::run(context), test::Escaped);
    sluice::testing::run(context);
    CHECK(tasks[0].succeeded());
    CHECK(tasks[1].succeeded());
    CHECK(semaphore.active() == 2);
    semaphore.set_limit(2);
    tasks.emplace_back(executor, acquire);
    sluice::testing::run_until_stalled(context);
    tasks[0].value().release();  // the semaphore still works
    sluice::testing::run(context);
    CHECK(tasks[2].succeeded());
}

namespace {

// 100,000 coroutines that acquire a slot, touch the stack, and return the slot at once.
struct Crowd {
    static constexpr std::size_t size = 100'000;

    explicit Crowd(SemaphoreFixture& f) {
        for (std::size_t i = 0; i != size; ++i) {
            asio::co_spawn(f.context->get_executor(), visit(f, i), asio::detached);
        }
        f.poll();
    }

    asio::awaitable<void> visit(SemaphoreFixture& f, std::size_t number) {
        const Slot slot = co_await f.semaphore->acquire();
        f.order.push_back(number);
        stack.touch();
    }

    StackSpan stack;
};

}  // namespace

TEST_CASE("semaphore: 100,000 waiters are served in a cascade without stack growth", "[semaphore][stress]") {
    SemaphoreFixture f(1);
    Slot held = f.semaphore->try_acquire();
    const Crowd crowd(f);
    REQUIRE(f.counts(1, Crowd::size));
    held.release();
    f.poll();
    CHECK(bool(f.order == first_numbers(Crowd::size)));  // too long to print
    CHECK(f.counts(0, 0));
    CHECK(crowd.stack.size() < 4096);
}

TEST_CASE("semaphore: 100,000 waiters are served at once by set_limit without stack growth", "[semaphore][stress]") {
    SemaphoreFixture f(0);
    const Crowd crowd(f);
    REQUIRE(f.counts(0, Crowd::size));
    f.semaphore->set_limit(static_cast<std::ptrdiff_t>(Crowd::size));
    CHECK(f.counts(static_cast<std::ptrdiff_t>(Crowd::size), 0));
    f.poll();
    CHECK(bool(f.order == first_numbers(Crowd::size)));  // too long to print
    CHECK(f.counts(0, 0));
    CHECK(crowd.stack.size() < 4096);
}

TEST_CASE("semaphore: 100,000 waiters are closed out or destroyed with their context",
          "[semaphore][shutdown][stress]") {
    SemaphoreFixture f(0);
    const Crowd crowd(f);
    SECTION("closed out") {
        f.semaphore->close();
        f.poll();
    }
    SECTION("destroyed") { f.context = std::nullopt; }
    CHECK(f.counts(0, 0));
    CHECK(f.order.empty());
}

namespace {

template <class Executor>
asio::awaitable<void, Executor> typed_visit(StageSemaphore& semaphore, Order& order, std::size_t number) {
    const Slot slot = co_await semaphore.acquire();
    order.push_back(number);
    co_await asio::post(asio::deferred);
}

using TypedExecutor = asio::io_context::executor_type;
static_assert(std::is_convertible_v<StageSemaphore::Acquisition, asio::awaitable<Slot, TypedExecutor>>);

}  // namespace

TEST_CASE("semaphore: an acquisition can be used wherever an awaitable is expected", "[semaphore]") {
    SemaphoreFixture f(1);
    StageSemaphore& semaphore = *f.semaphore;
    const auto executor = f.context->get_executor();
    int slots = 0;
    const auto count = [&](const std::exception_ptr& error, const Slot& slot) { slots += !error && slot; };

    asio::co_spawn(executor, semaphore.acquire(), count);
    asio::awaitable<Slot> awaitable = semaphore.acquire();
    asio::co_spawn(executor, std::move(awaitable), count);
    const Task<> task(executor, [&]() -> asio::awaitable<void> {
        StageSemaphore::Acquisition named = semaphore.acquire();
        StageSemaphore::Acquisition moved = std::move(named);
        slots += bool(co_await std::move(moved));
        slots += bool(co_await sluice::with_timeout(std::chrono::hours(1), semaphore.acquire()));
        co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
            group.spawn(semaphore.acquire());
            co_return;
        });
    });
    f.poll();
    CHECK(task.succeeded());
    CHECK(slots == 4);
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a loop over free slots bounds the stack and lets other handlers run", "[semaphore]") {
    SemaphoreFixture f(1);
    StackSpan stack;
    bool other_ran = false;
    std::size_t taken_before_other = 0;
    const Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        asio::post(*f.context, [&] { other_ran = true; });
        for (int i = 0; i != 100'000; ++i) {
            const Slot slot = co_await f.semaphore->acquire();
            stack.touch();
            taken_before_other += !other_ran;
        }
    });
    f.poll();
    CHECK(task.succeeded());
    CHECK(taken_before_other < 100);
    CHECK(stack.size() < 200'000);  // bytes
}

TEST_CASE("semaphore: a loop over many free semaphores bounds the stack as well", "[semaphore]") {
    asio::io_context context;
    std::deque<StageSemaphore> semaphores;
    for (int i = 0; i != 1000; ++i) {
        semaphores.emplace_back(context.get_executor(), 1);
    }
    StackSpan stack;
    const Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (StageSemaphore& semaphore : semaphores) {
            const Slot slot = co_await semaphore.acquire();
            stack.touch();
        }
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(stack.size() < 200'000);  // bytes
}

namespace {

// Acquires and returns `n` slots, one after the other; counts those that it got before `other_ran`.
asio::awaitable<std::size_t> take_in_a_row(StageSemaphore& semaphore, std::size_t n, const bool& other_ran) {
    std::size_t before_other = 0;
    for (std::size_t i = 0; i != n; ++i) {
        const Slot slot = co_await semaphore.acquire();
        before_other += !other_ran;
    }
    co_return before_other;
}

// Tries `n` times to acquire a slot of a closed semaphore; counts the failures before `other_ran`.
asio::awaitable<std::size_t> fail_in_a_row(StageSemaphore& semaphore, std::size_t n, const bool& other_ran) {
    std::size_t before_other = 0;
    for (std::size_t i = 0; i != n; ++i) {
        try {
            const Slot slot = co_await semaphore.acquire();
        } catch (const boost::system::system_error&) {
            before_other += !other_ran;
        }
    }
    co_return before_other;
}

// As take_in_a_row(), `n` slots of each of two semaphores in turn.
asio::awaitable<std::size_t> take_in_turn(StageSemaphore& first, StageSemaphore& second, std::size_t n,
                                          const bool& other_ran) {
    std::size_t before_other = 0;
    for (std::size_t i = 0; i != n; ++i) {
        before_other += co_await take_in_a_row(first, 1, other_ran);
        before_other += co_await take_in_a_row(second, 1, other_ran);
    }
    co_return before_other;
}

// Acquires 60 slots, waits for one that another handler returns, and acquires 60 more; counts those that it got after
// the wait and before `other_ran`.
asio::awaitable<std::size_t> take_around_a_wait(SemaphoreFixture& f, bool& other_ran) {
    co_await take_in_a_row(*f.semaphore, 60, other_ran);
    Slot held = f.semaphore->try_acquire();
    asio::post(*f.context, [&held] { held.release(); });
    static_cast<void>(co_await f.semaphore->acquire());
    asio::post(*f.context, [&other_ran] { other_ran = true; });
    co_return co_await take_in_a_row(*f.semaphore, 60, other_ran);
}

}  // namespace

TEST_CASE("semaphore: 64 acquires in a row continue at once, and the next lets other handlers run", "[semaphore]") {
    const bool closed = GENERATE(false, true);
    SemaphoreFixture f(1);
    if (closed) {
        f.semaphore->close();
    }
    bool other_ran = false;
    Task<std::size_t> task(f.context->get_executor(), [&] {
        return closed ? fail_in_a_row(*f.semaphore, 1000, other_ran) : take_in_a_row(*f.semaphore, 1000, other_ran);
    });
    asio::post(*f.context, [&] { other_ran = true; });
    f.poll();
    REQUIRE(task.succeeded());
    CHECK(task.value() == 64);
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a loop over two free semaphores lets other handlers run", "[semaphore]") {
    SemaphoreFixture f(1);
    StageSemaphore second(f.context->get_executor(), 1);
    bool other_ran = false;
    Task<std::size_t> task(f.context->get_executor(),
                           [&] { return take_in_turn(*f.semaphore, second, 1000, other_ran); });
    asio::post(*f.context, [&] { other_ran = true; });
    f.poll();
    REQUIRE(task.succeeded());
    CHECK(task.value() <= 128);
}

TEST_CASE("semaphore: a wait ends a row of acquires that continue at once", "[semaphore]") {
    SemaphoreFixture f(1);
    bool other_ran = false;
    Task<std::size_t> task(f.context->get_executor(), [&] { return take_around_a_wait(f, other_ran); });
    f.poll();
    REQUIRE(task.succeeded());
    CHECK(task.value() == 60);
}

TEST_CASE("semaphore: coroutines with a typed executor can wait, be served and be cancelled", "[semaphore][typed]") {
    SemaphoreFixture f(1);
    asio::cancellation_signal signal;
    std::vector<std::exception_ptr> ends;
    const auto note_end = [&](const std::exception_ptr& error) { ends.push_back(error); };
    const TypedExecutor executor = f.context->get_executor();
    for (std::size_t i = 0; i != 3; ++i) {
        asio::co_spawn(executor, typed_visit<TypedExecutor>(*f.semaphore, f.order, i), note_end);
    }
    asio::co_spawn(executor, typed_visit<TypedExecutor>(*f.semaphore, f.order, 3),
                   asio::bind_cancellation_slot(signal.slot(), note_end));
    const auto untyped = f.start();  // waits in the same queue
    for (int i = 0; i != 5; ++i) {
        f.context->poll_one();
    }
    REQUIRE(f.counts(1, 4));
    signal.emit(asio::cancellation_type::terminal);
    f.poll();
    CHECK(f.order == Order{0, 1, 2, 0});
    CHECK(untyped.succeeded());
    CHECK(ends.size() == 4);
    CHECK(std::count(ends.begin(), ends.end(), nullptr) == 3);
    CHECK(f.counts(1, 0));
}

TEST_CASE("semaphore: coroutines with a typed executor are destroyed with their context",
          "[semaphore][typed][shutdown]") {
    SemaphoreFixture f(0);
    asio::co_spawn(f.context->get_executor(), typed_visit<TypedExecutor>(*f.semaphore, f.order, 0), asio::detached);
    f.poll();
    REQUIRE(f.counts(0, 1));
    f.context = std::nullopt;
    CHECK(f.counts(0, 0));
    CHECK(f.order.empty());
}
