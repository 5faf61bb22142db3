// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/probes.hpp"
#include "support/task.hpp"
#include "support/task_group_fixture.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution/bad_executor.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
namespace this_coro = boost::asio::this_coro;
using namespace std::chrono_literals;
using boost::system::system_error;
using sluice::TaskGroup;
using sluice::with_task_group;
using sluice::testing::run;
using test::Boom;
using test::boom_of;
using test::fail_after;
using test::Goodbye;
using test::Live;
using test::Log;
using test::say;
using test::start_group;
using test::Task;
using test::tidy;
using test::until_cancelled;
using test::VirtualTimer;
using test::Void;

}  // namespace

TEST_CASE("task group: a child that is spawned after everything has ended is refused", "[task_group]") {
    asio::io_context context;
    TaskGroup* group = nullptr;
    bool refused = false;
    bool ran = false;
    Task<> task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& scope) -> Void {
            group = &scope;
            co_return;
        });
        group = nullptr;
    });
    while (!task.done()) {  // after each handler, including between the end of the body and that of the group
        context.restart();
        REQUIRE(context.poll_one() != 0);
        if (group && !refused) {
            try {
                group->spawn([&ran]() -> Void {
                    ran = true;
                    co_return;
                });
                break;
            } catch (const std::logic_error&) {
                refused = true;
            }
        }
    }
    test::poll(context);
    CHECK(refused);
    CHECK_FALSE(ran);
    CHECK(task.succeeded());
}

TEST_CASE("task group: it ends when the body and every child have ended", "[task_group]") {
    asio::io_context context;
    Log log;
    const auto body_time = GENERATE(0ms, 1ms, 50ms);
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(tidy(log, "a", 20ms, 0ms));
            group.spawn(tidy(log, "b", 10ms, 0ms));
            co_await test::sleep(body_time);
        });
        log.push_back("end");
    });
    CHECK(run(context) == std::max<std::chrono::nanoseconds>(20ms, body_time));
    CHECK(task.succeeded());
    CHECK(log == Log{"b done", "a done", "end"});
}

TEST_CASE("task group: it returns the value of the body", "[task_group]") {
    asio::io_context context;
    Task<std::unique_ptr<int>> task(context.get_executor(), []() -> asio::awaitable<std::unique_ptr<int>> {
        co_return co_await with_task_group([](TaskGroup& group) -> asio::awaitable<std::unique_ptr<int>> {
            group.spawn(test::sleep(5ms));  // the value waits for it
            co_return std::make_unique<int>(42);
        });
    });
    CHECK(run(context) == 5ms);
    REQUIRE(task.succeeded());
    CHECK(*task.value() == 42);
}

TEST_CASE("task group: the body need not have children, and need not suspend", "[task_group]") {
    asio::io_context context;
    Task<int> task(context.get_executor(), []() -> asio::awaitable<int> {
        const int a = co_await with_task_group([](TaskGroup&) -> asio::awaitable<int> { co_return 1; });
        const int b = co_await with_task_group([](TaskGroup&) -> asio::awaitable<int> {
            co_await test::sleep(1ms);
            co_return 2;
        });
        co_return a + b;
    });
    run(context);
    REQUIRE(task.succeeded());
    CHECK(task.value() == 3);
}

TEST_CASE("task group: children may spawn children, even after the body has ended", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn([&]() -> Void {
                co_await test::sleep(5ms);
                group.spawn([&]() -> Void {
                    co_await test::sleep(5ms);
                    group.spawn(tidy(log, "grandchild", 5ms, 0ms));
                });
            });
            log.push_back("body ended");
            co_return;
        });
        log.push_back("end");
    });
    CHECK(run(context) == 15ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"body ended", "grandchild done", "end"});
}

