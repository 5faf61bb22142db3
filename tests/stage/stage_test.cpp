// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/retry.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>

#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::Stage;
using sluice::StageResult;
using test::Endpoint;
using test::Model;
using test::refusal_of;
using test::retries;
using test::run_until;
using test::StageOptions;
using test::Task;
using test::VirtualTime;
using test::VirtualTimer;
using Cancel = asio::cancellation_type;
using Run = Task<StageResult<std::string>>;

namespace {

// One model behind one stage, in virtual time.
struct Bench {
    Model model{"answer", 10ms};
    asio::io_context context{1};
    Stage<Endpoint, VirtualTimer> stage;

    explicit Bench(std::ptrdiff_t limit, StageOptions options = {})
        : stage(context.get_executor(), "answer", limit, Endpoint{&model}, std::move(options)) {}

    Run start(std::string text) {
        return Run(context.get_executor(),
                   [this, text = std::move(text)] { return stage.run("id-" + text, std::string(text)); });
    }
    std::chrono::nanoseconds run() { return sluice::testing::run(context); }
    bool idle() const { return stage.semaphore().active() == 0 && stage.semaphore().waiting() == 0; }
};

// Runs one query through a stage of one's own making, and gives its result.
template <class StageType, class... Args>
auto run_one(asio::io_context& context, StageType& stage, Args&... args) {
    using Result = typename decltype(stage.run("q", args...))::value_type;
    Task<Result> task(context.get_executor(), [&] { return stage.run("q", args...); });
    sluice::testing::run(context);
    REQUIRE(task.succeeded());
    return std::move(task.value());
}

asio::awaitable<int> answer(int value) { co_return value + 1; }

asio::awaitable<int> fail_with_int(int value) {
    co_await test::yield();
    throw value;
}

asio::awaitable<int> throw_before_awaitable(int) { throw std::logic_error("not even begun"); }

asio::awaitable<int> abort_by_itself(int) {
    co_await test::yield();
    throw boost::system::system_error(asio::error::operation_aborted);
}

}  // namespace

