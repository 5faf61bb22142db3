// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/retry.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>

#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/stage_bench.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::Stage;
using sluice::StageResult;
using test::cancelled_within;
using test::Endpoint;
using test::increment;
using test::Model;
using test::refusal_of;
using test::retries;
using test::run_one;
using test::run_until;
using test::StageOptions;
using test::Task;
using test::VirtualTime;
using Bench = test::StageBench;
using Run = test::StageRun;

namespace {

asio::awaitable<int> fail_with_int(int value) {
    co_await test::yield();
    throw value;
}

asio::awaitable<int> throw_before_awaitable(int) { throw std::logic_error("not even begun"); }

// Records the times that it should wait, and waits for none. Its time is not that of its context.
struct ImpatientTimer : asio::steady_timer {
    using asio::steady_timer::steady_timer;
    static inline std::vector<std::chrono::nanoseconds> waits;

    void expires_after(duration wait) {
        waits.emplace_back(wait);
        asio::steady_timer::expires_after(duration::zero());
    }
};

// The waits of 20 queries, one after the other, each of which is retried once by the same stage.
std::vector<std::chrono::nanoseconds> waits_of_a_stage(const sluice::RetryPolicy& policy) {
    ImpatientTimer::waits.clear();
    asio::io_context context;
    const auto model = [](bool& fails) -> asio::awaitable<int> {
        if (std::exchange(fails, false)) {
            throw std::runtime_error("once");
        }
        co_return 1;
    };
    Stage stage(sluice::timed_by<ImpatientTimer>(context.get_executor()), "s", 1, model, {.retry = policy});
    Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (int i = 0; i != 20; ++i) {
            bool fails = true;
            const auto result = co_await stage.run("q", fails);
            CHECK(result.attempts == 2);
        }
    });
    context.run();
    CHECK(task.succeeded());
    return ImpatientTimer::waits;
}

}  // namespace

TEST_CASE("stage: a result names the query and the stage, and has the times, the attempts and the outcome", "[stage]") {
    Bench bench(1);
    bench.model.failures["b"] = 1;
    Run a = bench.start("a");
    Run b = bench.start("b");
    CHECK(bench.run() == 20ms);

    REQUIRE(a.succeeded());
    CHECK(a.value().query_id == "id-a");
    CHECK(a.value().stage == "answer");
    CHECK(a.value().data == "answer(a)");
    CHECK(a.value().latency == 10ms);
    CHECK(a.value().queue_time == 0ms);
    CHECK(a.value().attempts == 1);
    CHECK(a.value().success);
    CHECK_FALSE(a.value().error);

    REQUIRE(b.succeeded());
    CHECK(b.value().query_id == "id-b");
    CHECK(b.value().stage == "answer");
    CHECK_FALSE(b.value().data);
    CHECK(b.value().latency == 10ms);
    CHECK(b.value().queue_time == 10ms);
    CHECK(b.value().attempts == 1);
    CHECK_FALSE(b.value().success);
    CHECK(b.value().error.type() == "std::runtime_error");
    CHECK(b.value().error.message() == "cannot answer b");
    CHECK_THROWS_AS(std::rethrow_exception(b.value().error.exception()), std::runtime_error);
    CHECK(bench.idle());
}

TEST_CASE("stage: name and endpoint are accessible", "[stage]") {
    Bench bench(3);
    CHECK(bench.stage.name() == "answer");
    CHECK(bench.stage.endpoint().limit() == 3);
    CHECK(std::as_const(bench.stage).endpoint().active() == 0);
}

TEST_CASE("stage: nothing runs until run() is awaited", "[stage]") {
    Bench bench(1);
    std::string text = "a";
    {
        auto unused = bench.stage.run("q", text);
    }
    bench.run();
    CHECK(bench.model.calls() == 0);
    CHECK(bench.idle());
}

TEST_CASE("stage: the limit is reached and never exceeded", "[stage]") {
    Bench bench(3);
    std::deque<Run> runs;
    for (int i = 0; i != 10; ++i) {
        runs.push_back(bench.start(std::to_string(i)));
    }
    CHECK(bench.run() == 40ms);
    CHECK(bench.model.peak == 3);
    CHECK(bench.model.calls() == 10);
    for (std::size_t i = 0; i != runs.size(); ++i) {
        CHECK(runs[i].value().queue_time == static_cast<int>(i / 3) * 10ms);
        CHECK(runs[i].value().latency == 10ms);
    }
}

