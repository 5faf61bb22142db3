// SPDX-License-Identifier: BSL-1.0
// Virtual time itself, and the runs that advance it.
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/timer.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/system/error_code.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <chrono>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using boost::system::error_code;
using sluice::testing::run;
using sluice::testing::run_until_stalled;
using sluice::testing::VirtualClock;
using sluice::testing::VirtualTime;
using sluice::testing::VirtualTimer;
using std::chrono::nanoseconds;
using test::Task;

namespace {

using Void = asio::awaitable<void>;
constexpr VirtualClock::time_point beginning{};

}  // namespace

TEST_CASE("virtual timer: time begins at the epoch and advances only when a runner advances it", "[virtual_timer]") {
    asio::io_context context;
    VirtualTime& time = VirtualTime::of(context);
    CHECK(time.now() == beginning);
    asio::post(context, [] {});
    test::poll(context);
    VirtualTimer timer(context.get_executor(), 5ms);
    std::optional<error_code> result;
    timer.async_wait([&](error_code error) { result = error; });
    test::poll(context);
    CHECK(time.now() == beginning);
    CHECK_FALSE(result);
    CHECK(run(context) == 5ms);
    CHECK(time.now() == beginning + 5ms);
    CHECK(result == error_code());
    CHECK(run(context) == 0ms);
}

TEST_CASE("virtual timer: each execution context has its own time", "[virtual_timer]") {
    asio::io_context one;
    asio::io_context other;
    VirtualTime::of(one).advance_by(1h);
    CHECK(VirtualTimer::now(one.get_executor()) == beginning + 1h);
    CHECK(VirtualTimer::now(other.get_executor()) == beginning);
    CHECK(&VirtualTime::of(one) == &VirtualTime::of(one));
    CHECK(&VirtualTime::of(one) != &VirtualTime::of(other));
}

TEST_CASE("virtual timer: now() returns the time of the context behind any executor", "[virtual_timer]") {
    asio::io_context context;
    VirtualTime::of(context).advance_by(3s);
    const auto strand = asio::make_strand(context);
    const asio::any_io_executor any = strand;
    CHECK(VirtualTimer::now(context.get_executor()) == beginning + 3s);
    CHECK(VirtualTimer::now(strand) == beginning + 3s);
    CHECK(VirtualTimer::now(any) == beginning + 3s);
    CHECK(sluice::detail::now<VirtualTimer>(any) == beginning + 3s);
    VirtualTimer timer(strand, 1s);
    CHECK(timer.get_executor() == any);
    CHECK(timer.expiry() == beginning + 4s);
}

TEST_CASE("virtual timer: run() returns the elapsed time, and can run again after the context ran out of work",
          "[virtual_timer]") {
    asio::io_context context;
    VirtualTime::of(context).advance_by(1s);
    for (const nanoseconds time : {nanoseconds(3ms), nanoseconds(7ms), nanoseconds(0ms)}) {
        Task task(context.get_executor(), [&]() -> Void { co_await test::sleep(time); });
        CHECK(run(context) == time);
        CHECK(task.succeeded());
    }
}

TEST_CASE("virtual timer: work that never comes does not block a run, and run() reports it", "[virtual_timer]") {
    asio::io_context context;
    auto work = asio::make_work_guard(context);
    bool ran = false;
    asio::post(context, [&] { ran = true; });
    CHECK(run_until_stalled(context) == 0ms);
    CHECK(ran);
    CHECK_THROWS_WITH(run(context), Catch::Matchers::StartsWith("sluice::testing::run: a coroutine still waits"));
    work.reset();
    CHECK(run(context) == 0ms);
}

TEST_CASE("virtual timer: run() reports that a coroutine still waits, even for another kind of timer",
          "[virtual_timer]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 0);
    asio::steady_timer timer(context, 1h);
    const bool slot = GENERATE(false, true);
    bool ended = false;
    asio::co_spawn(
        context,
        [&]() -> asio::awaitable<void> {
            co_await test::sleep(1ms);
            if (slot) {
                const sluice::Slot held = co_await semaphore.acquire();
            } else {
                co_await timer.async_wait(asio::deferred);
            }
            ended = true;
        },
        asio::detached);
    CHECK_THROWS_AS(run(context), std::logic_error);
    CHECK_FALSE(ended);
    if (slot) {
        semaphore.set_limit(1);
        CHECK(run(context) == 0ms);
        CHECK(ended);
    }
}

TEST_CASE("virtual timer: an exception leaves run(), and the remaining handlers run the next time", "[virtual_timer]") {
    asio::io_context context;
    bool next = false;
    VirtualTimer timer(context.get_executor(), 1ms);
    timer.async_wait([](error_code) { throw std::runtime_error("handler"); });
    timer.async_wait([&](error_code error) { next = !error; });
    CHECK_THROWS_AS(run(context), std::runtime_error);
    CHECK_FALSE(next);
    run(context);
    CHECK(next);
}

TEST_CASE("virtual timer: the waits that are due with one whose handler throws still end, in order",
          "[virtual_timer]") {
    auto token = std::make_shared<int>();
    const bool destroyed = GENERATE(false, true);
    {
        asio::io_context context;
        const bool strand = GENERATE(false, true);
        VirtualTimer timer(strand ? asio::any_io_executor(asio::make_strand(context)) : context.get_executor(), 1ms);
        std::vector<int> order;
        for (int i = 0; i != 6; ++i) {
            timer.async_wait([&, i, token](error_code) {
                order.push_back(i);
                if (i == 1 || i == 2 || i == 5) {
                    throw std::runtime_error("handler " + std::to_string(i));
                }
            });
        }
        CHECK_THROWS_WITH(run(context), "handler 1");
        CHECK(order == std::vector<int>{0, 1});
        if (!destroyed) {
            CHECK_THROWS_WITH(run(context), "handler 2");
            CHECK_THROWS_WITH(run(context), "handler 5");
            CHECK(run(context) == 0ms);
            CHECK(order == std::vector<int>{0, 1, 2, 3, 4, 5});
        }
    }
    CHECK(token.use_count() == 1);
}

TEST_CASE("virtual timer: run() ends when the context is stopped, and continues when it is called again",
          "[virtual_timer]") {
    asio::io_context context;
    int beats = 0;
    Task heart(context.get_executor(), [&]() -> Void {
        while (true) {
            co_await test::sleep(10ms);
            ++beats;
        }
    });
    Task patient(context.get_executor(), [&]() -> Void {
        for (int i = 0; i != 2; ++i) {
            co_await test::sleep(36ms);
            context.stop();
        }
    });
    CHECK(run(context) == 36ms);
    CHECK(beats == 3);
    CHECK(run(context) == 36ms);
    CHECK(beats == 7);
    CHECK_FALSE(heart.done());
}
