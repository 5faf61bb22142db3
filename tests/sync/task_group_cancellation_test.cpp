// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/task_group.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/every_step.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"
#include "support/task_group_fixture.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <optional>
#include <string>
#include <vector>

namespace {

namespace asio = boost::asio;
namespace this_coro = boost::asio::this_coro;
using namespace std::chrono_literals;
using boost::system::system_error;
using sluice::TaskGroup;
using sluice::with_task_group;
using sluice::testing::run;
using sluice::testing::VirtualTime;
using test::any_cancellation;
using test::AtExit;
using test::Boom;
using test::boom_of;
using test::Goodbye;
using test::Live;
using test::Log;
using test::say;
using test::start_group;
using test::step;
using test::Steps;
using test::Task;
using test::tidy;
using test::until_cancelled;
using test::VirtualTimer;
using test::Void;

}  // namespace

TEST_CASE("task group: after cancel() a body returns its value, or ends with operation_aborted if it is cut short",
          "[task_group][cancellation]") {
    asio::io_context context;
    const bool cut_short = GENERATE(true, false);
    Task<int> task = start_group(context, [&](TaskGroup& group) -> asio::awaitable<int> {
        group.spawn(test::sleep(1h));
        co_await test::yield();
        group.cancel();
        if (cut_short) {
            co_await test::sleep(1ms);
        }
        co_return 5;
    });
    CHECK(run(context) == 0ms);
    CHECK(task.aborted() == cut_short);
    CHECK(task.succeeded() == !cut_short);
}

TEST_CASE("task group: a child that is cancelled before it begins never runs, and no exception escapes",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    int live = 0;
    enum class By { cancel, failure, outside } by = GENERATE(By::cancel, By::failure, By::outside);
    std::optional<Task<>> task;
    task.emplace(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            co_await test::yield();
            for (int i = 0; i != 3; ++i) {
                group.spawn([&log, alive = Live(live)]() -> Void { co_await say(log, "never"); });
            }
            if (by == By::cancel) {
                group.cancel();
            } else if (by == By::failure) {
                throw Boom("body");
            } else {
                task->cancel();
            }
        });
    });
    CHECK_NOTHROW(run(context));
    CHECK(task->done());
    CHECK(task->succeeded() == (by == By::cancel));
    CHECK(task->aborted() == (by == By::outside));
    CHECK(boom_of(*task) == (by == By::failure ? "body" : by == By::outside ? "something else" : ""));
    CHECK(log.empty());
    CHECK(live == 0);
}

TEST_CASE("task group: a child that is spawned outside the loop and cancelled at once never runs, and nothing escapes",
          "[task_group][cancellation]") {
    asio::io_context context;  // co_spawn has not run a single step of the child when it is cancelled
    Log log;
    TaskGroup* outside_view = nullptr;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        outside_view = &group;
        co_await tidy(log, "body", 1h, 1ms);
    });
    context.poll();
    const bool from_outside = GENERATE(true, false);
    for (int i = 0; i != 3; ++i) {
        outside_view->spawn(say(log, "never"));
    }
    if (from_outside) {
        task.cancel();
    } else {
        outside_view->cancel();
    }
    CHECK_NOTHROW(run(context));
    CHECK(task.done());
    CHECK(task.aborted() == from_outside);
    CHECK(log == Log{"body tidy"});
}

