// SPDX-License-Identifier: BSL-1.0
// Wrong uses that must trigger an assertion, and correct uses that must not. Assertions are recorded here, and do not
// end the program.
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/sync/barrier.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/sync/timer.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/assert.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <cstddef>
#include <mutex>
#include <optional>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <string_view>
#include <thread>
#include <utility>
#include <vector>

namespace {

std::mutex mutex;
std::vector<std::string> messages;  // by assertions since the last call of take_messages()

std::vector<std::string> take_messages() {
    const std::lock_guard lock(mutex);
    return std::exchange(messages, {});
}

// Whether there was at least one assertion, and each of them began like this.
bool said(std::string_view beginning) {
    const auto all = take_messages();
    bool right = !all.empty();
    for (const auto& text : all) {
        right = right && text.starts_with(beginning);
    }
    return right;
}

bool silent() { return take_messages().empty(); }

}  // namespace

void boost::assertion_failed_msg(const char*, const char* msg, const char*, const char*, long) {
    const std::lock_guard lock(mutex);
    messages.emplace_back(msg);
}
void boost::assertion_failed(const char* expression, const char*, const char*, long) {
    const std::lock_guard lock(mutex);
    messages.emplace_back(expression);
}

namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::Barrier;
using sluice::Slot;
using sluice::StageSemaphore;
using test::Task;
using Void = asio::awaitable<void>;

constexpr std::string_view no_slot = "sluice::StageSemaphore: acquire() was called and not awaited";
constexpr std::string_view no_arrival = "sluice::Barrier: arrive_and_wait() was called and not awaited";

}  // namespace

TEST_CASE("assertion: an operation that is never awaited", "[assertion]") {
    asio::io_context context;
    StageSemaphore semaphore(context.get_executor(), 1);
    Barrier barrier(context.get_executor(), 1);
    Task<> task(context.get_executor(), [&]() -> Void {
        {
            auto slot = semaphore.acquire();
            CHECK(semaphore.active() == 0);
            co_await test::yield();
        }
        CHECK(said(no_slot));
        static_cast<void>(semaphore.acquire());
        CHECK(said(no_slot));
        {
            auto arrived = barrier.arrive_and_wait();
            CHECK(barrier.phase() == 0);
        }
        CHECK(said(no_arrival));
    });
    context.run();
    CHECK(task.succeeded());
    CHECK(silent());
}

TEST_CASE("assertion: none for operations that are awaited, moved from, converted, or passed on", "[assertion]") {
    asio::io_context context;
    StageSemaphore semaphore(context.get_executor(), 100);
    Barrier barrier(context.get_executor(), 1);
    Task<> task(context.get_executor(), [&]() -> Void {
        const Slot awaited = co_await semaphore.acquire();
        auto later = semaphore.acquire();
        const Slot named = co_await std::move(later);
        auto first = semaphore.acquire();
        auto second = std::move(first);
        const Slot moved = co_await std::move(second);
        asio::awaitable<Slot> converted = semaphore.acquire();
        const Slot from_awaitable = co_await std::move(converted);
        const Slot timed = co_await sluice::with_timeout(1s, [&] { return semaphore.acquire(); });
        co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> Void {
            group.spawn(semaphore.acquire());
            group.spawn(barrier.arrive_and_wait());
            co_return;
        });
        CHECK(semaphore.active() == 5);
        asio::co_spawn(context, semaphore.acquire(), asio::detached);
    });
    context.run();
    CHECK(task.succeeded());
    CHECK(silent());
}

TEST_CASE("assertion: none for an operation that an exception or a cancellation prevents from being awaited",
          "[assertion]") {
    asio::io_context context;
    StageSemaphore semaphore(context.get_executor(), 1);
    const auto fails = []() -> int { throw std::runtime_error("no"); };
    const auto both = [](StageSemaphore::Acquisition, int) {};
    Task<> throws(context.get_executor(), [&]() -> Void {
        auto never = semaphore.acquire();
        both(semaphore.acquire(), fails());
        co_await test::yield();
    });
    Task<> cancelled(context.get_executor(), [&]() -> Void {
        co_await asio::this_coro::throw_if_cancelled(false);
        co_await test::yield();
        co_await asio::this_coro::throw_if_cancelled(true);
        const Slot slot = co_await semaphore.acquire();  // Asio throws before the operation begins
    });
    context.poll_one();
    context.poll_one();
    cancelled.cancel();
    context.run();
    CHECK(throws.failed_with<std::runtime_error>());
    CHECK(cancelled.aborted());
    CHECK(semaphore.active() == 0);
    CHECK(silent());
}

