// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/task_group.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
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

#include <chrono>
#include <cstddef>
#include <exception>
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
using sluice::testing::VirtualTime;
using test::Live;
using test::step;
using test::Task;
using test::VirtualTimer;
using Void = asio::awaitable<void>;
using Log = std::vector<std::string>;

struct Boom : std::runtime_error {
    using std::runtime_error::runtime_error;
};

// What a failed task's Boom says, or nothing.
template <class T>
std::string boom_of(const Task<T>& task) {
    try {
        if (auto error = task.error()) {
            std::rethrow_exception(error);
        }
    } catch (const Boom& boom) {
        return boom.what();
    } catch (...) {
        return "something else";
    }
    return {};
}

// Logs its end of life.
struct Goodbye {
    Goodbye(Log& to, std::string what) : log(&to), text(std::move(what)) {}
    Goodbye(Goodbye&& other) noexcept : log(std::exchange(other.log, nullptr)), text(std::move(other.text)) {}
    Goodbye& operator=(Goodbye&&) = delete;
    ~Goodbye() {
        if (log) {
            log->push_back(text);
        }
    }
    Log* log;
    std::string text;
};

Void fail_after(std::chrono::nanoseconds delay, std::string what) {
    co_await test::sleep(delay);
    throw Boom(what);
}

// Says when it is done; if it is cancelled before that, takes time to clean up, and says so then.
Void tidy(Log& log, std::string name, std::chrono::nanoseconds work, std::chrono::nanoseconds clean_up) {
    bool cancelled = false;
    try {
        co_await test::sleep(work);
    } catch (const system_error&) {
        cancelled = true;
    }
    if (cancelled) {
        co_await this_coro::reset_cancellation_state(asio::enable_total_cancellation());
        try {
            co_await test::sleep(clean_up);
        } catch (const system_error&) {
            log.push_back(name + " disturbed");
            throw;
        }
        log.push_back(name + " tidy");
        throw system_error(asio::error::operation_aborted);
    }
    log.push_back(name + " done");
}

Void say(Log& log, std::string text) {
    log.push_back(std::move(text));
    co_return;
}

// Suspends until it is cancelled, and then goes on here and now, inside the emission of the signal.
Void until_cancelled() {
    auto operation = asio::async_initiate<const asio::deferred_t, void(boost::system::error_code)>(
        [](auto handler) {
            auto slot = asio::get_associated_cancellation_slot(handler);
            auto kept = std::make_shared<decltype(handler)>(std::move(handler));
            slot.assign([kept](asio::cancellation_type) {
                auto moved = std::move(*kept);
                std::move(moved)(make_error_code(asio::error::operation_aborted));
            });
        },
        asio::deferred);
    co_await std::move(operation);
}

TEST_CASE("task group: a child that comes when all have ended is refused", "[task_group]") {
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
    while (!task.done()) {  // after each handler: also between the end of the body and that of the group
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
    context.restart();
    context.poll();
    CHECK(refused);
    CHECK_FALSE(ran);
    CHECK(task.succeeded());
}

}  // namespace

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

