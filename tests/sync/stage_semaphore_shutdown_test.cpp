// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/probes.hpp"
#include "support/semaphore_fixture.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <optional>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using sluice::Slot;
using sluice::StageSemaphore;
using test::AtExit;
using test::Live;
using test::SemaphoreFixture;
using test::StackSpan;
using test::Steps;
using test::Task;

}  // namespace

TEST_CASE("semaphore: when the semaphore is destroyed, each waiter ends with operation_aborted",
          "[semaphore][shutdown]") {
    SemaphoreFixture f(1);
    auto tasks = f.acquire(4);
    tasks[0].value().release();  // granted before the destruction: this slot outlives the semaphore
    tasks[3].cancel();
    f.semaphore = std::nullopt;
    f.poll();
    CHECK(tasks[1].succeeded());
    CHECK(tasks[2].aborted());
    CHECK(tasks[3].aborted());
    tasks[1].value().release();
    CHECK_FALSE(tasks[1].value());
    CHECK(f.poll() == 0);
}

TEST_CASE("semaphore: a slot may outlive the semaphore", "[semaphore][shutdown]") {
    SemaphoreFixture f(1);
    Slot slot = f.semaphore->try_acquire();
    f.semaphore = std::nullopt;
    CHECK(slot);
    Slot moved(std::move(slot));
    CHECK(moved);
    moved.release();
    CHECK_FALSE(moved);
    CHECK(f.poll() == 0);
}

TEST_CASE("semaphore: a slot may outlive the context", "[semaphore][shutdown]") {
    SemaphoreFixture f(1);
    Slot slot = f.semaphore->try_acquire();
    const auto waiter = f.acquire();
    SECTION("and so may the semaphore") {
        f.context = std::nullopt;
        CHECK(f.counts(1, 0));
        slot.release();
        CHECK(f.counts(0, 0));
        CHECK(f.semaphore->try_acquire());
    }
    SECTION("and the semaphore, if that is destroyed first") {
        f.semaphore = std::nullopt;
        f.context = std::nullopt;
        slot.release();
    }
    SECTION("and the semaphore, if that is destroyed last") {
        f.context = std::nullopt;
        f.semaphore = std::nullopt;
        slot.release();
    }
    CHECK_FALSE(slot);
    CHECK_FALSE(waiter.done());
    CHECK(f.order.empty());
}

TEST_CASE("semaphore: after its context is destroyed, it has no executor and can still be used",
          "[semaphore][shutdown]") {
    SemaphoreFixture f(1);
    auto tasks = f.acquire(3);
    tasks[0].value().release();  // one is granted, one waits
    f.context = std::nullopt;
    CHECK_FALSE(f.semaphore->get_executor());
    CHECK(f.counts(0, 0));
    f.semaphore->set_limit(5);
    CHECK(f.semaphore->try_acquire());
    f.semaphore->close();
    CHECK_FALSE(f.semaphore->try_acquire());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: after its context is destroyed, acquire completes at once, however many follow in a row",
          "[semaphore][shutdown]") {
    StackSpan stack;
    std::optional<asio::io_context> gone(std::in_place);
    StageSemaphore semaphore(gone->get_executor(), 1);
    gone = std::nullopt;
    asio::io_context context;
    int granted = 0;
    const Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (; granted != 1000; ++granted) {
            const Slot slot = co_await semaphore.acquire();
            stack.touch();
        }
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(granted == 1000);
    CHECK(stack.size() < 200'000);  // bytes
}

TEST_CASE("semaphore: an acquire that is awaited after the semaphore was destroyed ends with operation_aborted",
          "[semaphore][shutdown]") {
    asio::io_context context;
    std::optional<StageSemaphore> semaphore(std::in_place, context.get_executor(), 1);
    std::optional<asio::awaitable<Slot>> early = semaphore->acquire();
    const Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const Slot slot = co_await *std::exchange(early, std::nullopt);
    });
    semaphore.reset();
    sluice::testing::run(context);
    CHECK(task.aborted());
}

namespace {

// Workers acquire a slot twice each, while the limit changes and some of them are cancelled.
struct SemaphoreRun {
    static constexpr std::size_t workers = 6;

    SemaphoreRun() {
        for (std::size_t i = 0; i != workers; ++i) {
            tasks.emplace_back(context->get_executor(),
                               [this, i, first = semaphore->acquire(), second = semaphore->acquire()]() mutable {
                                   return work(i, std::move(first), std::move(second));
                               });
        }
        tasks.emplace_back(context->get_executor(), [this] { return disturb(); });
    }