TEST_CASE("task group: spawn() runs no part of a child, and children begin in the order of spawning", "[task_group]") {
    asio::io_context context;
    Log log;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        for (const char* name : {"a", "b", "c"}) {
            if (*name == 'b') {
                group.spawn(say(log, name));
            } else {
                group.spawn([&log, name] {  // not a coroutine: even the callable is called later
                    log.push_back(name);
                    return test::yield();
                });
            }
        }
        log.push_back("spawned");
        co_await test::yield();
        co_await test::yield();
        group.spawn(say(log, "d"));
        log.push_back("spawned another");
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(log == Log{"spawned", "a", "b", "c", "spawned another", "d"});
}

TEST_CASE("task group: the body begins like a child, after its caller has suspended", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        asio::post(context, [&] { log.push_back("handler posted before"); });
        co_await with_task_group([&](TaskGroup&) -> Void { co_await say(log, "body"); });
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(log == Log{"handler posted before", "body"});
}

TEST_CASE("task group: the body and the children run on the executor of the awaiting coroutine", "[task_group]") {
    asio::io_context context;
    auto strand = asio::make_strand(context);
    std::vector<bool> inside;
    TaskGroup* outside_view = nullptr;
    Task task(strand, [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            outside_view = &group;
            inside.push_back(strand.running_in_this_thread());
            group.spawn([&]() -> Void {
                inside.push_back(strand.running_in_this_thread() && co_await this_coro::executor == strand);
                co_await test::sleep(5ms);
                inside.push_back(strand.running_in_this_thread());
            });
            co_await test::sleep(1ms);
        });
        inside.push_back(strand.running_in_this_thread());
    });
    context.poll();
    outside_view->spawn([&]() -> Void {  // from outside the strand, which nothing else uses now
        inside.push_back(strand.running_in_this_thread());
        co_return;
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(inside == std::vector<bool>(5, true));
}

TEST_CASE("task group: a child that waits keeps run() of the context from returning", "[task_group]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 0);
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn(semaphore.acquire());  // which is no work of the context's
        co_return;
    });
    CHECK(context.poll() != 0);
    CHECK(semaphore.waiting() == 1);
    CHECK_FALSE(context.stopped());
    CHECK_FALSE(task.done());
    asio::post(context, [&] { semaphore.set_limit(1); });
    context.run();  // returns
    CHECK(task.succeeded());
}

TEST_CASE("task group: run() of the context returns when a child has ended, however", "[task_group]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 0);
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn(fail_after(1ms, "x"));
        group.spawn(semaphore.acquire());
        co_return;
    });
    CHECK(run(context) == 1ms);  // throws if a child keeps the context from stopping
    CHECK(boom_of(task) == "x");
}

TEST_CASE("task group: the callable of a child is destroyed before the group's coroutine resumes", "[task_group]") {
    asio::io_context context;
    Log log;
    enum class End { at_once, later, failed, cancelled };
    const End end = GENERATE(End::at_once, End::later, End::failed, End::cancelled);
    Task task(context.get_executor(), [&]() -> Void {
        const auto body = [&](TaskGroup& group) -> Void {
            group.spawn([&log, end, last = Goodbye(log, "callable")]() -> Void {
                if (end != End::at_once) {
                    co_await test::sleep(1ms);
                }
                if (end == End::failed) {
                    throw Boom("x");
                }
                log.push_back("child");
            });
            if (end == End::cancelled) {
                group.cancel();
            }
            co_return;
        };
        try {
            co_await with_task_group(body);
        } catch (const Boom&) {
            log.push_back("failed");
        }
        log.push_back("end");
    });
    run(context);
    CHECK(task.succeeded());
    Log expected{"callable", "end"};
    if (end == End::failed) {
        expected.insert(expected.begin() + 1, "failed");
    } else if (end != End::cancelled) {
        expected.insert(expected.begin(), "child");
    }
    CHECK(log == expected);
}

TEST_CASE("task group: the callable of the last child may spawn another as it is destroyed", "[task_group]") {
    asio::io_context context;
    Log log;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        const auto spawn_another = [&] { group.spawn(tidy(log, "another", 1ms, 0ms)); };
        group.spawn([&log, last = std::make_unique<test::AtExit<std::function<void()>>>(spawn_another)]() -> Void {
            co_await test::sleep(1ms);
            log.push_back("last");
        });
        co_return;
    });
    CHECK(run(context) == 2ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"last", "another done"});
}