TEST_CASE("task group: it gives what the body gave", "[task_group]") {
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

TEST_CASE("task group: a body without children is fine, and one that does not suspend", "[task_group]") {
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

TEST_CASE("task group: children spawn children, also after the body has ended", "[task_group]") {
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

TEST_CASE("task group: spawn() runs nothing of a child, and children begin in the order of spawning", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            for (const char* name : {"a", "b", "c"}) {
                if (*name == 'b') {
                    group.spawn(say(log, name));
                } else {
                    group.spawn([&log, name] {  // not a coroutine: even the call of the callable comes later
                        log.push_back(name);
                        return test::yield();
                    });
                }
            }
            log.push_back("spawned");
            co_await test::yield();
            co_await test::yield();
            group.spawn(say(log, "d"));
            log.push_back("again");
        });
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(log == Log{"spawned", "a", "b", "c", "again", "d"});
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

TEST_CASE("task group: body and children run on the executor of the awaiting coroutine", "[task_group]") {
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
    outside_view->spawn([&]() -> Void {  // from outside the strand, which nobody else uses now
        inside.push_back(strand.running_in_this_thread());
        co_return;
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(inside == std::vector<bool>(5, true));
}

TEST_CASE("task group: a callable lives as long as its coroutine, and not longer than the group", "[task_group]") {
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
        co_return "nobody reads this";
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

TEST_CASE("task group: body and callables that capture are destroyed exactly once", "[task_group]") {
    asio::io_context context;
    int live = 0;
    int most = 0;
    Task task(context.get_executor(), [&]() -> Void {
        // Named, since g++ 12 destroys a closure that is a temporary in the operand of co_await twice.
        auto body = [&most, alive = Live(live), &live](TaskGroup& group) -> Void {
            group.spawn([&most, alive, &live]() -> Void {
                co_await test::sleep(1ms);
                most = live;
            });
            co_await test::yield();
        };
        co_await with_task_group(std::move(body));
        CHECK(live == 1);  // what is left of the body that was moved from
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(most >= 2);
    CHECK(live == 0);
}

TEST_CASE("task group: the first failure is the one that comes out", "[task_group]") {
    asio::io_context context;
    Task task(context.get_executor(), []() -> Void {
        co_await with_task_group([](TaskGroup& group) -> Void {
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
    });
    CHECK(run(context) == 10ms);
    CHECK(boom_of(task) == "first");
}

TEST_CASE("task group: a failure cancels siblings and body, and their clean-up is waited for", "[task_group]") {
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
    Task<int> task(context.get_executor(), [&]() -> asio::awaitable<int> {
        co_return co_await with_task_group([&](TaskGroup& group) -> asio::awaitable<int> {
            group.spawn(tidy(log, "a", 1h, 3ms));
            group.spawn(tidy(log, "b", 1h, 2ms));
            co_await fail_after(1ms, "body");
            co_return 1;
        });
    });
    CHECK(run(context) == 4ms);
    CHECK(boom_of(task) == "body");
    CHECK(log == Log{"b tidy", "a tidy"});
}

TEST_CASE("task group: a body that throws before it gives an awaitable fails like any other", "[task_group]") {
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

TEST_CASE("task group: a child may fail before its first suspension, or before it gives an awaitable", "[task_group]") {
    asio::io_context context;
    Log log;
    const bool coroutine = GENERATE(true, false);
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
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
    });
    CHECK(run(context) == 2ms);
    CHECK(boom_of(task) == "at once");
    CHECK(log == Log{"spawned", "before tidy", "body tidy"});
}

TEST_CASE("task group: operation_aborted from cancelled siblings never masks the failure", "[task_group]") {
    asio::io_context context;
    const int position = GENERATE(0, 1, 2, 3);
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            for (int i = 0; i != 4; ++i) {
                group.spawn(i == position ? fail_after(1ms, "real") : test::sleep(1h));
            }
            co_await test::sleep(1h);
        });
    });
    CHECK(run(context) == 1ms);
    CHECK(boom_of(task) == "real");
}

TEST_CASE("task group: a failure during the clean-up of a cancelled group comes out", "[task_group]") {
    asio::io_context context;
    Task task(context.get_executor(), []() -> Void {
        co_await with_task_group([](TaskGroup& group) -> Void {
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
    });
    CHECK(run(context) == 1ms);
    CHECK(boom_of(task) == "clean-up");
}

TEST_CASE("task group: another error code than operation_aborted is a failure, also in a cancelled group",
          "[task_group]") {
    asio::io_context context;
    Task task(context.get_executor(), []() -> Void {
        co_await with_task_group([](TaskGroup& group) -> Void {
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
    });
    run(context);
    CHECK(task.failed_with<system_error>());
    CHECK_FALSE(task.aborted());
}

TEST_CASE("task group: operation_aborted from a child that nobody cancelled is a failure", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(tidy(log, "sibling", 1h, 2ms));
            group.spawn([]() -> Void {
                co_await test::sleep(1ms);
                throw system_error(asio::error::operation_aborted, "my own");
            });
            co_await test::sleep(1h);
        });
    });
    CHECK(run(context) == 3ms);
    REQUIRE(task.aborted());
    try {
        std::rethrow_exception(task.error());
    } catch (const system_error& error) {
        CHECK(std::string(error.what()).starts_with("my own"));
    }
    CHECK(log == Log{"sibling tidy"});
}

TEST_CASE("task group: a failure need not be a std::exception", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(tidy(log, "sibling", 1h, 1ms));
            group.spawn([]() -> Void {
                co_await test::yield();
                throw 42;
            });
            co_return;
        });
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

TEST_CASE("task group: cancel() from a child cancels body, siblings and the child itself", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn([&]() -> Void {
                co_await test::sleep(1ms);
                group.cancel();
                log.push_back("goes on until it suspends");
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
    CHECK(log == Log{"goes on until it suspends", "sibling tidy", "body tidy", "end"});
}

TEST_CASE("task group: cancel() from a handler outside does the same, and once is enough", "[task_group]") {
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
    for (int i = 0; i != 2; ++i) {  // the second must not disturb the clean-up
        if (within_the_loop) {
            asio::post(context, [&] { outside_view->cancel(); });
        } else {
            outside_view->cancel();
        }
        context.restart();
        context.poll();
    }
    CHECK(log.empty());
    CHECK(run(context) == 5ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"body tidy", "child tidy", "end"});
}

TEST_CASE(
    "task group: after cancel() a body that has its value gives it, one that has none ends with "
    "operation_aborted",
    "[task_group][cancellation]") {
    asio::io_context context;
    const bool cut_short = GENERATE(true, false);
    Task<int> task(context.get_executor(), [&]() -> asio::awaitable<int> {
        co_return co_await with_task_group([&](TaskGroup& group) -> asio::awaitable<int> {
            group.spawn(test::sleep(1h));
            co_await test::yield();
            group.cancel();
            if (cut_short) {
                co_await test::sleep(1ms);
            }
            co_return 5;
        });
    });
    CHECK(run(context) == 0ms);
    CHECK(task.aborted() == cut_short);
    CHECK(task.succeeded() == !cut_short);
}

TEST_CASE("task group: cancelled() tells of a cancellation by a failure and from outside", "[task_group]") {
    asio::io_context context;
    std::vector<bool> seen;
    const bool failure = GENERATE(true, false);
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
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
        log.push_back(live == 0 ? "end" : "left behind");
    });
    CHECK(run(context) == 6ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"spawned", "old tidy", "end"});
    CHECK(live == 0);
}

TEST_CASE("task group: a child cancelled before its first resume never begins, and nothing escapes",
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

TEST_CASE("task group: a child spawned outside the loop and cancelled at once never begins, and nothing escapes",
          "[task_group][cancellation]") {
    asio::io_context context;  // where co_spawn has not run a single step of the child when it is cancelled
    Log log;
    TaskGroup* outside_view = nullptr;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            outside_view = &group;
            co_await tidy(log, "body", 1h, 1ms);
        });
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

TEST_CASE("task group: cancelled after any number of steps, by any means, it ends and leaves nothing behind",
          "[task_group][cancellation]") {
    enum class By { cancel, outside } by = GENERATE(By::cancel, By::outside);
    bool cancelled = true;
    int aborted = 0;
    for (int steps = 1; cancelled; ++steps) {
        asio::io_context context;
        int live = 0;
        int left = -1;  // who was alive when the frame around the group unwound
        TaskGroup* outside_view = nullptr;
        Task task(context.get_executor(), [&]() -> Void {
            struct AtEnd {
                int& left;
                int& live;
                ~AtEnd() { left = live; }
            } at_end{left, live};
            co_await with_task_group([&](TaskGroup& group) -> Void {
                outside_view = &group;
                struct Forget {
                    TaskGroup*& group;
                    ~Forget() { group = nullptr; }
                } forget{outside_view};
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
        cancelled = true;
        for (int i = 0; i != steps && cancelled; ++i) {
            cancelled = step(context);
        }
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
    }
    CHECK((aborted > 10) == (by == By::outside));
}

TEST_CASE("task group: cancelled from outside, it finishes its children, then unwinds with operation_aborted",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    const auto type =
        GENERATE(asio::cancellation_type::terminal, asio::cancellation_type::partial, asio::cancellation_type::total);
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

TEST_CASE("task group: cancelled from outside, it ends with operation_aborted although its children finished well",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    Task<int> task(context.get_executor(), [&]() -> asio::awaitable<int> {
        co_return co_await with_task_group([&](TaskGroup&) -> asio::awaitable<int> {
            try {
                co_await test::sleep(1h);
            } catch (const system_error&) {
                log.push_back("swallowed");
            }
            co_return 1;
        });
    });
    context.poll();
    task.cancel();
    run(context);
    CHECK(task.aborted());
    CHECK(log == Log{"swallowed"});
}

TEST_CASE("task group: whatever type reaches it, body and children are cancelled with every type",
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
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(one_type(Type::terminal));
            group.spawn(one_type(Type::partial));
            group.spawn(one_type(Type::total));
            co_await one_type(Type::total);
        });
    });
    context.poll();
    task.cancel(GENERATE(Type::terminal, Type::partial, Type::total));
    CHECK(run(context) == 0ms);
    CHECK(task.aborted());
    CHECK(seen == std::vector<Type>{Type::total, Type::terminal, Type::partial, Type::total});
}

TEST_CASE("task group: a failure wins over a cancellation from outside, whichever came first",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    const bool failure_first = GENERATE(true, false);
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
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
    });
    context.poll();
    if (failure_first) {
        VirtualTime::of(context).advance();
        context.restart();
        context.poll();
    }
    task.cancel();
    run(context);
    CHECK(boom_of(task) == "failure");
    CHECK(log == Log{"sibling tidy"});
}