    asio::awaitable<void> work(std::size_t i, asio::awaitable<Slot> first, asio::awaitable<Slot> second) {
        const Live alive(frames);
        Slot slot = co_await std::move(first);
        co_await test::yield();
        slot.release();
        slot = co_await std::move(second);
        co_await test::yield();
        if (i == 0) {
            kept = std::move(slot);
        }
    }

    asio::awaitable<void> disturb() {
        const Live alive(frames);
        co_await test::yield();
        tasks[4].cancel();  // while it waits
        set_limit(3);
        tasks[2].cancel();  // it has just been granted a slot
        co_await test::yield();
        set_limit(0);
        co_await test::yield();
        set_limit(2);
    }

    void set_limit(std::ptrdiff_t limit) {
        if (semaphore) {
            semaphore->set_limit(limit);
        }
    }

    int frames = 0;
    Slot kept;
    std::vector<Task<>> tasks;
    std::optional<asio::io_context> context{std::in_place};
    std::optional<StageSemaphore> semaphore{std::in_place, context->get_executor(), 1};
};

}  // namespace

TEST_CASE("semaphore: its context may be destroyed first, at every step", "[semaphore][shutdown]") {
    test::for_every_step([](Steps& steps) {
        SemaphoreRun run;
        steps.take(*run.context);
        run.context = std::nullopt;
        CHECK(run.frames == 0);
        CHECK(run.semaphore->waiting() == 0);
        CHECK(run.semaphore->active() == (run.kept ? 1 : 0));
        CHECK_FALSE(run.semaphore->get_executor());
        run.kept.release();
        CHECK(run.semaphore->active() == 0);
        run.semaphore = std::nullopt;
    });
}

TEST_CASE("semaphore: it may be destroyed before its context, at every step", "[semaphore][shutdown]") {
    test::destroy_before_context_at_every_step<SemaphoreRun>(&SemaphoreRun::semaphore);
}

TEST_CASE("semaphore: without destruction, the run above returns every slot except the one that is kept",
          "[semaphore]") {
    SemaphoreRun run;
    run.context->poll();
    for (std::size_t i = 0; i != SemaphoreRun::workers; ++i) {
        INFO("worker " << i);
        CHECK(run.tasks[i].aborted() == (i == 2 || i == 4));
        CHECK(run.tasks[i].done());
    }
    CHECK(run.tasks.back().succeeded());
    CHECK(run.semaphore->active() == 1);
    CHECK(run.kept);
}

TEST_CASE("semaphore: a waiter destroyed with its context may release, cancel and close in a destructor",
          "[semaphore][shutdown]") {
    // The service of the strands is created after that of the semaphores and so is shut down first. After that, Asio
    // destroys frames immediately, while the semaphore is still releasing its waiters.
    SemaphoreFixture f(0);
    std::vector<Task<Slot>> tasks;
    std::function<void()> in_destructor;
    std::size_t deaths = 0;
    std::optional<asio::strand<asio::io_context::executor_type>> strand = asio::make_strand(*f.context);
    StageSemaphore semaphore(*strand, 1);
    for (int i = 0; i != 4; ++i) {
        tasks.emplace_back(*strand, [&]() -> asio::awaitable<Slot> {
            const Slot slot = semaphore.try_acquire();
            const AtExit at_exit([&] {
                ++deaths;
                in_destructor();
            });
            co_return co_await semaphore.acquire();
        });
    }
    f.poll();
    REQUIRE(semaphore.active() == 1);
    REQUIRE(semaphore.waiting() == 4);
    const auto cancel_others = [&] {
        for (std::size_t i = deaths; i != tasks.size(); ++i) {
            tasks[i].cancel();
        }
    };
    SECTION("only release its slot") {
        in_destructor = [] {};
    }
    SECTION("cancel the others while they wait") { in_destructor = cancel_others; }
    SECTION("cancel the others, some of which were granted a slot") {
        semaphore.set_limit(3);
        in_destructor = cancel_others;
    }
    SECTION("raise the limit") {
        in_destructor = [&] { semaphore.set_limit(semaphore.limit() + 1); };
    }
    SECTION("close") {
        in_destructor = [&] { semaphore.close(); };
    }
    strand.reset();
    f.context = std::nullopt;
    CHECK(deaths == 4);
    CHECK(semaphore.active() == 0);
    CHECK(semaphore.waiting() == 0);
    CHECK(std::ranges::none_of(tasks, &Task<Slot>::done));
}