TEST_CASE("task group: a child may be spawned before the context runs, and while it is stopped", "[task_group]") {
    asio::io_context context;
    Log log;
    TaskGroup* outside_view = nullptr;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        outside_view = &group;
        co_await test::sleep(5ms);
    });
    context.poll();
    context.stop();
    outside_view->spawn(tidy(log, "a", 10ms, 0ms));
    outside_view->spawn([&log] { return say(log, "b"); });
    CHECK(log.empty());  // they have not begun
    CHECK(run(context) == 10ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"b", "a done"});
}

TEST_CASE("task group: a callable lives as long as its coroutine, and no longer than the group", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn([&log, here = Goodbye(log, "callable"), alone = std::make_unique<int>(7)]() -> Void {
                co_await test::sleep(10ms);
                log.push_back("uses " + std::to_string(*alone));
            });
            co_await test::sleep(1ms);
            log.push_back("body");
        });
        log.push_back("end");
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(log == Log{"body", "uses 7", "callable", "end"});
}

TEST_CASE("task group: an awaitable lives no longer than the group, and values of children are discarded",
          "[task_group]") {
    asio::io_context context;
    Log log;
    const auto child = [](Goodbye) -> asio::awaitable<std::string> {
        co_await test::sleep(1ms);
        co_return "discarded";
    };
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(child(Goodbye(log, "argument")));
            group.spawn([]() -> asio::awaitable<std::unique_ptr<int>> { co_return nullptr; });
            co_return;
        });
        log.push_back("end");
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(log == Log{"argument", "end"});
}

TEST_CASE("task group: a body and callables with captures are destroyed exactly once", "[task_group]") {
    asio::io_context context;
    int live = 0;
    int most = 0;
    Task task(context.get_executor(), [&]() -> Void {
        // Named, since g++ 12 destroys a temporary closure in the operand of co_await twice.
        auto body = [&most, alive = Live(live), &live](TaskGroup& group) -> Void {
            group.spawn([&most, alive, &live]() -> Void {
                co_await test::sleep(1ms);
                most = live;
            });
            co_await test::yield();
        };
        co_await with_task_group(std::move(body));
        CHECK(live == 1);  // the body that was moved from
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(most >= 2);
    CHECK(live == 0);
}

TEST_CASE("task group: the first failure is the one that is rethrown", "[task_group]") {
    asio::io_context context;
    Task<> task = start_group(context, [](TaskGroup& group) -> Void {
        group.spawn(fail_after(30ms, "third"));
        group.spawn(fail_after(10ms, "first"));
        group.spawn([]() -> Void {
            try {
                co_await test::sleep(20ms);
            } catch (const system_error&) {
            }
            throw Boom("second, while it cleans up");
        });
        co_await test::sleep(40ms);
    });
    CHECK(run(context) == 10ms);
    CHECK(boom_of(task) == "first");
}

TEST_CASE("task group: a failure cancels the siblings and the body, and waits for their clean-up", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        const Goodbye frame(log, "frame");
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(tidy(log, "before", 1h, 7ms));
            group.spawn(fail_after(10ms, "first"));
            group.spawn(tidy(log, "after", 1h, 5ms));
            co_await tidy(log, "body", 1h, 9ms);
        });
    });
    CHECK(run(context) == 19ms);
    CHECK(boom_of(task) == "first");
    CHECK(log == Log{"after tidy", "before tidy", "body tidy", "frame"});
}

TEST_CASE("task group: a body that fails cancels the children", "[task_group]") {
    asio::io_context context;
    Log log;
    Task<int> task = start_group(context, [&](TaskGroup& group) -> asio::awaitable<int> {
        group.spawn(tidy(log, "a", 1h, 3ms));
        group.spawn(tidy(log, "b", 1h, 2ms));
        co_await fail_after(1ms, "body");
        co_return 1;
    });
    CHECK(run(context) == 4ms);
    CHECK(boom_of(task) == "body");
    CHECK(log == Log{"b tidy", "a tidy"});
}