TEST_CASE("stage: a changed limit applies to a stage that is running", "[stage]") {
    Bench bench(1);
    std::deque<Run> runs;
    for (int i = 0; i != 5; ++i) {
        runs.push_back(bench.start(std::to_string(i)));
    }
    run_until(bench.context, 5ms);
    CHECK(bench.model.running == 1);
    bench.stage.endpoint().set_limit(4);
    run_until(bench.context, 6ms);
    CHECK(bench.model.running == 4);
    CHECK(bench.run() == 14ms);  // 4 more at 5, the last at 10
    CHECK(runs[4].value().queue_time == 10ms);
}

TEST_CASE("stage: no slot is held during backoff", "[stage]") {
    Bench bench(1, StageOptions{.retry = retries(1, 100ms)});
    bench.model.latency_of = [](const std::string& text) { return text == "a" ? 10ms : 30ms; };
    bench.model.failures["a"] = 1;
    Run a = bench.start("a");
    Run b = bench.start("b");

    run_until(bench.context, 20ms);  // a has failed and backs off
    CHECK(bench.model.running == 1);
    run_until(bench.context, 50ms);  // b is done, a still backs off
    CHECK(b.done());
    CHECK(bench.idle());
    CHECK_FALSE(a.done());

    CHECK(bench.run() == 70ms);  // 10 + 100 + 10, less the 50 that have passed
    CHECK(a.value().success);
    CHECK(a.value().attempts == 2);
    CHECK(a.value().latency == 20ms);
    CHECK(a.value().queue_time == 0ms);
    CHECK(b.value().queue_time == 10ms);
    CHECK(b.value().latency == 30ms);
}

TEST_CASE("stage: after a failed attempt the query rejoins the line at the end", "[stage]") {
    const auto backoff = GENERATE(0ms, 10ms);
    Bench bench(1, StageOptions{.retry = retries(1, backoff)});
    bench.model.latency_of = [](const std::string& text) { return text == "a" ? 10ms : 30ms; };
    bench.model.failures["a"] = 1;
    Run a = bench.start("a");
    Run b = bench.start("b");
    Run c = bench.start("c");
    CHECK(bench.run() == 80ms);
    CHECK(bench.model.begun == std::vector<std::string>{"a", "b", "c", "a"});
    CHECK(a.value().attempts == 2);
    CHECK(a.value().latency == 20ms);
    CHECK(a.value().queue_time == 60ms - backoff);  // from the end of the backoff to 70
    CHECK(b.value().queue_time == 10ms);
    CHECK(c.value().queue_time == 40ms);
}

TEST_CASE("stage: latency and queue time are summed over all attempts", "[stage]") {
    Bench bench(1, StageOptions{.retry = retries(2, 5ms)});
    bench.model.latency_of = [](const std::string& text) { return text == "a" ? 7ms : 11ms; };
    bench.model.failures["a"] = 2;
    Run b = bench.start("b");
    Run a = bench.start("a");
    Run c = bench.start("c");
    bench.run();
    // b 0-11, a 11-18, c 18-29, a queues from 23, 29-36, backs off to 41, 41-48
    CHECK(bench.model.begun == std::vector<std::string>{"b", "a", "c", "a", "a"});
    CHECK(a.value().success);
    CHECK(a.value().attempts == 3);
    CHECK(a.value().latency == 21ms);
    CHECK(a.value().queue_time == 11ms + 6ms);
    CHECK(test::now(bench.context) == 48ms);
}

TEST_CASE("stage: N retries make N+1 attempts, and the last error is reported", "[stage]") {
    const int n = GENERATE(0, 1, 3);
    asio::io_context context;
    int calls = 0;
    Stage stage(
        test::timed(context.get_executor()), "s", 1,
        [&calls](int) -> asio::awaitable<int> {
            ++calls;
            co_await test::sleep(1ms);
            throw std::runtime_error("failure " + std::to_string(calls));
        },
        StageOptions{.retry = retries(n, 10ms)});
    int argument = 0;
    const auto result = run_one(context, stage, argument);
    CHECK(calls == n + 1);
    CHECK(result.attempts == n + 1);
    CHECK_FALSE(result.success);
    CHECK_FALSE(result.data);
    CHECK(result.error.message() == "failure " + std::to_string(n + 1));
    CHECK(result.latency == (n + 1) * 1ms);
    CHECK(test::now(context) == (n + 1) * 1ms + n * 10ms);
    CHECK(stage.endpoint().active() == 0);
}

