// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/stage.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/stage_bench.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <stdexcept>
#include <string>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::Stage;
using sluice::StageResult;
using test::cancelled_within;
using test::retries;
using test::run_one;
using test::run_until;
using test::StageOptions;
using test::Task;
using test::VirtualTime;
using Bench = test::StageBench;
using Run = test::StageRun;

TEST_CASE("stage: an attempt that returns a value despite its cancellation has succeeded", "[stage][cancellation]") {
    const bool timed = GENERATE(false, true);
    asio::io_context context;
    const auto stubborn = [](const std::string& text) -> asio::awaitable<std::string> {
        co_await cancelled_within(5ms);
        co_return text;
    };
    StageOptions options;
    if (timed) {
        options.timeout = 10ms;
    }
    Stage stage(test::timed(context.get_executor()), "stubborn", 1, stubborn, options);
    const std::string text = "answer";
    Run task(context.get_executor(), [&] { return stage.run("q", text); });
    run_until(context, 1ms);
    task.cancel();
    test::steps(context, 1000);
    REQUIRE(task.succeeded());
    CHECK(task.value().data == "answer");
    CHECK(stage.endpoint().active() == 0);
}

TEST_CASE("stage: a run cancelled while it waits for a slot leaves the line", "[stage][cancellation]") {
    const auto type = test::any_cancellation();
    Bench bench(1, StageOptions{.retry = retries(3, 5ms)});
    Run a = bench.start("a");
    Run b = bench.start("b");
    Run c = bench.start("c");
    run_until(bench.context, 3ms);
    b.cancel(type);
    run_until(bench.context, 3ms);
    CHECK(b.aborted());
    CHECK(bench.stage.endpoint().waiting() == 1);
    CHECK(bench.run() == 17ms);
    CHECK(a.value().success);
    CHECK(c.value().queue_time == 10ms);
    CHECK(bench.model.begun == std::vector<std::string>{"a", "c"});
    CHECK(bench.idle());
}

TEST_CASE("stage: a run cancelled between being granted a slot and resuming hands the slot on",
          "[stage][cancellation]") {
    Bench bench(1);
    Run a = bench.start("a");
    Run b = bench.start("b");
    Run c = bench.start("c");
    while (bench.stage.endpoint().waiting() != 1 || !a.done()) {
        REQUIRE(test::step(bench.context));
    }
    CHECK(bench.model.calls() == 1);
    b.cancel();
    bench.run();
    CHECK(b.aborted());
    CHECK(c.value().success);
    CHECK(bench.model.begun == std::vector<std::string>{"a", "c"});
    CHECK(bench.idle());
}

TEST_CASE("stage: a run cancelled during an attempt ends when the attempt has cleaned up, without a retry",
          "[stage][cancellation]") {
    const auto type = test::any_cancellation();
    StageOptions options{.retry = retries(3, 5ms)};
    if (GENERATE(false, true)) {
        options.timeout = 1s;
    }
    Bench bench(1, options);
    bench.model.clean_up = 4ms;
    Run a = bench.start("a");
    Run b = bench.start("b");
    run_until(bench.context, 3ms);
    a.cancel(type);
    run_until(bench.context, 6ms);
    CHECK_FALSE(a.done());  // it cleans up
    CHECK(bench.stage.endpoint().active() == 1);
    bench.run();
    CHECK(a.aborted());
    CHECK(b.value().success);
    CHECK(b.value().queue_time == 7ms);
    CHECK(bench.model.begun == std::vector<std::string>{"a", "b"});  // no retry
    CHECK(bench.idle());
}

TEST_CASE("stage: a run cancelled during its backoff ends at once", "[stage][cancellation]") {
    const auto type = test::any_cancellation();
    Bench bench(1, StageOptions{.retry = retries(3, 1h)});
    bench.model.failures["a"] = 1;
    Run a = bench.start("a");
    run_until(bench.context, 20ms);
    CHECK(bench.idle());
    a.cancel(type);
    CHECK(bench.run() == 0ms);
    CHECK(a.aborted());
    CHECK(bench.model.calls() == 1);
    CHECK(bench.idle());
}

TEST_CASE("stage: a run cancelled as its backoff ends begins no further attempt", "[stage][cancellation]") {
    asio::io_context context;
    int calls = 0;
    const auto model = [&calls]() -> asio::awaitable<int> {  // counts before it returns its awaitable
        ++calls;
        return []() -> asio::awaitable<int> {
            throw std::runtime_error("no");
            co_return 1;
        }();
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{.retry = retries(3, 5ms)});
    Task<StageResult<int>> task(context.get_executor(), [&] { return stage.run("q"); });
    context.poll();
    REQUIRE(calls == 1);
    REQUIRE(VirtualTime::of(context).advance());  // the backoff is over, and the run has yet to resume
    task.cancel();
    test::steps(context, 100);
    CHECK(task.aborted());
    CHECK(calls == 1);
}

namespace {

// The stage run of a coroutine that goes on although it has just been cancelled.
Run start_after_a_cancellation(Bench& bench) {
    Run task(bench.context.get_executor(), [&bench]() -> asio::awaitable<StageResult<std::string>> {
        co_await asio::this_coro::throw_if_cancelled(false);
        co_await cancelled_within(1h);
        std::string text = "a";
        co_return co_await bench.stage.run("q", text);
    });
    bench.context.poll();
    task.cancel();
    return task;
}

}  // namespace