TEST_CASE("task group: a body that throws before it returns an awaitable fails like any other", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        const auto body = [&](TaskGroup& group) -> Void {
            group.spawn(say(log, "never"));
            throw Boom("body");
        };
        co_await with_task_group(body);
    });
    run(context);
    CHECK(boom_of(task) == "body");
    CHECK(log.empty());
}

TEST_CASE("task group: a child may fail before its first suspension, or before it returns an awaitable",
          "[task_group]") {
    asio::io_context context;
    Log log;
    const bool coroutine = GENERATE(true, false);
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn(tidy(log, "before", 1h, 1ms));
        if (coroutine) {
            group.spawn([]() -> Void {
                throw Boom("at once");
                co_return;
            });
        } else {
            group.spawn([]() -> Void { throw Boom("at once"); });
        }
        log.push_back("spawned");
        group.spawn(say(log, "after, never"));
        co_await tidy(log, "body", 1h, 2ms);
    });
    CHECK(run(context) == 2ms);
    CHECK(boom_of(task) == "at once");
    CHECK(log == Log{"spawned", "before tidy", "body tidy"});
}

TEST_CASE("task group: operation_aborted from cancelled siblings never masks the failure", "[task_group]") {
    asio::io_context context;
    const int position = GENERATE(0, 1, 2, 3);
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        for (int i = 0; i != 4; ++i) {
            group.spawn(i == position ? fail_after(1ms, "real") : test::sleep(1h));
        }
        co_await test::sleep(1h);
    });
    CHECK(run(context) == 1ms);
    CHECK(boom_of(task) == "real");
}

TEST_CASE("task group: a failure during the clean-up of a cancelled group is rethrown", "[task_group]") {
    asio::io_context context;
    Task<> task = start_group(context, [](TaskGroup& group) -> Void {
        group.spawn(test::sleep(1h));  // its operation_aborted comes first, and is not a failure
        group.spawn([]() -> Void {
            try {
                co_await test::sleep(1h);
            } catch (const system_error&) {
                throw Boom("clean-up");
            }
        });
        co_await test::sleep(1ms);
        group.cancel();
    });
    CHECK(run(context) == 1ms);
    CHECK(boom_of(task) == "clean-up");
}

TEST_CASE("task group: an error code other than operation_aborted is a failure, even in a cancelled group",
          "[task_group]") {
    asio::io_context context;
    Task<> task = start_group(context, [](TaskGroup& group) -> Void {
        group.spawn([]() -> Void {
            try {
                co_await test::sleep(1h);
            } catch (const system_error&) {
                throw system_error(asio::error::eof);
            }
        });
        co_await test::sleep(1ms);
        group.cancel();
    });
    run(context);
    CHECK(task.failed_with<system_error>());
    CHECK_FALSE(task.aborted());
}

TEST_CASE("task group: operation_aborted from a child that was not cancelled is a failure", "[task_group]") {
    asio::io_context context;
    Log log;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn(tidy(log, "sibling", 1h, 2ms));
        group.spawn([]() -> Void {
            co_await test::sleep(1ms);
            throw system_error(asio::error::operation_aborted, "child");
        });
        co_await test::sleep(1h);
    });
    CHECK(run(context) == 3ms);
    REQUIRE(task.aborted());
    try {
        std::rethrow_exception(task.error());
    } catch (const system_error& error) {
        CHECK(std::string(error.what()).starts_with("child"));
    }
    CHECK(log == Log{"sibling tidy"});
}

TEST_CASE("task group: a failure need not be a std::exception", "[task_group]") {
    asio::io_context context;
    Log log;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn(tidy(log, "sibling", 1h, 1ms));
        group.spawn([]() -> Void {
            co_await test::yield();
            throw 42;
        });
        co_return;
    });
    run(context);
    CHECK(task.failed_with<int>());
    CHECK(log == Log{"sibling tidy"});
}