TEST_CASE("assertion: none for operations in frames that never begin", "[assertion]") {
    std::optional<asio::io_context> context(std::in_place);
    StageSemaphore semaphore(context->get_executor(), 1);
    {
        const asio::awaitable<Slot> never = semaphore.acquire();
    }
    Task<> cancels(context->get_executor(), [&]() -> Void {
        co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> Void {
            group.spawn(semaphore.acquire());
            group.cancel();
            co_return;
        });
    });
    context->run();
    CHECK(cancels.succeeded());
    asio::co_spawn(*context, semaphore.acquire(), asio::detached);
    context.reset();
    CHECK(silent());
}

TEST_CASE("assertion: a primitive that is awaited in another execution context", "[assertion]") {
    constexpr std::string_view elsewhere = "sluice: awaited in a coroutine of another execution context";
    asio::io_context context;
    asio::io_context other;
    StageSemaphore semaphore(context.get_executor(), 1);
    Barrier barrier(context.get_executor(), 2);
    Task<Slot> free(other.get_executor(), [&]() -> asio::awaitable<Slot> { return semaphore.acquire(); });
    other.poll();
    CHECK(said(elsewhere));
    Task<Slot> waits(other.get_executor(), [&]() -> asio::awaitable<Slot> { return semaphore.acquire(); });
    test::poll(other);
    CHECK(said(elsewhere));
    Task<std::size_t> arrives(other.get_executor(),
                              [&]() -> asio::awaitable<std::size_t> { return barrier.arrive_and_wait(); });
    test::poll(other);
    CHECK(said(elsewhere));
    sluice::Stage stage(context.get_executor(), "s", 1, [](int) -> asio::awaitable<int> { co_return 1; });
    int argument = 1;
    Task<sluice::StageResult<int>> runs(other.get_executor(), [&] { return stage.run("q", argument); });
    test::poll(other);
    CHECK(said(elsewhere));
    Task<Slot> at_home(asio::make_strand(context), [&]() -> asio::awaitable<Slot> { return semaphore.acquire(); });
    context.poll();
    CHECK(silent());
    semaphore.close();
    barrier.abort();
    test::poll(context);
    take_messages();
}

TEST_CASE("assertion: two threads in one primitive at the same time", "[assertion]") {
    asio::io_context context;
    StageSemaphore semaphore(context.get_executor(), 1);
    std::binary_semaphore inside(0);
    std::binary_semaphore tried(0);
    asio::co_spawn(
        context,
        [&]() -> Void {
            Slot slot = co_await semaphore.acquire();
            asio::co_spawn(
                context,
                [&]() -> Void {
                    const Slot mine = co_await semaphore.acquire();
                    inside.release();  // busy, while the semaphore is resuming it
                    tried.acquire();
                },
                asio::detached);
            co_await test::yield();
            slot.release();
        },
        asio::detached);
    std::thread other([&] {
        inside.acquire();
        static_cast<void>(semaphore.try_acquire());
        tried.release();
    });
    context.run();
    other.join();
    CHECK(said("sluice: two threads use one object at the same time"));
}

TEST_CASE("assertion: none for threads that take turns", "[assertion]") {
    asio::io_context context;
    StageSemaphore semaphore(context.get_executor(), 1);
    static_cast<void>(semaphore.try_acquire());
    std::thread([&] { static_cast<void>(semaphore.try_acquire()); }).join();
    static_cast<void>(semaphore.try_acquire());
    CHECK(silent());
}

namespace {

// A stage whose only handle is destroyed during a run.
struct Short {
    asio::io_context context;
    test::Model model{"model", 10ms};
    std::optional<sluice::Stage<test::Endpoint, test::VirtualTimer>> stage;
    std::string text = "a";

    explicit Short(const test::StageOptions& options) {
        stage.emplace(test::timed(context.get_executor()), "s", 1, test::Endpoint{&model}, options);
    }
    Task<sluice::StageResult<std::string>> start() {
        return {context.get_executor(), [this] { return stage->run("q", text); }};
    }
};

}  // namespace