TEST_CASE("stage: a success after retries carries no error", "[stage]") {
    Bench bench(1, StageOptions{.retry = retries(5)});
    bench.model.failures["a"] = 3;
    Run a = bench.start("a");
    bench.run();
    CHECK(a.value().success);
    CHECK(a.value().attempts == 4);
    CHECK(a.value().data == "answer(a)");
    CHECK_FALSE(a.value().error);
}

TEST_CASE("stage: by default there is no retry and no timeout", "[stage]") {
    Bench bench(1);
    CHECK_FALSE(StageOptions{}.timeout);
    CHECK(StageOptions{}.retry.max_retries == 0);
    bench.model.latency = std::chrono::hours(24 * 365);
    bench.model.failures["a"] = 1;
    Run a = bench.start("a");
    CHECK(bench.run() == std::chrono::hours(24 * 365));
    CHECK(a.value().attempts == 1);
    CHECK_FALSE(a.value().success);
}

TEST_CASE("stage: the backoff grows with the attempts, as the policy says", "[stage]") {
    sluice::Backoff backoff;
    backoff.initial = 10ms;
    backoff.multiplier = 3;
    backoff.cap = 50ms;
    backoff.jitter = 0;
    Bench bench(1, StageOptions{.retry = sluice::RetryPolicy(4, backoff)});
    bench.model.failures["a"] = 4;
    Run a = bench.start("a");
    CHECK(bench.run() == 5 * 10ms + 10ms + 30ms + 50ms + 50ms);
    CHECK(a.value().success);
}

TEST_CASE("stage: queries that fail together retry at different times, and the same seed repeats them", "[stage]") {
    const auto retry_times = [](std::uint64_t seed) {
        sluice::Backoff backoff;
        backoff.initial = 1s;
        backoff.cap = 1s;
        backoff.jitter = 1;
        backoff.seed = seed;
        std::vector<std::chrono::nanoseconds> times;
        asio::io_context context;
        Stage stage(
            test::timed(context.get_executor()), "s", 8,
            [&](int attempt) -> asio::awaitable<int> {
                times.push_back(test::now(context));
                if (test::now(context) == 0ns) {
                    throw attempt;
                }
                co_return attempt;
            },
            StageOptions{.retry = sluice::RetryPolicy(1, backoff)});
        std::deque<Task<StageResult<int>>> tasks;
        for (int i = 0; i != 8; ++i) {
            tasks.emplace_back(context.get_executor(), [&stage, i] { return stage.run("q", int(i)); });
        }
        sluice::testing::run(context);
        times.erase(times.begin(), times.begin() + 8);
        return times;
    };
    const auto times = retry_times(7);
    REQUIRE(times.size() == 8);
    CHECK(test::all_different(times));
    CHECK(times.back() <= 1s);
    CHECK(retry_times(7) == times);
    CHECK(retry_times(8) != times);
}

TEST_CASE("stage: an exception of any type is captured in the result", "[stage]") {
    asio::io_context context;
    int argument = 42;
    SECTION("int") {
        Stage stage(test::timed(context.get_executor()), "s", 1, &fail_with_int, StageOptions{});
        const auto result = run_one(context, stage, argument);
        CHECK_FALSE(result.success);
        CHECK(result.error.type() == "int");
        CHECK(result.error.message() == "an exception that carries no message");
        try {
            std::rethrow_exception(result.error.exception());
        } catch (int value) {
            CHECK(value == 42);
        }
    }
    SECTION("std::string") {
        const auto model = [](int) -> asio::awaitable<int> {
            co_await test::yield();
            throw std::string("out of tokens");
        };
        Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{});
        const auto result = run_one(context, stage, argument);
        CHECK(result.error.type().find("basic_string") != std::string::npos);
        CHECK(result.error.message() == "out of tokens");
    }
    SECTION("const char*") {
        const auto model = [](int) -> asio::awaitable<int> {
            throw "text";
            co_return 0;
        };
        Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{});
        CHECK(run_one(context, stage, argument).error.message() == "text");
    }
    SECTION("a user-defined type") {
        struct Mine : std::runtime_error {
            using std::runtime_error::runtime_error;
        };
        const auto model = [](int) -> asio::awaitable<int> {
            throw Mine("mine");
            co_return 0;
        };
        Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{});
        const auto result = run_one(context, stage, argument);
        CHECK(result.error.type().find("Mine") != std::string::npos);
        CHECK_THROWS_AS(std::rethrow_exception(result.error.exception()), Mine);
    }
}