TEST_CASE("task group: cancel() from the body cancels every child, and the group ends normally", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(tidy(log, "a", 1h, 3ms));
            group.spawn(tidy(log, "b", 1h, 2ms));
            co_await test::sleep(1ms);
            CHECK_FALSE(group.cancelled());
            group.cancel();
            CHECK(group.cancelled());
            group.cancel();
        });
        log.push_back("end");
    });
    CHECK(run(context) == 4ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"b tidy", "a tidy", "end"});
}

TEST_CASE("task group: cancel() from a child cancels the body, the siblings and the child itself", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn([&]() -> Void {
                co_await test::sleep(1ms);
                group.cancel();
                log.push_back("continues until it suspends");
                co_await test::sleep(1h);
                log.push_back("never");
            });
            group.spawn(tidy(log, "sibling", 1h, 2ms));
            co_await tidy(log, "body", 1h, 3ms);
        });
        log.push_back("end");
    });
    CHECK(run(context) == 4ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"continues until it suspends", "sibling tidy", "body tidy", "end"});
}

TEST_CASE("task group: cancel() from a handler outside does the same, and a second call has no effect",
          "[task_group]") {
    asio::io_context context;
    Log log;
    TaskGroup* outside_view = nullptr;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            outside_view = &group;
            group.spawn(tidy(log, "child", 1h, 5ms));
            co_await tidy(log, "body", 1h, 3ms);
        });
        log.push_back("end");
    });
    context.poll();
    const bool within_the_loop = GENERATE(true, false);
    for (int i = 0; i != 2; ++i) {  // the second call must not disturb the clean-up
        if (within_the_loop) {
            asio::post(context, [&] { outside_view->cancel(); });
        } else {
            outside_view->cancel();
        }
        test::poll(context);
    }
    CHECK(log.empty());
    CHECK(run(context) == 5ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"body tidy", "child tidy", "end"});
}

TEST_CASE("task group: cancelled() reports a cancellation by a failure, and one from outside", "[task_group]") {
    asio::io_context context;
    std::vector<bool> seen;
    const bool failure = GENERATE(true, false);
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        if (failure) {
            group.spawn(fail_after(1ms, "x"));
        }
        seen.push_back(group.cancelled());
        try {
            co_await test::sleep(1h);
        } catch (const system_error&) {
            seen.push_back(group.cancelled());
        }
    });
    context.poll();
    if (!failure) {
        task.cancel();
    }
    run(context);
    CHECK(task.done());
    CHECK(seen == std::vector<bool>{false, true});
}

TEST_CASE("task group: a child spawned into a cancelled group never begins and is destroyed", "[task_group]") {
    asio::io_context context;
    Log log;
    int live = 0;
    const auto coroutine = [](Log& to, Live) -> Void { co_await say(to, "never"); };
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(tidy(log, "old", 1h, 5ms));
            co_await test::sleep(1ms);
            group.cancel();
            group.spawn([&log, alive = Live(live)] {
                log.push_back("never");
                return test::yield();
            });
            group.spawn(coroutine(log, Live(live)));
            log.push_back("spawned");
        });
        log.push_back(live == 0 ? "end" : "still alive");
    });
    CHECK(run(context) == 6ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"spawned", "old tidy", "end"});
    CHECK(live == 0);
}

TEST_CASE("task group: a failure in the innermost of three groups unwinds them from the inside out", "[task_group]") {
    asio::io_context context;
    Log log;
    const auto level = [&](auto& self, int depth) -> Void {
        const std::string name = std::to_string(depth);
        const Goodbye frame(log, "frame " + name);
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(tidy(log, "child " + name, 1h, std::chrono::milliseconds(10)));
            group.spawn(depth == 3 ? fail_after(1ms, "deep") : self(self, depth + 1));
            co_await test::sleep(1h);
        });
    };
    Task task(context.get_executor(), [&]() -> Void { co_await level(level, 1); });
    CHECK(run(context) == 31ms);
    CHECK(boom_of(task) == "deep");
    CHECK(log == Log{"child 3 tidy", "frame 3", "child 2 tidy", "frame 2", "child 1 tidy", "frame 1"});
}