TEST_CASE("task group: cancelled at every step, from inside or outside, it ends and leaves nothing behind",
          "[task_group][cancellation]") {
    enum class By { cancel, outside } by = GENERATE(By::cancel, By::outside);
    int aborted = 0;
    const auto run_and_cancel = [&](Steps& steps) {
        asio::io_context context;
        int live = 0;
        int left = -1;  // the number alive when the frame around the group unwound
        TaskGroup* outside_view = nullptr;
        Task task(context.get_executor(), [&]() -> Void {
            const AtExit count_left([&] { left = live; });
            co_await with_task_group([&](TaskGroup& group) -> Void {
                outside_view = &group;
                const AtExit forget([&] { outside_view = nullptr; });
                for (int i = 0; i != 2; ++i) {
                    group.spawn([&group, &live, alive = Live(live)]() -> Void {
                        co_await test::sleep(1ms);
                        group.spawn([alive]() -> Void { co_await test::sleep(2ms); });
                        co_await with_task_group([&](TaskGroup& inner) -> Void {
                            inner.spawn([inside = Live(live)]() -> Void { co_await test::sleep(1ms); });
                            co_await test::yield();
                        });
                    });
                }
                co_await test::sleep(10ms);
            });
        });
        steps.take(context);
        if (by == By::outside) {
            task.cancel();
        } else if (outside_view) {
            outside_view->cancel();
        }
        REQUIRE_NOTHROW(run(context));
        REQUIRE(task.done());
        REQUIRE(task.aborted() == !task.succeeded());
        REQUIRE((by == By::outside || task.succeeded()));
        REQUIRE(live == 0);
        REQUIRE(left == 0);
        aborted += task.aborted() ? 1 : 0;
    };
    test::for_every_step(run_and_cancel, 1);
    CHECK((aborted > 10) == (by == By::outside));
}

TEST_CASE("task group: cancelled from outside, it waits for its children and ends with operation_aborted",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    const auto type = any_cancellation();
    Task<int> task(context.get_executor(), [&]() -> asio::awaitable<int> {
        const Goodbye frame(log, "frame");
        co_return co_await with_task_group([&](TaskGroup& group) -> asio::awaitable<int> {
            group.spawn(tidy(log, "a", 1h, 5ms));
            group.spawn(tidy(log, "b", 1h, 3ms));
            co_await tidy(log, "body", 1h, 4ms);
            co_return 1;
        });
    });
    context.poll();
    VirtualTime::of(context).advance_by(1ms);
    task.cancel(type);
    CHECK(run(context) == 5ms);
    CHECK(task.aborted());
    CHECK(log == Log{"b tidy", "body tidy", "a tidy", "frame"});
}

TEST_CASE("task group: cancelled from outside, it ends with operation_aborted although its body completes",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    Task<int> task = start_group(context, [&](TaskGroup&) -> asio::awaitable<int> {
        try {
            co_await test::sleep(1h);
        } catch (const system_error&) {
            log.push_back("swallowed");
        }
        co_return 1;
    });
    context.poll();
    task.cancel();
    run(context);
    CHECK(task.aborted());
    CHECK(log == Log{"swallowed"});
}

TEST_CASE("task group: a cancellation of any type cancels the body and the children with every type",
          "[task_group][cancellation]") {
    asio::io_context context;
    std::vector<asio::cancellation_type> seen;
    const auto one_type = [&](asio::cancellation_type only) -> Void {
        co_await this_coro::reset_cancellation_state([only](asio::cancellation_type type) { return type & only; });
        co_await this_coro::throw_if_cancelled(false);
        try {
            co_await test::sleep(1h);
        } catch (const system_error&) {
        }
        const asio::cancellation_state state = co_await this_coro::cancellation_state;
        seen.push_back(state.cancelled());
    };
    using Type = asio::cancellation_type;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn(one_type(Type::terminal));
        group.spawn(one_type(Type::partial));
        group.spawn(one_type(Type::total));
        co_await one_type(Type::total);
    });
    context.poll();
    task.cancel(any_cancellation());
    CHECK(run(context) == 0ms);
    CHECK(task.aborted());
    CHECK(seen == std::vector<Type>{Type::total, Type::terminal, Type::partial, Type::total});
}

TEST_CASE("task group: a failure wins over a cancellation from outside, whichever came first",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    const bool failure_first = GENERATE(true, false);
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn(tidy(log, "sibling", 1h, 10ms));
        group.spawn([&]() -> Void {
            try {
                co_await test::sleep(failure_first ? 1ms : 1h);
            } catch (const system_error&) {
            }
            throw Boom("failure");
        });
        co_await test::sleep(1h);
    });
    context.poll();
    if (failure_first) {
        VirtualTime::of(context).advance();
        test::poll(context);
    }
    task.cancel();
    run(context);
    CHECK(boom_of(task) == "failure");
    CHECK(log == Log{"sibling tidy"});
}