TEST_CASE("stage: any exception can be retried", "[stage]") {
    asio::io_context context;
    int argument = 1;
    const auto model = GENERATE(&fail_with_int, &throw_before_awaitable, &test::throw_operation_aborted);
    Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{.retry = retries(2)});
    CHECK(run_one(context, stage, argument).attempts == 3);
    CHECK(stage.endpoint().active() == 0);
}

TEST_CASE("stage: a function that throws before returning an awaitable is a failed attempt", "[stage]") {
    asio::io_context context;
    StageOptions options;
    if (GENERATE(false, true)) {
        options.timeout = 1s;
    }
    Stage stage(test::timed(context.get_executor()), "s", 1, &throw_before_awaitable, options);
    int argument = 1;
    const auto result = run_one(context, stage, argument);
    CHECK(result.attempts == 1);
    CHECK(result.error.type() == "std::logic_error");
    CHECK(result.error.message() == "not even begun");
    CHECK(stage.endpoint().active() == 0);
}

TEST_CASE("stage: the retry predicate gets the exception and decides", "[stage]") {
    Bench bench(1, StageOptions{.retry = retries(5, {}, sluice::retry_on<std::logic_error>)});
    bench.model.failures["a"] = 1;  // a std::runtime_error
    Run a = bench.start("a");
    bench.run();
    CHECK(a.value().attempts == 1);
    CHECK(a.value().error.type() == "std::runtime_error");

    Bench other(1, StageOptions{.retry = retries(5, {}, sluice::retry_on<std::exception>)});
    other.model.failures["a"] = 1;
    Run b = other.start("a");
    other.run();
    CHECK(b.value().attempts == 2);
    CHECK(b.value().success);
}

TEST_CASE("stage: the retry predicate is not called after a success or after the last attempt", "[stage]") {
    static int asked;
    asked = 0;
    Bench bench(1, StageOptions{.retry = retries(2, {}, [](const std::exception_ptr&) { return ++asked, true; })});
    bench.model.failures["b"] = 9;
    Run a = bench.start("a");
    Run b = bench.start("b");
    bench.run();
    CHECK(b.value().attempts == 3);
    CHECK(asked == 2);
}

TEST_CASE("stage: if the retry predicate throws, there is no retry, and the reported error has the model's in it",
          "[stage]") {
    Bench bench(1, StageOptions{.retry = retries(
                                    5, {}, [](const std::exception_ptr&) -> bool { throw std::bad_function_call(); })});
    bench.model.failures["a"] = 9;
    Run a = bench.start("a");
    Run b = bench.start("b");
    bench.run();
    REQUIRE(a.succeeded());
    CHECK(a.value().attempts == 1);
    CHECK_FALSE(a.value().success);
    CHECK(a.value().error.type() == "sluice::RetryPredicateError");
#if defined(_LIBCPP_VERSION)
    CHECK(a.value().error.message() ==
          "the retry predicate threw std::__1::bad_function_call: std::exception: cannot answer a");
#else
    CHECK(a.value().error.message() ==
          "the retry predicate threw std::bad_function_call: bad_function_call: cannot answer a");
#endif
    CHECK(b.value().success);
    CHECK(bench.idle());
}

TEST_CASE("stage: a model that turns its timeout into an error of its own has timed out", "[stage]") {
    asio::io_context context;
    int calls = 0;
    const auto model = [&](int) -> asio::awaitable<int> {
        ++calls;
        if (co_await cancelled_within(1h)) {
            throw std::range_error("connection lost");
        }
        co_return 1;
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model,
                StageOptions{.timeout = 5ms, .retry = retries(2, {}, sluice::retry_on<sluice::TimeoutError>)});
    int argument = 1;
    const auto result = run_one(context, stage, argument);
    CHECK(calls == 3);
    CHECK_FALSE(result.success);
    CHECK(result.error.type() == "sluice::TimeoutError");
    CHECK(result.error.message() == "timed out after 5 ms: connection lost");
    CHECK(sluice::retry_on<std::range_error>(result.error.exception()));
}