TEST_CASE("stage: a cancellation that predates the run is ignored", "[stage][cancellation]") {
    Bench bench(1, StageOptions{.retry = retries(1)});
    bench.model.failures["a"] = 2;
    Run task = start_after_a_cancellation(bench);
    test::steps(bench.context, 100);
    REQUIRE(task.succeeded());
    CHECK(task.value().attempts == 2);
    CHECK(task.value().error.message() == "cannot answer a");
}

TEST_CASE("stage: under a timeout, a second cancellation is told from one that predates the run",
          "[stage][cancellation]") {
    Bench bench(1, StageOptions{.timeout = 1h, .retry = retries(1)});
    Run task = start_after_a_cancellation(bench);
    run_until(bench.context, 1ms);
    REQUIRE(bench.model.calls() == 1);
    task.cancel();
    bench.run();
    CHECK(task.aborted());
    CHECK(bench.model.calls() == 1);
    CHECK(bench.idle());
}

TEST_CASE("stage: a run cancelled while a timed-out attempt cleans up is not retried", "[stage][cancellation]") {
    Bench bench(1, StageOptions{.timeout = 5ms, .retry = retries(3)});
    bench.model.clean_up = 10ms;
    Run a = bench.start("a");
    run_until(bench.context, 9ms);
    a.cancel();
    CHECK(bench.run() == 6ms);
    CHECK(a.aborted());
    CHECK(bench.model.calls() == 1);
    CHECK(bench.idle());
}

TEST_CASE("stage: a cancelled run throws operation_aborted, whatever its attempt threw", "[stage][cancellation]") {
    asio::io_context context;
    int calls = 0;
    const auto model = [&](int) -> asio::awaitable<int> {
        ++calls;
        co_await cancelled_within(1h);
        throw std::runtime_error("connection lost");
    };
    StageOptions options{.retry = retries(3)};
    if (GENERATE(false, true)) {
        options.timeout = 1h + 1s;
    }
    Stage stage(test::timed(context.get_executor()), "s", 1, model, options);
    Task<StageResult<int>> task(context.get_executor(), [&] { return stage.run("q", 1); });
    run_until(context, 1s);
    task.cancel();
    sluice::testing::run(context);
    CHECK(task.aborted());
    CHECK(calls == 1);
    CHECK(stage.endpoint().active() == 0);
}

TEST_CASE("stage: a run cancelled at any step ends and returns its slot", "[stage][cancellation][stress]") {
    const auto cancel_at = [](test::Steps& steps) {
        for (std::size_t victim = 0; victim != 3; ++victim) {
            Bench bench(1, StageOptions{.timeout = 8ms, .retry = retries(2, 3ms)});
            bench.model.latency_of = [](const std::string& text) { return text == "0" ? 9ms : 5ms; };
            bench.model.failures["1"] = 1;
            std::deque<Run> runs;
            for (int i = 0; i != 3; ++i) {
                runs.push_back(bench.start(std::to_string(i)));
            }
            test::steps(bench.context, 3);  // each has begun
            steps.take(bench.context);
            const bool was_done = runs[victim].done();
            const int calls = bench.model.calls();
            runs[victim].cancel();
            bench.run();
            CHECK(bench.idle());
            CHECK(bench.model.running == 0);
            CHECK(bench.model.peak == 1);
            for (std::size_t i = 0; i != 3; ++i) {
                Run& one = runs[i];
                REQUIRE(one.done());
                if (i != victim || was_done) {
                    CHECK(one.succeeded());
                    CHECK(one.value().success == (i != 0));
                    CHECK(one.value().attempts == 3 - static_cast<int>(i));
                }
            }
            if (!was_done && !runs[victim].aborted()) {
                CHECK(bench.model.calls() >= calls);  // it already had its answer
                CHECK(runs[victim].value().success);
            }
        }
    };
    test::for_every_step(cancel_at, 1);
}

TEST_CASE("stage: operation_aborted from a model that was not cancelled is a failure", "[stage][cancellation]") {
    asio::io_context context;
    StageOptions options;
    if (GENERATE(false, true)) {
        options.timeout = 1s;
    }
    Stage stage(test::timed(context.get_executor()), "s", 1, &test::throw_operation_aborted, options);
    int argument = 1;
    const auto result = run_one(context, stage, argument);
    CHECK_FALSE(result.success);
    CHECK(result.attempts == 1);
    CHECK(result.error.type() == "boost::system::system_error");
    try {
        std::rethrow_exception(result.error.exception());
    } catch (const boost::system::system_error& error) {
        CHECK(error.code() == asio::error::operation_aborted);
    }
}

TEST_CASE("stage: a run in a coroutine that disables cancellation still has its timeout, and is not cancelled",
          "[stage][cancellation]") {
    asio::io_context context;
    const auto model = [](std::chrono::nanoseconds latency) -> asio::awaitable<int> {
        co_await test::sleep(latency);
        co_return 1;
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{.timeout = 10ms});
    std::vector<StageResult<int>> results;
    Task task(context.get_executor(), [&]() -> asio::awaitable<void> {
        co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
        for (const std::chrono::nanoseconds latency : {20ms, 5ms}) {
            results.push_back(co_await stage.run("q", latency));
        }
    });
    run_until(context, 4ms);
    task.cancel();
    run_until(context, 12ms);
    task.cancel();
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(test::now(context) == 15ms);
    REQUIRE(results.size() == 2);
    CHECK(results[0].error.type() == "sluice::TimeoutError");
    CHECK(results[1].success);
    CHECK_FALSE(results[1].late);
}
