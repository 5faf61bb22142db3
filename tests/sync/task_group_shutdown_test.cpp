// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/task_group.hpp>

#include "support/every_step.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"
#include "support/task_group_fixture.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::TaskGroup;
using sluice::with_task_group;
using test::boom_of;
using test::fail_after;
using test::Live;
using test::Log;
using test::start_group;
using test::Steps;
using test::Task;
using test::tidy;
using test::Void;

}  // namespace

TEST_CASE("task group: the context may be destroyed at every step", "[task_group][shutdown]") {
    const auto run_and_destroy = [](Steps& steps) {
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
            steps.take(context);
            if (!steps.enough()) {
                CHECK(boom_of(task) == "third");
            }
        }
        REQUIRE(live == 0);
    };
    CHECK(test::for_every_step(run_and_destroy) > 30);
}

TEST_CASE("task group: the context may be destroyed with children that never began", "[task_group][shutdown]") {
    int live = 0;
    {
        asio::io_context context;
        TaskGroup* outside_view = nullptr;
        Task<> task = start_group(context, [&](TaskGroup& group) -> Void {
            outside_view = &group;
            co_await test::sleep(1h);
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