TEST_CASE("stage: a model that still returns a value after its timeout is late", "[stage]") {
    asio::io_context context;
    const auto model = [](std::chrono::nanoseconds time) -> asio::awaitable<int> {
        co_await cancelled_within(time);
        co_return 1;
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{.timeout = 5ms});
    auto time = GENERATE(4ms, 6ms);
    const auto result = run_one(context, stage, time);
    CHECK(result.success);
    CHECK(result.data == 1);
    CHECK(result.late == (time > 5ms));
    static_assert(sizeof(StageResult<>) == 2 * sizeof(sluice::SharedString) + 2 * sizeof(time) + 2 * sizeof(int) +
                                               sizeof(sluice::StageError));  // `late` fits into padding
}

TEST_CASE("stage: a model that blocks its thread past its timeout is late", "[stage]") {
    asio::io_context context;
    const auto model = [&](int) -> asio::awaitable<int> {
        VirtualTime::of(context).advance_by(6ms);  // no other handler runs meanwhile
        co_return 1;
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{.timeout = 5ms});
    int argument = 1;
    const auto result = run_one(context, stage, argument);
    CHECK(result.success);
    CHECK(result.late);
    CHECK(result.latency == 6ms);
}

TEST_CASE("stage: a cancelled wait for a slot of an open stage is not reported as a closed stage", "[stage]") {
    Bench bench(1);
    Run a = bench.start("a");
    Run b(bench.context.get_executor(), [&]() -> asio::awaitable<StageResult<std::string>> {
        co_await asio::this_coro::throw_if_cancelled(false);
        co_await cancelled_within(1ms);
        co_return co_await bench.stage.run("b", std::string("b"));
    });
    bench.context.poll();
    b.cancel();
    run_until(bench.context, 3ms);
    b.cancel();  // while it waits for a slot
    bench.run();
    CHECK(b.aborted());
    CHECK(bench.idle());
}