TEST_CASE("task group: a failed inner group does not affect the outer one if its exception is caught", "[task_group]") {
    asio::io_context context;
    Log log;
    Task<> task = start_group(context, [&](TaskGroup& outer) -> Void {
        outer.spawn(tidy(log, "outer", 5ms, 0ms));
        try {
            co_await with_task_group([&](TaskGroup& inner) -> Void {
                inner.spawn(fail_after(1ms, "inner"));
                co_await tidy(log, "inner", 1h, 1ms);
            });
        } catch (const Boom&) {
            log.push_back("caught");
        }
        CHECK_FALSE(outer.cancelled());
    });
    CHECK(run(context) == 5ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"inner tidy", "caught", "outer done"});
}

TEST_CASE("task group: the caller's throw_if_cancelled setting is restored, however the group ended", "[task_group]") {
    asio::io_context context;
    const bool setting = GENERATE(true, false);
    enum class End { value, failure, cancel, outside };
    const End end = GENERATE(End::value, End::failure, End::cancel, End::outside);
    std::optional<bool> after;
    Task task(context.get_executor(), [&]() -> Void {
        co_await this_coro::throw_if_cancelled(setting);
        try {
            co_await with_task_group([&](TaskGroup& group) -> Void {
                co_await test::sleep(1ms);
                if (end == End::failure) {
                    throw Boom("x");
                } else if (end == End::cancel) {
                    group.cancel();
                } else if (end == End::outside) {
                    co_await test::sleep(1h);
                }
            });
        } catch (const std::exception&) {
        }
        after = co_await this_coro::throw_if_cancelled();
    });
    context.poll();
    if (end == End::outside) {
        task.cancel();
    }
    run(context);
    CHECK(task.succeeded());
    CHECK(after == setting);
}

TEST_CASE("task group: a child has the default cancellation settings, not those of the group's coroutine",
          "[task_group]") {
    asio::io_context context;
    bool throws = false;
    Task task(context.get_executor(), [&]() -> Void {
        co_await this_coro::throw_if_cancelled(false);
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn([&]() -> Void { throws = co_await this_coro::throw_if_cancelled(); });
            co_return;
        });
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(throws);
}