TEST_CASE("stage: a result says which query, which stage, how long and how it ended", "[stage]") {
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

TEST_CASE("stage: it says its name and shows its semaphore", "[stage]") {
    Bench bench(3);
    CHECK(bench.stage.name() == "answer");
    CHECK(bench.stage.semaphore().limit() == 3);
    CHECK(std::as_const(bench.stage).semaphore().active() == 0);
}

TEST_CASE("stage: nothing runs before run() is awaited", "[stage]") {
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

TEST_CASE("stage: a changed limit is the limit of the running stage", "[stage]") {
    Bench bench(1);
    std::deque<Run> runs;
    for (int i = 0; i != 5; ++i) {
        runs.push_back(bench.start(std::to_string(i)));
    }
    run_until(bench.context, 5ms);
    CHECK(bench.model.running == 1);
    bench.stage.semaphore().set_limit(4);
    run_until(bench.context, 6ms);
    CHECK(bench.model.running == 4);
    CHECK(bench.run() == 14ms);  // 4 more at 5, the last at 10
    CHECK(runs[4].value().queue_time == 10ms);
}

TEST_CASE("stage: no slot is held during backoff", "[stage]") {
    Bench bench(1, StageOptions(retries(1, 100ms)));
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

    CHECK(bench.run() == 70ms);  // 10 + 100 + 10, of which 50 have gone
    CHECK(a.value().success);
    CHECK(a.value().attempts == 2);
    CHECK(a.value().latency == 20ms);
    CHECK(a.value().queue_time == 0ms);
    CHECK(b.value().queue_time == 10ms);
    CHECK(b.value().latency == 30ms);
}

TEST_CASE("stage: after a failed attempt a query queues again at the end", "[stage]") {
    const auto backoff = GENERATE(0ms, 10ms);
    Bench bench(1, StageOptions(retries(1, backoff)));
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

TEST_CASE("stage: latency and queue time are the sums of all attempts", "[stage]") {
    Bench bench(1, StageOptions(retries(2, 5ms)));
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

TEST_CASE("stage: N retries are N+1 attempts, and the last error is the one reported", "[stage]") {
    const int n = GENERATE(0, 1, 3);
    asio::io_context context;
    int calls = 0;
    Stage stage(
        context.get_executor(), "s", 1,
        [&calls](int) -> asio::awaitable<int> {
            ++calls;
            co_await test::sleep(1ms);
            throw std::runtime_error("failure " + std::to_string(calls));
        },
        StageOptions(retries(n, 10ms)));
    int argument = 0;
    const auto result = run_one(context, stage, argument);
    CHECK(calls == n + 1);
    CHECK(result.attempts == n + 1);
    CHECK_FALSE(result.success);
    CHECK_FALSE(result.data);
    CHECK(result.error.message() == "failure " + std::to_string(n + 1));
    CHECK(result.latency == (n + 1) * 1ms);
    CHECK(test::now(context) == (n + 1) * 1ms + n * 10ms);
    CHECK(stage.semaphore().active() == 0);
}

TEST_CASE("stage: a success after retries carries no error", "[stage]") {
    Bench bench(1, StageOptions(retries(5)));
    bench.model.failures["a"] = 3;
    Run a = bench.start("a");
    bench.run();
    CHECK(a.value().success);
    CHECK(a.value().attempts == 4);
    CHECK(a.value().data == "answer(a)");
    CHECK_FALSE(a.value().error);
}

TEST_CASE("stage: without options there is no retry and no timeout", "[stage]") {
    Bench bench(1);
    CHECK_FALSE(StageOptions().timeout);
    CHECK(StageOptions().retry.max_retries() == 0);
    bench.model.latency = std::chrono::hours(24 * 365);
    bench.model.failures["a"] = 1;
    Run a = bench.start("a");
    CHECK(bench.run() == std::chrono::hours(24 * 365));
    CHECK(a.value().attempts == 1);
    CHECK_FALSE(a.value().success);
}

TEST_CASE("stage: backoff grows with the attempts, as the policy has it", "[stage]") {
    sluice::Backoff backoff;
    backoff.initial = 10ms;
    backoff.multiplier = 3;
    backoff.cap = 50ms;
    backoff.jitter = 0;
    Bench bench(1, StageOptions(sluice::RetryPolicy(4, backoff)));
    bench.model.failures["a"] = 4;
    Run a = bench.start("a");
    CHECK(bench.run() == 5 * 10ms + 10ms + 30ms + 50ms + 50ms);
    CHECK(a.value().success);
}

TEST_CASE("stage: queries that fail together do not retry in step, and the same seed repeats it all", "[stage]") {
    const auto retry_times = [](std::uint64_t seed) {
        sluice::Backoff backoff;
        backoff.initial = 1s;
        backoff.cap = 1s;
        backoff.jitter = 1;
        backoff.seed = seed;
        std::vector<std::chrono::nanoseconds> times;
        asio::io_context context;
        Stage stage(
            context.get_executor(), "s", 8,
            [&](int attempt) -> asio::awaitable<int> {
                times.push_back(test::now(context));
                if (test::now(context) == 0ns) {
                    throw attempt;
                }
                co_return attempt;
            },
            StageOptions(sluice::RetryPolicy(1, backoff)));
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

TEST_CASE("stage: an exception of any type ends in the result", "[stage]") {
    asio::io_context context;
    int argument = 42;
    SECTION("int") {
        Stage stage(context.get_executor(), "s", 1, &fail_with_int, StageOptions());
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
        Stage stage(context.get_executor(), "s", 1, model, StageOptions());
        const auto result = run_one(context, stage, argument);
        CHECK(result.error.type().find("basic_string") != std::string::npos);
        CHECK(result.error.message() == "out of tokens");
    }
    SECTION("const char*") {
        const auto model = [](int) -> asio::awaitable<int> {
            throw "text";
            co_return 0;
        };
        Stage stage(context.get_executor(), "s", 1, model, StageOptions());
        CHECK(run_one(context, stage, argument).error.message() == "text");
    }
    SECTION("a type of one's own") {
        struct Mine : std::runtime_error {
            using std::runtime_error::runtime_error;
        };
        const auto model = [](int) -> asio::awaitable<int> {
            throw Mine("mine");
            co_return 0;
        };
        Stage stage(context.get_executor(), "s", 1, model, StageOptions());
        const auto result = run_one(context, stage, argument);
        CHECK(result.error.type().find("Mine") != std::string::npos);
        CHECK_THROWS_AS(std::rethrow_exception(result.error.exception()), Mine);
    }
}

TEST_CASE("stage: any exception can be retried", "[stage]") {
    asio::io_context context;
    int argument = 1;
    const auto model = GENERATE(&fail_with_int, &throw_before_awaitable, &abort_by_itself);
    Stage stage(context.get_executor(), "s", 1, model, StageOptions(retries(2)));
    CHECK(run_one(context, stage, argument).attempts == 3);
    CHECK(stage.semaphore().active() == 0);
}

TEST_CASE("stage: a function that throws before it returns an awaitable is a failed attempt", "[stage]") {
    asio::io_context context;
    StageOptions options;
    if (GENERATE(false, true)) {
        options.timeout = 1s;
    }
    Stage stage(context.get_executor(), "s", 1, &throw_before_awaitable, options);
    int argument = 1;
    const auto result = run_one(context, stage, argument);
    CHECK(result.attempts == 1);
    CHECK(result.error.type() == "std::logic_error");
    CHECK(result.error.message() == "not even begun");
    CHECK(stage.semaphore().active() == 0);
}

TEST_CASE("stage: the retry predicate decides, asked with what was thrown", "[stage]") {
    Bench bench(1, StageOptions(retries(5, {}, sluice::retry_on<std::logic_error>())));
    bench.model.failures["a"] = 1;  // a std::runtime_error
    Run a = bench.start("a");
    bench.run();
    CHECK(a.value().attempts == 1);
    CHECK(a.value().error.type() == "std::runtime_error");

    Bench other(1, StageOptions(retries(5, {}, sluice::retry_on<std::exception>())));
    other.model.failures["a"] = 1;
    Run b = other.start("a");
    other.run();
    CHECK(b.value().attempts == 2);
    CHECK(b.value().success);
}

TEST_CASE("stage: the retry predicate is not asked about success, nor after the last attempt", "[stage]") {
    int asked = 0;
    Bench bench(1, StageOptions(retries(2, {}, [&](const std::exception_ptr&) { return ++asked, true; })));
    bench.model.failures["b"] = 9;
    Run a = bench.start("a");
    Run b = bench.start("b");
    bench.run();
    CHECK(b.value().attempts == 3);
    CHECK(asked == 2);
}

TEST_CASE("stage: if the retry predicate throws, the error says so and has the model's in it, and there is no retry",
          "[stage]") {
    Bench bench(
        1, StageOptions(retries(5, {}, [](const std::exception_ptr&) -> bool { throw std::bad_function_call(); })));
    bench.model.failures["a"] = 9;
    Run a = bench.start("a");
    Run b = bench.start("b");
    bench.run();
    REQUIRE(a.succeeded());
    CHECK(a.value().attempts == 1);
    CHECK_FALSE(a.value().success);
    CHECK(a.value().error.type() == "sluice::RetryPredicateError");
    CHECK(a.value().error.message() ==
          "the retry predicate threw std::bad_function_call: bad_function_call: cannot answer a");
    CHECK(b.value().success);
    CHECK(bench.idle());
}

TEST_CASE("stage: a model that turns its cancellation into an error of its own has timed out", "[stage]") {
    asio::io_context context;
    int calls = 0;
    const auto model = [&](int) -> asio::awaitable<int> {
        ++calls;
        try {
            co_await test::sleep(1h);
        } catch (const boost::system::system_error&) {
            throw std::range_error("connection lost");
        }
        co_return 1;
    };
    Stage stage(context.get_executor(), "s", 1, model,
                StageOptions(retries(2, {}, sluice::retry_on<sluice::TimeoutError>()), 5ms));
    int argument = 1;
    const auto result = run_one(context, stage, argument);
    CHECK(calls == 3);
    CHECK_FALSE(result.success);
    CHECK(result.error.type() == "sluice::TimeoutError");
    CHECK(result.error.message() == "timed out after 5 ms: connection lost");
    CHECK(sluice::retry_on<std::range_error>()(result.error.exception()));
}

TEST_CASE("stage: a model that outlives its timeout and returns all the same is late", "[stage]") {
    asio::io_context context;
    const auto model = [](std::chrono::nanoseconds time) -> asio::awaitable<int> {
        try {
            co_await test::sleep(time);
        } catch (const boost::system::system_error&) {
        }
        co_return 1;
    };
    Stage stage(context.get_executor(), "s", 1, model, StageOptions({}, 5ms));
    auto time = GENERATE(4ms, 6ms);
    const auto result = run_one(context, stage, time);
    CHECK(result.success);
    CHECK(result.data == 1);
    CHECK(result.late == (time > 5ms));
    static_assert(sizeof(StageResult<>) == 2 * sizeof(sluice::SharedString) + 2 * sizeof(time) + 2 * sizeof(int) +
                                               sizeof(sluice::StageError));  // it fits into padding
}

TEST_CASE("stage: a model that blocks its thread beyond its timeout is late", "[stage]") {
    asio::io_context context;
    const auto model = [&](int) -> asio::awaitable<int> {
        VirtualTime::of(context).advance_by(6ms);  // nothing else has a turn meanwhile
        co_return 1;
    };
    Stage stage(context.get_executor(), "s", 1, model, StageOptions({}, 5ms));
    int argument = 1;
    const auto result = run_one(context, stage, argument);
    CHECK(result.success);
    CHECK(result.late);
    CHECK(result.latency == 6ms);
}

TEST_CASE("stage: an open stage is not said to be closed when a wait is cancelled that goes on", "[stage]") {
    Bench bench(1);
    Run a = bench.start("a");
    Task<StageResult<std::string>> b(bench.context.get_executor(), [&]() -> asio::awaitable<StageResult<std::string>> {
        co_await asio::this_coro::throw_if_cancelled(false);
        try {
            co_await test::sleep(1ms);
        } catch (const boost::system::system_error&) {  // cancelled, and goes on
        }
        co_return co_await bench.stage.run("b", std::string("b"));
    });
    bench.context.poll();
    b.cancel();
    run_until(bench.context, 3ms);
    b.cancel();  // in the line
    bench.run();
    REQUIRE(b.succeeded());
    CHECK_FALSE(b.value().success);
    CHECK(b.value().error.message().starts_with("StageSemaphore::acquire: Operation canceled"));
}

TEST_CASE("stage: retries without delay give others a turn", "[stage]") {
    asio::io_context context;
    int calls = 0;
    Stage stage(
        context.get_executor(), "s", 1,
        [&](int) -> asio::awaitable<int> {
            ++calls;
            throw std::runtime_error("at once");
        },
        StageOptions(retries(100'000)));
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

TEST_CASE("stage: on virtual time the jitter is the same in every run, and another in every stage", "[stage]") {
    const auto finished = [](const char* name) {
        asio::io_context context;
        Model model("answer", 1ms);
        model.failures["t"] = 3;
        Stage stage(context.get_executor(), name, 1, Endpoint{&model}, StageOptions(sluice::RetryPolicy(3)));
        const std::string text = "t";
        CHECK(run_one(context, stage, text).success);
        return test::now(context);
    };
    CHECK(finished("one") == finished("one"));
    CHECK(finished("one") != finished("other"));
}

TEST_CASE("stage: an attempt that takes longer than the timeout fails with TimeoutError", "[stage]") {
    Bench bench(1, StageOptions({}, 4ms));
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

TEST_CASE("stage: an attempt within the timeout ends when it ends", "[stage]") {
    Bench bench(1, StageOptions({}, 11ms));
    bench.model.failures["b"] = 1;
    Run a = bench.start("a");
    Run b = bench.start("b");
    CHECK(bench.run() == 20ms);
    CHECK(a.value().data == "answer(a)");
    CHECK(a.value().latency == 10ms);
    CHECK(b.value().error.message() == "cannot answer b");
}

TEST_CASE("stage: the timeout is one of each attempt, and does not run in the queue or in backoff", "[stage]") {
    Bench bench(1, StageOptions(retries(2, 100ms), 15ms));
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

TEST_CASE("stage: an attempt that timed out keeps its slot until its clean-up is done", "[stage]") {
    Bench bench(1, StageOptions({}, 4ms));
    bench.model.clean_up = 30ms;
    Run a = bench.start("a");
    Run b = bench.start("b");
    run_until(bench.context, 33ms);
    CHECK(bench.model.running == 1);
    CHECK(bench.stage.semaphore().active() == 1);
    CHECK(bench.stage.semaphore().waiting() == 1);
    CHECK_FALSE(a.done());
    run_until(bench.context, 34ms);
    CHECK(a.value().error.type() == "sluice::TimeoutError");
    CHECK(a.value().latency == 34ms);
    bench.run();
    CHECK(b.value().queue_time == 34ms);
    CHECK(bench.model.peak == 1);
}

TEST_CASE("stage: a model that answers although it timed out was in time", "[stage]") {
    asio::io_context context;
    const auto model = [](int value) -> asio::awaitable<int> {
        try {
            co_await test::sleep(1h);
        } catch (const boost::system::system_error&) {
            value = -value;
        }
        co_return value;
    };
    Stage stage(context.get_executor(), "s", 1, model, StageOptions({}, 1s));
    int argument = 5;
    const auto result = run_one(context, stage, argument);
    CHECK(result.success);
    CHECK(result.data == -5);
    CHECK(result.latency == 1s);
}

TEST_CASE("stage: an attempt that gives a value although it was cancelled has succeeded", "[stage][cancellation]") {
    const bool timed = GENERATE(false, true);
    asio::io_context context;
    const auto stubborn = [](const std::string& text) -> asio::awaitable<std::string> {
        try {
            co_await test::sleep(5ms);
        } catch (const boost::system::system_error&) {
            // what of it
        }
        co_return text;
    };
    StageOptions options;
    if (timed) {
        options.timeout = 10ms;
    }
    Stage stage(context.get_executor(), "stubborn", 1, stubborn, options);
    const std::string text = "answer";
    Run task(context.get_executor(), [&] { return stage.run("q", text); });
    run_until(context, 1ms);
    task.cancel();
    test::steps(context, 1000);
    REQUIRE(task.succeeded());
    CHECK(task.value().data == "answer");
    CHECK(stage.semaphore().active() == 0);
}

TEST_CASE("stage: cancelled in the queue", "[stage][cancellation]") {
    const auto type = GENERATE(Cancel::terminal, Cancel::partial, Cancel::total);
    Bench bench(1, StageOptions(retries(3, 5ms)));
    Run a = bench.start("a");
    Run b = bench.start("b");
    Run c = bench.start("c");
    run_until(bench.context, 3ms);
    b.cancel(type);
    run_until(bench.context, 3ms);
    CHECK(b.aborted());
    CHECK(bench.stage.semaphore().waiting() == 1);
    CHECK(bench.run() == 17ms);
    CHECK(a.value().success);
    CHECK(c.value().queue_time == 10ms);
    CHECK(bench.model.begun == std::vector<std::string>{"a", "c"});
    CHECK(bench.idle());
}

TEST_CASE("stage: cancelled between being granted a slot and resuming", "[stage][cancellation]") {
    Bench bench(1);
    Run a = bench.start("a");
    Run b = bench.start("b");
    Run c = bench.start("c");
    while (bench.stage.semaphore().waiting() != 1 || !a.done()) {
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

TEST_CASE("stage: cancelled while its attempt runs", "[stage][cancellation]") {
    const auto type = GENERATE(Cancel::terminal, Cancel::partial, Cancel::total);
    StageOptions options(retries(3, 5ms));
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
    CHECK_FALSE(a.done());  // cleans up
    CHECK(bench.stage.semaphore().active() == 1);
    bench.run();
    CHECK(a.aborted());
    CHECK(b.value().success);
    CHECK(b.value().queue_time == 7ms);
    CHECK(bench.model.begun == std::vector<std::string>{"a", "b"});  // no retry
    CHECK(bench.idle());
}

TEST_CASE("stage: cancelled in backoff", "[stage][cancellation]") {
    const auto type = GENERATE(Cancel::terminal, Cancel::partial, Cancel::total);
    Bench bench(1, StageOptions(retries(3, 1h)));
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

TEST_CASE("stage: cancelled when the backoff has ended, it begins no other attempt", "[stage][cancellation]") {
    asio::io_context context;
    int calls = 0;
    const auto model = [&calls]() -> asio::awaitable<int> {  // counts before it gives its awaitable
        ++calls;
        return []() -> asio::awaitable<int> {
            throw std::runtime_error("no");
            co_return 1;
        }();
    };
    Stage stage(context.get_executor(), "s", 1, model, StageOptions(retries(3, 5ms)));
    Task<StageResult<int>> task(context.get_executor(), [&] { return stage.run("q"); });
    context.poll();
    REQUIRE(calls == 1);
    REQUIRE(VirtualTime::of(context).advance());  // the wait is over, and has yet to resume
    task.cancel();
    test::steps(context, 100);
    CHECK(task.aborted());
    CHECK(calls == 1);
}

TEST_CASE("stage: a coroutine that was cancelled before, and does not mind, may run it", "[stage][cancellation]") {
    Bench bench(1, StageOptions(retries(1)));
    bench.model.failures["a"] = 2;
    Run task(bench.context.get_executor(), [&]() -> asio::awaitable<StageResult<std::string>> {
        co_await asio::this_coro::throw_if_cancelled(false);
        try {
            co_await test::sleep(1h);
        } catch (const boost::system::system_error&) {
            // now to clean up
        }
        std::string text = "a";
        co_return co_await bench.stage.run("q", text);
    });
    bench.context.poll();
    task.cancel();
    test::steps(bench.context, 100);
    REQUIRE(task.succeeded());
    CHECK(task.value().attempts == 2);
    CHECK(task.value().error.message() == "cannot answer a");
}

TEST_CASE("stage: cancelled while a timed-out attempt cleans up", "[stage][cancellation]") {
    Bench bench(1, StageOptions(retries(3), 5ms));
    bench.model.clean_up = 10ms;
    Run a = bench.start("a");
    run_until(bench.context, 9ms);
    a.cancel();
    CHECK(bench.run() == 6ms);
    CHECK(a.aborted());
    CHECK(bench.model.calls() == 1);
    CHECK(bench.idle());
}

TEST_CASE("stage: a cancelled run is cancelled, whatever its attempt threw", "[stage][cancellation]") {
    asio::io_context context;
    int calls = 0;
    const auto model = [&](int) -> asio::awaitable<int> {
        ++calls;
        try {
            co_await test::sleep(1h);
        } catch (const boost::system::system_error&) {
        }
        throw std::runtime_error("connection lost");
    };
    StageOptions options(retries(3));
    if (GENERATE(false, true)) {
        options.timeout = 1h + 1s;
    }
    Stage stage(context.get_executor(), "s", 1, model, options);
    Task<StageResult<int>> task(context.get_executor(), [&] { return stage.run("q", 1); });
    run_until(context, 1s);
    task.cancel();
    sluice::testing::run(context);
    CHECK(task.aborted());
    CHECK(calls == 1);
    CHECK(stage.semaphore().active() == 0);
}

TEST_CASE("stage: cancelled at any step of a run, it ends at once and gives every slot back",
          "[stage][cancellation][stress]") {
    for (int n = 1;; ++n) {
        for (int victim = 0; victim != 3; ++victim) {
            Bench bench(1, StageOptions(retries(2, 3ms), 8ms));
            bench.model.latency_of = [](const std::string& text) { return text == "0" ? 9ms : 5ms; };
            bench.model.failures["1"] = 1;
            std::deque<Run> runs;
            for (int i = 0; i != 3; ++i) {
                runs.push_back(bench.start(std::to_string(i)));
            }
            test::steps(bench.context, 3);  // each has begun
            const bool more = test::steps(bench.context, n);
            const bool was_done = runs[static_cast<std::size_t>(victim)].done();
            const int calls = bench.model.calls();
            runs[static_cast<std::size_t>(victim)].cancel();
            bench.run();
            CHECK(bench.idle());
            CHECK(bench.model.running == 0);
            CHECK(bench.model.peak == 1);
            for (int i = 0; i != 3; ++i) {
                Run& one = runs[static_cast<std::size_t>(i)];
                REQUIRE(one.done());
                if (i != victim || was_done) {
                    CHECK(one.succeeded());
                    CHECK(one.value().success == (i != 0));
                    CHECK(one.value().attempts == 3 - i);
                }
            }
            if (!was_done && !runs[static_cast<std::size_t>(victim)].aborted()) {
                CHECK(bench.model.calls() >= calls);  // it had its answer already
                CHECK(runs[static_cast<std::size_t>(victim)].value().success);
            }
            if (!more) {
                return;
            }
        }
    }
}

TEST_CASE("stage: operation_aborted from a model that was not cancelled is a failure", "[stage][cancellation]") {
    asio::io_context context;
    StageOptions options;
    if (GENERATE(false, true)) {
        options.timeout = 1s;
    }
    Stage stage(context.get_executor(), "s", 1, &abort_by_itself, options);
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

TEST_CASE("stage: a closed semaphore is a failure of those who wait, not of those who run", "[stage][shutdown]") {
    Bench bench(1, StageOptions(retries(3, 1ms)));
    Run a = bench.start("a");
    Run b = bench.start("b");
    run_until(bench.context, 3ms);
    bench.stage.semaphore().close();
    bench.run();
    CHECK(a.value().success);
    REQUIRE(b.succeeded());
    CHECK_FALSE(b.value().success);
    CHECK(b.value().attempts == 0);
    CHECK(b.value().queue_time == 3ms);
    CHECK(b.value().latency == 0ms);
    CHECK(b.value().error.type() == "boost::system::system_error");
    CHECK(b.value().error.message().starts_with("the stage was closed"));

    Run c = bench.start("c");
    bench.run();
    REQUIRE(c.succeeded());
    CHECK_FALSE(c.value().success);
    CHECK(c.value().attempts == 0);
    CHECK(c.value().error);
    CHECK(bench.model.calls() == 1);
    CHECK(bench.idle());
}

TEST_CASE("stage: a semaphore closed in backoff ends the retries", "[stage][shutdown]") {
    Bench bench(1, StageOptions(retries(3, 10ms)));
    bench.model.failures["a"] = 9;
    Run a = bench.start("a");
    run_until(bench.context, 15ms);
    bench.stage.semaphore().close();
    CHECK(bench.run() == 5ms);
    REQUIRE(a.succeeded());
    CHECK_FALSE(a.value().success);
    CHECK(a.value().attempts == 1);
    CHECK(a.value().error);
}

TEST_CASE("stage: lvalue arguments are referred to, and each attempt sees the same ones", "[stage]") {
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
    Stage stage(context.get_executor(), "s", 1, model, StageOptions(retries(5)));
    std::string text = "a text long enough to be on the heap, surely";
    const auto size = static_cast<int>(text.size());
    const auto result = run_one(context, stage, text);
    CHECK(seen == std::vector<const std::string*>(3, &text));
    CHECK(text.ends_with("surely!!!"));
    CHECK(result.data == size + 3);
}

TEST_CASE("stage: rvalue arguments are kept until the last attempt, as const lvalues", "[stage]") {
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
    Stage stage(context.get_executor(), "s", 1, model, StageOptions(retries(5, 1ms)));
    Task<StageResult<int>> task(context.get_executor(), [&] {
        std::string text = "a text long enough to be on the heap, surely";
        auto number = std::make_unique<int>(7);
        return stage.run("q", std::move(text), std::move(number));
    });
    sluice::testing::run(context);
    CHECK(task.value().data == 7);
    CHECK(seen == std::vector<std::string>(3, "a text long enough to be on the heap, surely"));
}

TEST_CASE("stage: const arguments stay const", "[stage][typed]") {
    asio::io_context context;
    Stage stage(
        context.get_executor(), "s", 1,
        [](const std::string& text) -> asio::awaitable<std::size_t> { co_return text.size(); }, StageOptions());
    const std::string text = "four";
    CHECK(run_one(context, stage, text).data == 4);
}

TEST_CASE("stage: results may be move-only and without a default constructor", "[stage][typed]") {
    struct Only {
        std::unique_ptr<int> number;
        explicit Only(int n) : number(std::make_unique<int>(n)) {}
    };
    asio::io_context context;
    StageOptions options;
    if (GENERATE(false, true)) {
        options.timeout = 1s;
    }
    Stage stage(
        context.get_executor(), "s", 1,
        [](int n) -> asio::awaitable<Only> {
            co_await test::yield();
            co_return Only(n);
        },
        options);
    int argument = 3;
    const auto result = run_one(context, stage, argument);
    static_assert(std::same_as<decltype(result), const StageResult<Only>>);
    REQUIRE(result.data);
    CHECK(*result.data->number == 3);
}

TEST_CASE("stage: what cannot work is refused on construction, by stage and value", "[stage]") {
    asio::io_context context;
    const auto ex = context.get_executor();
    const auto with_limit = [&](std::ptrdiff_t limit) {
        return refusal_of([&] { Stage stage(ex, "judge", limit, &answer, StageOptions()); });
    };
    CHECK(with_limit(0) == "Stage 'judge': limit must be at least 1, got 0");
    CHECK(with_limit(-1) == "Stage 'judge': limit must be at least 1, got -1");
    CHECK(with_limit(1) == "no error");

    CHECK(refusal_of([&] { Stage stage(ex, "", 1, &answer, StageOptions()); }) == "Stage: the name must not be empty");

    CHECK(refusal_of([&] { Stage stage(asio::any_io_executor(), "judge", 1, &answer, StageOptions()); }) ==
          "Stage 'judge': the executor must not be empty");
    const std::function<asio::awaitable<int>(int)> empty;
    CHECK(refusal_of([&] { Stage stage(ex, "judge", 1, std::ref(empty), StageOptions()); }) ==
          "Stage 'judge': the model function must not be empty");
    CHECK(refusal_of([&] { Stage stage(ex, "judge", 1, std::ref(answer), StageOptions()); }) == "no error");
    const char* no_name = nullptr;
    CHECK(refusal_of([&] { Stage stage(ex, no_name, 1, &answer, StageOptions()); }) ==
          "SharedString: must not be made of a null pointer");

    using Pointer = asio::awaitable<int> (*)(int);
    CHECK(refusal_of([&] { Stage stage(ex, "judge", 1, Pointer{}, StageOptions()); }) ==
          "Stage 'judge': the model function must not be empty");
    CHECK(refusal_of([&] {
              Stage stage(ex, "judge", 1, std::function<asio::awaitable<int>(int)>(), StageOptions());
          }) == "Stage 'judge': the model function must not be empty");
    struct Client {
        asio::awaitable<int> ask(int n) { co_return n; }
    };
    CHECK(refusal_of([&] {
              asio::awaitable<int> (Client::*none)(int) = nullptr;
              Stage stage(ex, "judge", 1, none, StageOptions());
          }) == "Stage 'judge': the model function must not be empty");

    const auto with_timeout = [&](std::chrono::nanoseconds timeout) {
        return refusal_of([&] { Stage stage(ex, "judge", 1, &answer, StageOptions({}, timeout)); });
    };
    CHECK(with_timeout(0ns) == "Stage 'judge': timeout must be positive, got 0 ns");
    CHECK(with_timeout(-1ns) == "Stage 'judge': timeout must be positive, got -1 ns");
    CHECK(with_timeout(1ns) == "no error");
}

TEST_CASE("stage: the model function is any callable", "[stage][typed]") {
    asio::io_context context;
    const auto ex = context.get_executor();
    int one = 1;
    SECTION("a function pointer") {
        Stage stage(ex, "s", 1, &answer, StageOptions());
        CHECK(run_one(context, stage, one).data == 2);
    }
    SECTION("a std::function") {
        Stage stage(ex, "s", 1, std::function<asio::awaitable<int>(int)>(&answer), StageOptions());
        CHECK(run_one(context, stage, one).data == 2);
    }
    SECTION("a functor that changes") {
        struct Counter {
            std::unique_ptr<int> move_only = std::make_unique<int>(0);
            asio::awaitable<int> operator()(int n) { return answer(n + 10 * ++*move_only); }
        };
        Stage stage(ex, "s", 1, Counter(), StageOptions());
        CHECK(run_one(context, stage, one).data == 12);
        CHECK(run_one(context, stage, one).data == 22);
    }
    SECTION("a generic lambda") {
        Stage stage(
            ex, "s", 1,
            [](const auto& value) -> asio::awaitable<std::decay_t<decltype(value)>> { co_return value + value; },
            StageOptions());
        std::string text = "ab";
        CHECK(run_one(context, stage, one).data == 2);
        CHECK(run_one(context, stage, text).data == "abab");
    }
    SECTION("a member function") {
        struct Client {
            int base;
            asio::awaitable<int> ask(int n) { co_return base + n; }
        };
        Client client{40};
        Client* pointer = &client;
        Stage stage(ex, "s", 1, &Client::ask, StageOptions());
        CHECK(run_one(context, stage, client, one).data == 41);
        CHECK(run_one(context, stage, pointer, one).data == 41);
    }
    SECTION("a callable that owns what its coroutine refers to") {
        const auto text = std::make_shared<std::string>("kept");
        Stage stage(
            ex, "s", 1,
            [text](int) -> asio::awaitable<std::string> {
                co_await test::sleep(1ms);
                co_return *text;
            },
            StageOptions());
        CHECK(run_one(context, stage, one).data == "kept");
    }
    SECTION("no argument at all") {
        Stage stage(ex, "s", 1, []() -> asio::awaitable<int> { co_return 5; }, StageOptions());
        CHECK(run_one(context, stage).data == 5);
    }
}

TEST_CASE("stage: stages compose as plain coroutines, and a model function may be another one wrapped", "[stage]") {
    asio::io_context context;
    Model small("small", 10ms);
    Model large("large", 30ms);
    small.failures["b"] = 1;
    // A fallback, as it would be written around a model function.
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
    Stage draft(context.get_executor(), "draft", 1, fallback, StageOptions());
    Stage judge(
        context.get_executor(), "judge", 1,
        [](const std::string& text) -> asio::awaitable<bool> { co_return text.starts_with("large"); }, StageOptions());
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

TEST_CASE("stage: the executor of the model's coroutine is that of the run", "[stage][typed]") {
    const auto check = [](asio::io_context& context, auto executor) {
        using Executor = decltype(executor);
        int calls = 0;
        const auto model = [&calls](int n) -> asio::awaitable<int, Executor> {
            VirtualTimer timer(co_await asio::this_coro::executor, 10ms);
            co_await timer.async_wait(asio::deferred);
            if (++calls == 2) {
                throw n;
            }
            co_return n;
        };
        Stage stage(executor, "s", 1, model, StageOptions(retries(1, 5ms), 1s));
        static_assert(std::same_as<decltype(stage.run("q", 1)), asio::awaitable<StageResult<int>, Executor>>);
        std::vector<StageResult<int>> results;
        for (int i = 0; i != 2; ++i) {
            asio::co_spawn(executor, stage.run("q", int(i)), [&](std::exception_ptr error, StageResult<int> result) {
                CHECK_FALSE(error);
                results.push_back(std::move(result));
            });
        }
        CHECK(sluice::testing::run(context) == 35ms);
        REQUIRE(results.size() == 2);
        CHECK(results[0].data == 0);
        CHECK(results[1].data == 1);
        CHECK(results[1].queue_time == 10ms);
        CHECK(results[1].attempts == 2);
    };
    asio::io_context context;
    SECTION("io_context's own") { check(context, context.get_executor()); }
    SECTION("a strand") { check(context, asio::make_strand(context.get_executor())); }
    SECTION("any") { check(context, asio::any_io_executor(context.get_executor())); }
}

TEST_CASE("stage: the timer is asio::steady_timer unless one asks for another", "[stage][typed]") {
    asio::io_context context;
    Stage stage(context.get_executor(), "s", 1, &answer);
    static_assert(std::same_as<decltype(stage), Stage<asio::awaitable<int> (*)(int), asio::steady_timer>>);
    static_assert(std::same_as<sluice::StageOptions, sluice::BasicStageOptions<asio::steady_timer>>);
    int one = 1;
    CHECK(run_one(context, stage, one).data == 2);
    static_assert(!std::copy_constructible<decltype(stage)> && !std::is_copy_assignable_v<decltype(stage)>);
}

TEST_CASE("stage: the context may be destroyed at any step, before or after the stage", "[stage][shutdown][stress]") {
    const bool stage_first = GENERATE(false, true);
    bool more = true;
    for (int n = 0; more; ++n) {
        Model model("answer", 5ms);
        model.failures["1"] = 1;
        using S = Stage<Endpoint, VirtualTimer>;
        std::unique_ptr<S> outer;
        auto context = std::make_unique<asio::io_context>(1);
        auto stage = std::make_unique<S>(context->get_executor(), "answer", 2, Endpoint{&model},
                                         StageOptions(retries(2, 3ms), 4ms + 2ms * (n % 2)));
        std::deque<Run> runs;
        for (int i = 0; i != 4; ++i) {
            runs.emplace_back(context->get_executor(), [&s = *stage, i] { return s.run("q", std::to_string(i)); });
        }
        more = test::steps(*context, n);
        if (stage_first) {
            outer = std::move(stage);  // outlives the context
        }
        context.reset();
        if (outer) {
            CHECK(outer->semaphore().active() == 0);
            CHECK(outer->semaphore().waiting() == 0);
        }
        CHECK(model.running == 0);
    }
}

TEST_CASE("stage: a hundred runs of random length and luck keep every promise", "[stage][stress]") {
    for (unsigned seed = 0; seed != 20; ++seed) {
        std::mt19937 random(seed);
        const int limit = static_cast<int>(random() % 5) + 1;
        Bench bench(limit, StageOptions(retries(2, 7ms), 40ms));
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
            REQUIRE(bench.model.running <= bench.stage.semaphore().active());
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
        context.get_executor(), "s", 1,
        [&left](int n) -> asio::awaitable<int> {
            if (--left != 0) {
                throw n;
            }
            co_return n;
        },
        StageOptions(retries(1'000'000)));
    int argument = 1;
    CHECK(run_one(context, stage, argument).attempts == 30'000);
}