TEST_CASE("stage: retries without delay let other handlers run", "[stage]") {
    asio::io_context context;
    int calls = 0;
    Stage stage(
        test::timed(context.get_executor()), "s", 1,
        [&](int) -> asio::awaitable<int> {
            ++calls;
            throw std::runtime_error("at once");
        },
        StageOptions{.retry = retries(100'000)});
    int argument = 1;
    Task<StageResult<int>> task(context.get_executor(), [&] { return stage.run("q", argument); });
    context.poll_one();
    const int before = calls;
    CHECK(before <= 64);
    context.poll_one();
    CHECK(calls > before);
    task.cancel();
    context.poll();
    CHECK(task.aborted());
    CHECK(calls <= 3 * 64);
}

TEST_CASE("stage: on virtual time the jitter is the same in every run and differs between stages", "[stage]") {
    const auto finished = [](const char* name) {
        asio::io_context context;
        Model model("answer", 1ms);
        model.failures["t"] = 3;
        Stage stage(test::timed(context.get_executor()), name, 1, Endpoint{&model},
                    StageOptions{.retry = sluice::RetryPolicy(3)});
        const std::string text = "t";
        CHECK(run_one(context, stage, text).success);
        return test::now(context);
    };
    CHECK(finished("one") == finished("one"));
    CHECK(finished("one") != finished("other"));
}

TEST_CASE("stage: without a seed, two stages with one policy have different delays", "[stage]") {
    const sluice::RetryPolicy policy{.max_retries = 1};
    const auto one = waits_of_a_stage(policy);
    const auto other = waits_of_a_stage(policy);
    REQUIRE(one.size() == 20);
    REQUIRE(other.size() == 20);
    int same = 0;
    for (std::size_t query = 0; query != 20; ++query) {
        same += one[query] == other[query];
    }
    CHECK(same < 10);
}

TEST_CASE("stage: a seed that was set takes precedence over a default seed", "[stage]") {
    const sluice::RetryPolicy policy{.max_retries = 1, .backoff = {.seed = 3}};
    const auto waits = waits_of_a_stage(policy);
    REQUIRE(waits.size() == 20);
    for (std::size_t query = 0; query != 20; ++query) {
        CHECK(waits[query] == policy.delay(1, query));
    }
}

TEST_CASE("stage: an attempt that takes longer than the timeout fails with TimeoutError", "[stage]") {
    Bench bench(1, StageOptions{.timeout = 4ms});
    Run a = bench.start("a");
    CHECK(bench.run() == 4ms);
    CHECK(a.value().attempts == 1);
    CHECK(a.value().latency == 4ms);
    CHECK(a.value().error.type() == "sluice::TimeoutError");
    CHECK(a.value().error.message() == "timed out after 4 ms");
    CHECK_THROWS_AS(std::rethrow_exception(a.value().error.exception()), sluice::TimeoutError);
    CHECK(bench.model.running == 0);
    CHECK(bench.idle());
}

TEST_CASE("stage: an attempt within the timeout is not affected by it", "[stage]") {
    Bench bench(1, StageOptions{.timeout = 11ms});
    bench.model.failures["b"] = 1;
    Run a = bench.start("a");
    Run b = bench.start("b");
    CHECK(bench.run() == 20ms);
    CHECK(a.value().data == "answer(a)");
    CHECK(a.value().latency == 10ms);
    CHECK(b.value().error.message() == "cannot answer b");
}

TEST_CASE("stage: the timeout applies to each attempt, and not to queueing or backoff", "[stage]") {
    Bench bench(1, StageOptions{.timeout = 15ms, .retry = retries(2, 100ms)});
    int calls = 0;
    bench.model.latency_of = [&](const std::string& text) { return text == "b" || ++calls < 3 ? 20ms : 14ms; };
    Run b = bench.start("b");
    Run a = bench.start("a");
    bench.run();
    // b 0-15, a 15-30, b 115-130, a 130-145, b 230-245, a 245-259
    CHECK(b.value().attempts == 3);
    CHECK(b.value().error.type() == "sluice::TimeoutError");
    CHECK(b.value().latency == 45ms);
    CHECK(b.value().queue_time == 0ms);
    CHECK(a.value().success);
    CHECK(a.value().attempts == 3);
    CHECK(a.value().latency == 15ms + 15ms + 14ms);
    CHECK(a.value().queue_time == 15ms);
    CHECK(test::now(bench.context) == 259ms);
}

TEST_CASE("stage: an attempt that timed out keeps its slot until it has cleaned up", "[stage]") {
    Bench bench(1, StageOptions{.timeout = 4ms});
    bench.model.clean_up = 30ms;
    Run a = bench.start("a");
    Run b = bench.start("b");
    run_until(bench.context, 33ms);
    CHECK(bench.model.running == 1);
    CHECK(bench.stage.endpoint().active() == 1);
    CHECK(bench.stage.endpoint().waiting() == 1);
    CHECK_FALSE(a.done());
    run_until(bench.context, 34ms);
    CHECK(a.value().error.type() == "sluice::TimeoutError");
    CHECK(a.value().latency == 34ms);
    bench.run();
    CHECK(b.value().queue_time == 34ms);
    CHECK(bench.model.peak == 1);
}

TEST_CASE("stage: attempts side by side time out each at its own time", "[stage]") {
    Bench bench(3, StageOptions{.timeout = 4ms});
    Run a = bench.start("a");
    run_until(bench.context, 1ms);
    bench.model.latency_of = [](const std::string&) { return 2ms; };
    Run b = bench.start("b");
    run_until(bench.context, 2ms);
    bench.model.latency_of = [](const std::string&) { return 5ms; };
    Run c = bench.start("c");
    bench.run();
    CHECK(a.value().latency == 4ms);
    CHECK(a.value().error.type() == "sluice::TimeoutError");
    CHECK(b.value().success);
    CHECK(c.value().latency == 4ms);
    CHECK(c.value().error.type() == "sluice::TimeoutError");
    CHECK(test::now(bench.context) == 6ms);
    CHECK(test::VirtualTime::of(bench.context).pending() == 0);
}

TEST_CASE("stage: its timer does not keep the context from running out of work", "[stage]") {
    asio::io_context context;
    const auto model = [](int value) -> asio::awaitable<int> {
        co_await test::yield();
        co_return value;
    };
    sluice::StageOptions options;
    options.timeout = 1h;
    Stage stage(test::timed(context.get_executor()), "s", 1, model, options);
    Task task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (int i = 0; i != 3; ++i) {
            const auto result = co_await stage.run("q", i);
            CHECK(result.success);
        }
    });
    context.poll();
    CHECK(task.succeeded());
    CHECK(context.stopped());
}

TEST_CASE("stage: the value that a model returns after its timeout is used", "[stage]") {
    asio::io_context context;
    const auto model = [](int value) -> asio::awaitable<int> {
        const bool cancelled = co_await cancelled_within(1h);
        co_return cancelled ? -value : value;
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{.timeout = 1s});
    int argument = 5;
    const auto result = run_one(context, stage, argument);
    CHECK(result.success);
    CHECK(result.data == -5);
    CHECK(result.latency == 1s);
}

TEST_CASE("stage: lvalue arguments are stored by reference, and each attempt sees the same objects", "[stage]") {
    asio::io_context context;
    std::vector<const std::string*> seen;
    const auto model = [&](std::string& text) -> asio::awaitable<int> {
        seen.push_back(&text);
        text += "!";
        co_await test::yield();
        if (seen.size() < 3) {
            throw 1;
        }
        co_return static_cast<int>(text.size());
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{.retry = retries(5)});
    std::string text = "a text long enough to be on the heap, surely";
    const auto size = static_cast<int>(text.size());
    const auto result = run_one(context, stage, text);
    CHECK(seen == std::vector<const std::string*>(3, &text));
    CHECK(text.ends_with("surely!!!"));
    CHECK(result.data == size + 3);
}

TEST_CASE("stage: rvalue arguments are moved in, and each attempt gets them as const lvalues", "[stage]") {
    asio::io_context context;
    std::vector<std::string> seen;
    const auto model = [&](const std::string& text, const std::unique_ptr<int>& number) -> asio::awaitable<int> {
        seen.push_back(text);
        co_await test::sleep(1ms);
        if (seen.size() < 3) {
            throw 1;
        }
        co_return *number;
    };
    Stage stage(test::timed(context.get_executor()), "s", 1, model, StageOptions{.retry = retries(5, 1ms)});
    Task<StageResult<int>> task(context.get_executor(), [&] {
        std::string text = "a text long enough to be on the heap, surely";
        auto number = std::make_unique<int>(7);
        return stage.run("q", std::move(text), std::move(number));
    });
    sluice::testing::run(context);
    CHECK(task.value().data == 7);
    CHECK(seen == std::vector<std::string>(3, "a text long enough to be on the heap, surely"));
}

TEST_CASE("stage: the constructor rejects invalid arguments, naming the stage and the value", "[stage]") {
    asio::io_context context;
    const auto ex = context.get_executor();
    const auto with_limit = [&](std::ptrdiff_t limit) {
        return refusal_of([&] { Stage stage(test::timed(ex), "judge", limit, &increment, StageOptions{}); });
    };
    CHECK(with_limit(0) == "Stage 'judge': limit must be at least 1, got 0");
    CHECK(with_limit(-1) == "Stage 'judge': limit must be at least 1, got -1");
    CHECK(with_limit(1) == "no error");

    CHECK(refusal_of([&] { Stage stage(test::timed(ex), "", 1, &increment, StageOptions{}); }) ==
          "Stage: the name must not be empty");

    CHECK(refusal_of([&] {
              Stage stage(test::timed(asio::any_io_executor()), "judge", 1, &increment, StageOptions{});
          }) == "Stage 'judge': the executor must not be empty");
    const std::function<asio::awaitable<int>(int)> empty;
    CHECK(refusal_of([&] { Stage stage(test::timed(ex), "judge", 1, std::ref(empty), StageOptions{}); }) ==
          "Stage 'judge': the model function must not be empty");
    CHECK(refusal_of([&] { Stage stage(test::timed(ex), "judge", 1, std::ref(increment), StageOptions{}); }) ==
          "no error");
    const char* no_name = nullptr;
    CHECK(refusal_of([&] { Stage stage(test::timed(ex), no_name, 1, &increment, StageOptions{}); }) ==
          "SharedString: must not be made of a null pointer");

    using Pointer = asio::awaitable<int> (*)(int);
    CHECK(refusal_of([&] { Stage stage(test::timed(ex), "judge", 1, Pointer{}, StageOptions{}); }) ==
          "Stage 'judge': the model function must not be empty");
    CHECK(refusal_of([&] {
              Stage stage(test::timed(ex), "judge", 1, std::function<asio::awaitable<int>(int)>(), StageOptions{});
          }) == "Stage 'judge': the model function must not be empty");
    struct Client {
        asio::awaitable<int> ask(int n) { co_return n; }
    };
    CHECK(refusal_of([&] {
              asio::awaitable<int> (Client::*none)(int) = nullptr;
              Stage stage(test::timed(ex), "judge", 1, none, StageOptions{});
          }) == "Stage 'judge': the model function must not be empty");

    const auto with_timeout = [&](std::chrono::nanoseconds timeout) {
        return refusal_of(
            [&] { Stage stage(test::timed(ex), "judge", 1, &increment, StageOptions{.timeout = timeout}); });
    };
    CHECK(with_timeout(0ns) == "Stage 'judge': timeout must be positive, got 0 ns");
    CHECK(with_timeout(-1ns) == "Stage 'judge': timeout must be positive, got -1 ns");
    CHECK(with_timeout(1ns) == "no error");
}

TEST_CASE("stage: stages compose as plain coroutines, and a model function may wrap others", "[stage]") {
    asio::io_context context;
    Model small("small", 10ms);
    Model large("large", 30ms);
    small.failures["b"] = 1;
    // A fallback wrapped around a model function.
    const auto fallback = [first = Endpoint{&small},
                           second = Endpoint{&large}](const std::string& text) -> asio::awaitable<std::string> {
        std::optional<std::string> result;
        try {
            result = co_await first(text);
        } catch (const std::runtime_error&) {
        }
        if (!result) {
            result = co_await second(text);
        }
        co_return *result;
    };
    Stage draft(test::timed(context.get_executor()), "draft", 1, fallback, StageOptions{});
    Stage judge(
        test::timed(context.get_executor()), "judge", 1,
        [](const std::string& text) -> asio::awaitable<bool> { co_return text.starts_with("large"); }, StageOptions{});
    const auto pipeline = [&](std::string text) -> asio::awaitable<bool> {
        auto drafted = co_await draft.run("q", text);
        auto judged = co_await judge.run("q", *drafted.data);
        co_return judged.data.value();
    };
    Task<bool> a(context.get_executor(), [&] { return pipeline("a"); });
    Task<bool> b(context.get_executor(), [&] { return pipeline("b"); });
    CHECK(sluice::testing::run(context) == 50ms);
    CHECK_FALSE(a.value());
    CHECK(b.value());
}

TEST_CASE("stage: a hundred runs with random latencies, failures and cancellations keep every guarantee",
          "[stage][stress]") {
    for (unsigned seed = 0; seed != 20; ++seed) {
        std::mt19937 random(seed);
        const int limit = static_cast<int>(random() % 5) + 1;
        Bench bench(limit, StageOptions{.timeout = 40ms, .retry = retries(2, 7ms)});
        bench.model.latency_of = [&](const std::string&) { return std::chrono::milliseconds(random() % 50 + 1); };
        for (int i = 0; i != 100; ++i) {
            bench.model.failures[std::to_string(i)] = static_cast<int>(random() % 4);
        }
        std::deque<Run> runs;
        for (int i = 0; i != 100; ++i) {
            runs.push_back(bench.start(std::to_string(i)));
        }
        while (test::step(bench.context)) {
            REQUIRE(bench.model.running <= limit);
            REQUIRE(bench.model.running <= bench.stage.endpoint().active());
            if (const auto any = random() % 2000; any < 100) {
                if (!runs[any].done() && test::now(bench.context) > 0ns) {
                    runs[any].cancel();
                }
            }
        }
        CHECK(bench.model.peak == limit);
        CHECK(bench.idle());
        for (Run& one : runs) {
            REQUIRE(one.done());
            if (one.succeeded()) {
                CHECK(one.value().success == one.value().data.has_value());
                CHECK(one.value().success == !one.value().error);
                CHECK((one.value().success || one.value().attempts == 3));
            } else {
                CHECK(one.aborted());
            }
        }
    }
}

TEST_CASE("stage: retries without backoff do not grow the stack", "[stage][stress]") {
    asio::io_context context;
    int left = 30'000;
    Stage stage(
        test::timed(context.get_executor()), "s", 1,
        [&left](int n) -> asio::awaitable<int> {
            if (--left != 0) {
                throw n;
            }
            co_return n;
        },
        StageOptions{.retry = retries(1'000'000)});
    int argument = 1;
    CHECK(run_one(context, stage, argument).attempts == 30'000);
}