TEST_CASE("task group: 100,000 children complete, or are cancelled all at once", "[task_group][stress]") {
    asio::io_context context;
    const bool cancel = GENERATE(false, true);
    int begun = 0;
    int ended = 0;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        for (int i = 0; i != 100'000; ++i) {
            group.spawn([&]() -> Void {
                ++begun;
                co_await test::sleep(1ms);
                ++ended;
            });
        }
        if (cancel) {
            co_await test::yield();
            co_await test::yield();
            group.cancel();
        }
    });
    CHECK(run(context) == (cancel ? 0ms : 1ms));
    CHECK(task.succeeded());
    CHECK(begun == 100'000);
    CHECK(ended == (cancel ? 0 : 100'000));
}

TEST_CASE("task group: 100,000 children end inside the emission of their cancellation", "[task_group][stress]") {
    asio::io_context context;
    int ended = 0;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        for (int i = 0; i != 100'000; ++i) {
            group.spawn([&]() -> Void {
                try {
                    co_await until_cancelled();
                } catch (const system_error&) {
                }
                ++ended;
            });
        }
        co_await test::yield();
        co_await test::yield();
        group.cancel();
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(ended == 100'000);
}

TEST_CASE("task group: a chain of 100,000 children, each spawned by the one before, does not grow the stack",
          "[task_group][stress]") {
    asio::io_context context;
    int begun = 0;
    const auto link = [&begun](auto& self, TaskGroup& group, int left) -> Void {
        ++begun;
        if (left != 0) {
            group.spawn(self(self, group, left - 1));
        }
        co_return;
    };
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn(link(link, group, 99'999));
        co_return;
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(begun == 100'000);
}

TEST_CASE("task group: 100,000 groups, one after the other, do not grow the stack", "[task_group][stress]") {
    asio::io_context context;
    int sum = 0;
    Task task(context.get_executor(), [&]() -> Void {
        for (int i = 0; i != 100'000; ++i) {
            sum += co_await with_task_group([](TaskGroup&) -> asio::awaitable<int> { co_return 1; });
        }
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(sum == 100'000);
}

TEST_CASE("task group: it works in coroutines with a typed executor, with children of that type or of the general one",
          "[task_group][typed]") {
    using IoExecutor = asio::io_context::executor_type;
    asio::io_context context;
    Log log;
    std::exception_ptr error;
    int value = 0;
    const bool fail = GENERATE(false, true);
    const auto typed_child = [&](bool throws) -> asio::awaitable<void, IoExecutor> {
        VirtualTimer timer(co_await this_coro::executor, 5ms);
        co_await timer.async_wait(asio::deferred);
        log.push_back("typed");
        if (throws) {
            throw Boom("typed");
        }
    };
    const auto body = [&](TaskGroup& group) -> asio::awaitable<int, IoExecutor> {
        group.spawn(typed_child(fail));
        group.spawn([&]() -> asio::awaitable<void, IoExecutor> { co_await typed_child(false); });
        group.spawn(tidy(log, "general", 10ms, 1ms));
        co_return 9;
    };
    const auto caller = [&]() -> asio::awaitable<int, IoExecutor> {
        co_return co_await with_task_group<IoExecutor>(body);
    };
    asio::co_spawn(context.get_executor(), caller, [&](std::exception_ptr e, int v) {
        error = e;
        value = v;
    });
    CHECK(run(context) == (fail ? 6ms : 10ms));
    CHECK((error != nullptr) == fail);
    CHECK(value == (fail ? 0 : 9));
    CHECK(log == (fail ? Log{"typed", "typed", "general tidy"} : Log{"typed", "typed", "general done"}));
}

TEST_CASE("task group: a group with the general executor accepts children of the executor type inside it",
          "[task_group][typed]") {
    using IoExecutor = asio::io_context::executor_type;
    asio::io_context context;
    bool ran = false;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn([&]() -> asio::awaitable<void, IoExecutor> {
            ran = co_await this_coro::executor == context.get_executor();
        });
        co_return;
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(ran);
}

TEST_CASE("task group: a default argument of a child lives as long as its coroutine", "[task_group]") {
    asio::io_context context;
    std::size_t length = 0;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn([&](const std::string& text = std::string(100, 'x')) -> asio::awaitable<void> {
            co_await test::sleep(1ms);
            length = text.size();
        });
        co_return;
    });
    run(context);
    CHECK(length == 100);
}

TEST_CASE("task group: a child with another type of executor is refused with bad_executor", "[task_group][typed]") {
    using Pool = asio::thread_pool::executor_type;
    asio::io_context context;
    Log log;
    int live = 0;
    Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
        group.spawn(tidy(log, "sibling", 5ms, 0ms));
        CHECK_THROWS_AS(group.spawn([alive = Live(live), &log]() -> asio::awaitable<void, Pool> {
            log.push_back("never");
            co_return;
        }),
                        asio::execution::bad_executor);
        CHECK(live == 0);
        CHECK_FALSE(group.cancelled());
        co_return;
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(log == Log{"sibling done"});

    Task on_strand(asio::make_strand(context), []() -> Void {
        co_await with_task_group([](TaskGroup& group) -> Void {
            group.spawn([]() -> asio::awaitable<void, asio::io_context::executor_type> { co_return; });
            co_return;
        });
    });
    run(context);
    CHECK(on_strand.failed_with<asio::execution::bad_executor>());
}