TEST_CASE("assertion: none for a stage that is destroyed while a query waits, runs, or is in backoff: it goes on",
          "[assertion]") {
    const bool timed = GENERATE(false, true);
    const auto when = GENERATE(5ms, 12ms);  // the first query runs, then backs off; the second waits, then runs
    test::StageOptions options{.retry = test::retries(3, 5ms)};
    if (timed) {
        options.timeout = 1s;
    }
    Short one(options);
    one.model.failures["a"] = 1;
    auto first = one.start();
    auto second = one.start();
    test::run_until(one.context, when);
    one.stage.reset();
    sluice::testing::run(one.context);
    REQUIRE(first.succeeded());
    CHECK(first.value().success);
    REQUIRE(second.succeeded());
    CHECK(second.value().success);
    CHECK(silent());
}

TEST_CASE("assertion: none for a stage that is destroyed before its query begins", "[assertion]") {
    Short one{test::StageOptions{}};
    auto query = one.stage->run("q", one.text);
    Task<sluice::StageResult<std::string>> task(one.context.get_executor(), [&] { return std::move(query); });
    one.stage.reset();
    sluice::testing::run(one.context);
    REQUIRE(task.succeeded());
    CHECK(task.value().success);
    CHECK(silent());
}

TEST_CASE("assertion: none for a stage that is destroyed with queries in it, if their context is destroyed next",
          "[assertion]") {
    for (int n = 0; n != 8; ++n) {
        Short one{{.timeout = 7ms, .retry = test::retries(3, 5ms)}};
        one.model.failures["a"] = 1;
        const auto first = one.start();
        const auto second = one.start();
        test::steps(one.context, n);
        one.stage.reset();
    }
    CHECK(silent());
}

TEST_CASE("assertion: two kinds of time in one context", "[assertion]") {
    constexpr std::string_view two_times = "sluice: two kinds of time in one execution context";
    asio::io_context context;
    const auto model = [](int) -> asio::awaitable<int> {
        co_await test::sleep(1ms);
        throw std::runtime_error("no");
    };
    int argument = 0;
    const auto run = [&](auto executor, const sluice::StageOptions& options) {
        sluice::Stage stage(executor, "s", 1, model, options);
        Task<sluice::StageResult<int>> task(context.get_executor(), [&] { return stage.run("q", argument); });
        sluice::testing::run_until_stalled(context);
        return task.succeeded();
    };
    const auto executor = context.get_executor();
    CHECK(run(test::timed(executor), {.timeout = 1h, .retry = test::retries(1, 1ms)}));
    CHECK(silent());
    CHECK(run(executor, {}));  // it waits for nothing
    CHECK(silent());
    CHECK(run(executor, {.timeout = 1h}));
    CHECK(said(two_times));
    asio::co_spawn(context, sluice::sleep_for<test::VirtualTimer>(1ms), asio::detached);
    sluice::testing::run(context);
    CHECK(silent());
    asio::co_spawn(context, sluice::sleep_for(1ns), asio::detached);
    sluice::testing::run_until_stalled(context);
    CHECK(said(two_times));
}

TEST_CASE("assertion: a step of a stage with another timer or another context than its pipeline", "[assertion]") {
    struct Answer {
        std::optional<int> number;
    };
    asio::io_context context;
    asio::io_context other;
    test::DeadLetters sink;
    const auto model = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
    const auto run = [&](auto stage) {
        auto route = [stage](sluice::Run<Answer>& query) -> Void {
            co_await query.step(&Answer::number, stage, query.query().text);
        };
        sluice::Pipeline pipeline(test::timed(context.get_executor()), std::move(route), sink, 1);
        Task<sluice::RecordResult<Answer>> task(context.get_executor(),
                                                [&] { return pipeline.process_one(sluice::Query("1", "a")); });
        sluice::testing::run_until_stalled(context);
        return task.succeeded();
    };
    CHECK(run(sluice::Stage(test::timed(context.get_executor()), "s", 1, model)));
    CHECK(silent());
    CHECK(run(sluice::Stage(context.get_executor(), "s", 1, model)));
    CHECK(said("sluice::Run: the stage of a step must have the timer of its pipeline"));
    run(sluice::Stage(test::timed(other.get_executor()), "s", 1, model));
    CHECK(said("sluice: awaited in a coroutine of another execution context"));
}