TEST_CASE("task group: clean-up that runs already is not disturbed by a cancellation from outside, of any number",
          "[task_group][cancellation]") {
    asio::io_context context;
    Log log;
    enum class First { failure, cancel, outside } first = GENERATE(First::failure, First::cancel, First::outside);
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
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
    });
    context.poll();
    VirtualTime::of(context).advance();
    for (const auto type :
         {asio::cancellation_type::total, asio::cancellation_type::partial, asio::cancellation_type::terminal}) {
        context.restart();
        context.poll();
        task.cancel(type);
    }
    CHECK(run(context) == 20ms);
    CHECK(log == Log{"a tidy", "b tidy"});
    CHECK(boom_of(task) == (first == First::failure ? "failure" : "something else"));
    CHECK(task.aborted() == (first != First::failure));  // after cancel(), what came from outside still shows
}

TEST_CASE("task group: cancelled when all has ended but nobody has resumed yet, it still gives its value",
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

TEST_CASE("task group: a failure in the innermost of three groups unwinds them from the inside", "[task_group]") {
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

TEST_CASE("task group: a cancellation from outside reaches three groups deep, and each finishes its children first",
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

TEST_CASE("task group: an inner group that fails leaves the outer one to whoever catches", "[task_group]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& outer) -> Void {
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
    });
    CHECK(run(context) == 5ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"inner tidy", "caught", "outer done"});
}