TEST_CASE("task group: clean-up in progress is not disturbed by any number of cancellations from outside",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    enum class First { failure, cancel, outside } first = GENERATE(First::failure, First::cancel, First::outside);
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn(tidy(log, "a", 1h, 10ms));
        group.spawn(tidy(log, "b", 1h, 20ms));
        co_await test::sleep(1ms);
        if (first == First::failure) {
            throw Boom("failure");
        }
        if (first == First::cancel) {
            group.cancel();
        } else {
            co_await test::sleep(1h);
        }
    });
    context.poll();
    VirtualTime::of(context).advance();
    for (const auto type :
         {asio::cancellation_type::total, asio::cancellation_type::partial, asio::cancellation_type::terminal}) {
        test::poll(context);
        task.cancel(type);
    }
    CHECK(run(context) == 20ms);
    CHECK(log == Log{"a tidy", "b tidy"});
    CHECK(boom_of(task) == (first == First::failure ? "failure" : "something else"));
    CHECK(task.aborted() == (first != First::failure));  // even after cancel() the cancellation from outside counts
}

TEST_CASE("task group: cancelled after everything has ended but before its caller resumes, it still returns its value",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        const int value = co_await with_task_group([&](TaskGroup&) -> asio::awaitable<int> {
            const Goodbye ended(log, "body ended");
            co_return 7;
        });
        log.push_back("value " + std::to_string(value));
        co_await test::yield();
        log.push_back("never");
    });
    while (log.empty()) {
        REQUIRE(step(context));
    }
    task.cancel();
    run(context);
    CHECK(task.aborted());  // by the next co_await
    CHECK(log == Log{"body ended", "value 7"});
}

TEST_CASE("task group: a cancellation from outside reaches three nested groups, and each waits for its children first",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    const auto level = [&](auto& self, int depth) -> Void {
        const std::string name = std::to_string(depth);
        const Goodbye frame(log, "frame " + name);
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(tidy(log, "child " + name, 1h, std::chrono::milliseconds(4 - depth)));
            if (depth != 3) {
                group.spawn(self(self, depth + 1));
            }
            co_await test::sleep(1h);
        });
    };
    Task task(context.get_executor(), [&]() -> Void { co_await level(level, 1); });
    context.poll();
    task.cancel(asio::cancellation_type::total);
    CHECK(run(context) == 3ms);
    CHECK(task.aborted());
    CHECK(log == Log{"child 3 tidy", "frame 3", "child 2 tidy", "frame 2", "child 1 tidy", "frame 1"});
}

TEST_CASE("task group: a coroutine with throw_if_cancelled(false) still waits for its children",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await this_coro::throw_if_cancelled(false);
        const Goodbye frame(log, "frame");
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(tidy(log, "child", 1h, 5ms));
            co_return;
        });
    });
    context.poll();
    task.cancel();
    CHECK(run(context) == 5ms);
    CHECK(task.aborted());
    CHECK(log == Log{"child tidy", "frame"});
}

TEST_CASE("task group: children that end inside the emission of their cancellation do not hide slower ones",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    enum class By { cancel, failure, outside } by = GENERATE(By::cancel, By::failure, By::outside);
    VirtualTimer trigger(context.get_executor(), 1ms);
    std::optional<Task<>> task;
    task.emplace(context.get_executor(), [&]() -> Void {
        const Goodbye frame(log, "frame");
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(until_cancelled());
            group.spawn(until_cancelled());
            group.spawn(tidy(log, "slow", 1h, 5ms));
            group.spawn(until_cancelled());
            // Inside the loop, so that the end of a child is not deferred.
            trigger.async_wait([&](boost::system::error_code) {
                if (by == By::cancel) {
                    group.cancel();
                } else if (by == By::failure) {
                    group.spawn([]() -> Void { throw Boom("failure"); });
                } else {
                    task->cancel();
                }
            });
            co_await until_cancelled();
        });
    });
    run(context);
    CHECK(task->done());
    CHECK(log == Log{"slow tidy", "frame"});
    CHECK(boom_of(*task) == (by == By::failure ? "failure" : by == By::outside ? "something else" : ""));
}