TEST_CASE("task group: a coroutine with throw_if_cancelled(false) waits for its children all the same",
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

TEST_CASE("task group: the caller's throw_if_cancelled setting is as it was, however the group ended", "[task_group]") {
    asio::io_context context;
    const bool setting = GENERATE(true, false);
    enum class How {
        value,
        failure,
        cancel,
        outside
    } how = GENERATE(How::value, How::failure, How::cancel, How::outside);
    std::optional<bool> after;
    Task task(context.get_executor(), [&]() -> Void {
        co_await this_coro::throw_if_cancelled(setting);
        try {
            co_await with_task_group([&](TaskGroup& group) -> Void {
                co_await test::sleep(1ms);
                if (how == How::failure) {
                    throw Boom("x");
                } else if (how == How::cancel) {
                    group.cancel();
                } else if (how == How::outside) {
                    co_await test::sleep(1h);
                }
            });
        } catch (const std::exception&) {
        }
        after = co_await this_coro::throw_if_cancelled();
    });
    context.poll();
    if (how == How::outside) {
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

TEST_CASE("task group: children that end inside their cancellation do not hide those that need longer",
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
            // Within the loop, so that a child's end is not put off.
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

TEST_CASE("task group: the context may be destroyed after any number of steps", "[task_group][shutdown]") {
    bool more = true;
    int steps = 0;
    for (; more; ++steps) {
        int live = 0;
        {
            asio::io_context context;
            Log log;
            Task task(context.get_executor(), [&]() -> Void {
                const Live outer(live);
                co_await with_task_group([&](TaskGroup& group) -> Void {
                    const Live body(live);
                    for (int i = 1; i != 4; ++i) {
                        group.spawn([&group, &live, &log, i, alive = Live(live)]() -> Void {
                            const Live frame(live);
                            co_await test::sleep(std::chrono::milliseconds(i));
                            group.spawn([alive, &log]() -> Void { co_await tidy(log, "x", 5ms, 2ms); });
                            co_await with_task_group([&](TaskGroup& inner) -> Void {
                                inner.spawn([inside = Live(live)]() -> Void { co_await test::sleep(1ms); });
                                auto last = i == 3 ? fail_after(1ms, "third") : test::sleep(1ms);
                                co_await std::move(last);
                            });
                        });
                    }
                    co_await test::sleep(10ms);
                });
            });
            for (int i = 0; i != steps && more; ++i) {
                more = step(context);
            }
            if (!more) {
                CHECK(boom_of(task) == "third");
            }
        }
        REQUIRE(live == 0);
    }
    CHECK(steps > 30);
}

TEST_CASE("task group: the context may be destroyed with children that never began", "[task_group][shutdown]") {
    int live = 0;
    {
        asio::io_context context;
        TaskGroup* outside_view = nullptr;
        Task task(context.get_executor(), [&]() -> Void {
            co_await with_task_group([&](TaskGroup& group) -> Void {
                outside_view = &group;
                co_await test::sleep(1h);
            });
        });
        context.poll();
        for (int i = 0; i != 10; ++i) {
            outside_view->spawn([alive = Live(live)]() -> Void { co_await test::yield(); });
        }
        if (GENERATE(true, false)) {
            outside_view->cancel();
        }
        CHECK(live == 10);
    }
    CHECK(live == 0);
}

TEST_CASE("task group: 100,000 children, which end well or are cancelled all at once", "[task_group][stress]") {
    asio::io_context context;
    const bool cancel = GENERATE(false, true);
    int begun = 0;
    int ended = 0;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
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
    });
    CHECK(run(context) == (cancel ? 0ms : 1ms));
    CHECK(task.succeeded());
    CHECK(begun == 100'000);
    CHECK(ended == (cancel ? 0 : 100'000));
}

TEST_CASE("task group: 100,000 children that end inside their cancellation", "[task_group][stress]") {
    asio::io_context context;
    int ended = 0;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
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
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(ended == 100'000);
}

TEST_CASE("task group: a chain of 100,000 children, each spawned by the last, does not grow the stack",
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
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(link(link, group, 99'999));
            co_return;
        });
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

TEST_CASE("task group: it works in coroutines of a typed executor, with children of that type or the general one",
          "[task_group][typed]") {
    using Io = asio::io_context::executor_type;
    asio::io_context context;
    Log log;
    std::exception_ptr error;
    int value = 0;
    const bool fail = GENERATE(false, true);
    const auto typed_child = [&](bool throws) -> asio::awaitable<void, Io> {
        VirtualTimer timer(co_await this_coro::executor, 5ms);
        co_await timer.async_wait(asio::deferred);
        log.push_back("typed");
        if (throws) {
            throw Boom("typed");
        }
    };
    const auto body = [&](TaskGroup& group) -> asio::awaitable<int, Io> {
        group.spawn(typed_child(fail));
        group.spawn([&]() -> asio::awaitable<void, Io> { co_await typed_child(false); });
        group.spawn(tidy(log, "general", 10ms, 1ms));
        co_return 9;
    };
    const auto caller = [&]() -> asio::awaitable<int, Io> { co_return co_await with_task_group<Io>(body); };
    asio::co_spawn(context.get_executor(), caller, [&](std::exception_ptr e, int v) {
        error = e;
        value = v;
    });
    CHECK(run(context) == (fail ? 6ms : 10ms));
    CHECK((error != nullptr) == fail);
    CHECK(value == (fail ? 0 : 9));
    CHECK(log == (fail ? Log{"typed", "typed", "general tidy"} : Log{"typed", "typed", "general done"}));
}

TEST_CASE("task group: a group of the general executor takes children of the type that is behind it",
          "[task_group][typed]") {
    using Io = asio::io_context::executor_type;
    asio::io_context context;
    bool ran = false;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
            group.spawn(
                [&]() -> asio::awaitable<void, Io> { ran = co_await this_coro::executor == context.get_executor(); });
            co_return;
        });
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(ran);
}

TEST_CASE("task group: a child bound to another type of executor is refused with bad_executor", "[task_group][typed]") {
    using Pool = asio::thread_pool::executor_type;
    asio::io_context context;
    Log log;
    int live = 0;
    Task task(context.get_executor(), [&]() -> Void {
        co_await with_task_group([&](TaskGroup& group) -> Void {
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
