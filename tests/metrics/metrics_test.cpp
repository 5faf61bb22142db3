// SPDX-License-Identifier: BSL-1.0
#include <sluice/metrics/metrics.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_message.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::Metrics;
using sluice::MetricsSnapshot;
using sluice::Reason;
using sluice::StageMetrics;
using sluice::Verdict;
using test::retries;
using test::run_until;

namespace {

// The metrics of the stage; all zero if it had no event.
StageMetrics metrics_of_stage(const Metrics& metrics, const std::string& name) {
    const MetricsSnapshot snapshot = metrics.snapshot();
    const auto found = std::ranges::find(snapshot.stages, name, [](const auto& stage) { return stage.stage.str(); });
    return found != snapshot.stages.end() ? *found : StageMetrics();
}

void check_equations(const Metrics& metrics) {
    for (const StageMetrics& stage : metrics.snapshot().stages) {
        CHECK(stage.entered ==
              stage.queued + stage.running + stage.in_backoff + stage.succeeded + stage.failed + stage.cancelled);
        CHECK(stage.attempts == stage.running + stage.latency.count());
        CHECK(stage.entered + stage.attempts >= stage.queue_time.count());
    }
}

// One stage whose observer is a Metrics, in virtual time.
struct MeteredStage {
    asio::io_context context{1};
    Metrics metrics;
    test::Model model{"answer", 10ms};
    sluice::Stage<test::Endpoint, test::VirtualTimer> stage;
    std::deque<test::Task<sluice::StageResult<std::string>>> tasks;

    explicit MeteredStage(std::ptrdiff_t limit, sluice::RetryPolicy retry = {})
        : stage(test::timed(context.get_executor()), "s", limit, test::Endpoint{&model},
                sluice::StageOptions{.retry = retry, .observer = &metrics}) {}

    auto& start(const std::string& text) {
        return tasks.emplace_back(context.get_executor(), [this, text] { return stage.run(text, std::string(text)); });
    }
    StageMetrics now() const { return metrics_of_stage(metrics, "s"); }
};

}  // namespace

TEST_CASE("metrics: nothing has happened yet", "[metrics]") {
    const Metrics metrics;
    const MetricsSnapshot snapshot = metrics.snapshot();
    CHECK(snapshot.stages.empty());
    CHECK(snapshot.dead_letters.empty());
    CHECK(snapshot.endpoints.empty());
    CHECK(snapshot.pipelines.empty());
}

TEST_CASE("metrics: a stage run is queued, running, and then one that has succeeded", "[metrics]") {
    MeteredStage bench(1);
    bench.start("a");
    bench.start("b");
    run_until(bench.context, 5ms);
    StageMetrics stage = bench.now();
    CHECK(stage.queued == 1);
    CHECK(stage.running == 1);
    CHECK(stage.entered == 2);
    CHECK(stage.attempts == 1);
    CHECK(stage.succeeded == 0);
    check_equations(bench.metrics);
    sluice::testing::run(bench.context);
    stage = bench.now();
    CHECK(stage.queued == 0);
    CHECK(stage.running == 0);
    CHECK(stage.entered == 2);
    CHECK(stage.attempts == 2);
    CHECK(stage.succeeded == 2);
    check_equations(bench.metrics);
}

TEST_CASE("metrics: the times in the line and in the model are those of the attempts, to the nanosecond", "[metrics]") {
    MeteredStage bench(1, retries(2, 30ms));
    bench.model.failures["a"] = 2;
    bench.start("a");  // in the model from 0, 40 and 80 ms on
    bench.start("b");  // in the model from 10 ms on
    sluice::testing::run(bench.context);
    const StageMetrics stage = bench.now();
    CHECK(stage.attempts == 4);
    CHECK(stage.latency.count() == 4);
    CHECK(stage.latency.count_up_to(-1) == 0);
    CHECK(stage.latency.count_up_to(0) == 4);
    CHECK(stage.latency.sum() == 40ms);
    CHECK(stage.queue_time.count() == 4);
    CHECK(stage.queue_time.buckets()[0] == 3);
    CHECK(stage.queue_time.sum() == 10ms);
}

TEST_CASE("metrics: the wait for the slot of a retry is one of its own", "[metrics]") {
    MeteredStage bench(1, retries(1));
    bench.model.failures["b"] = 1;
    bench.start("a");
    bench.start("b");  // waits for 10 ms, fails, and waits for 10 ms again
    bench.start("c");
    sluice::testing::run(bench.context);
    const StageMetrics stage = bench.now();
    CHECK(stage.queue_time.count() == 4);
    CHECK(stage.queue_time.count_up_to(0) == 3);
    CHECK(stage.queue_time.count_up_to(1) == 4);
    CHECK(stage.queue_time.sum() == 10ms + 20ms + 10ms);
    CHECK(stage.latency.sum() == 40ms);
}

TEST_CASE("metrics: failed attempts, backoffs, and stage runs that fail", "[metrics]") {
    MeteredStage bench(1, retries(1, 5ms));
    bench.model.failures["a"] = 2;
    bench.start("a");
    run_until(bench.context, 12ms);
    StageMetrics stage = bench.now();
    CHECK(stage.in_backoff == 1);
    CHECK(stage.failed_attempts == 1);
    CHECK(stage.retries_after(Verdict::transient) == 1);
    CHECK(stage.failed == 0);
    check_equations(bench.metrics);
    sluice::testing::run(bench.context);
    stage = bench.now();
    CHECK(stage.in_backoff == 0);
    CHECK(stage.failed_attempts == 2);
    CHECK(stage.retries_after(Verdict::transient) == 1);
    CHECK(stage.failed == 1);
    check_equations(bench.metrics);
}

TEST_CASE("metrics: retries are counted by the verdict on the error", "[metrics]") {
    asio::io_context context;
    Metrics metrics;
    const std::vector<Verdict::Kind> kinds{Verdict::throttled, Verdict::overloaded, Verdict::throttled,
                                           Verdict::transient, Verdict::invalid};
    std::size_t call = 0;
    const auto model = [&]() -> asio::awaitable<int> {
        throw sluice::ModelError("no", {.kind = kinds.at(call++)});
        co_return 1;
    };
    const sluice::Stage stage(test::timed(context.get_executor()), "s", 1, model,
                              sluice::StageOptions{.retry = retries(9), .observer = &metrics});
    test::Task<sluice::StageResult<int>> task(context.get_executor(), [&] { return stage.run("a"); });
    sluice::testing::run(context);
    const StageMetrics found = metrics_of_stage(metrics, "s");
    CHECK(found.retries == StageMetrics::ByVerdict{1, 2, 1, 0, 0});
    CHECK(found.attempts == 5);
    CHECK(found.failed == 1);
}

TEST_CASE("metrics: a stage that a fallback skips is counted by its name, and no stage run with it", "[metrics]") {
    Metrics metrics;
    metrics.on_skipped("q", "s", Reason::breaker_open);
    metrics.on_skipped("q", "t", Reason::deadline);
    metrics.on_skipped("r", "s", Reason::deadline);
    CHECK(metrics_of_stage(metrics, "s").skipped == 2);
    CHECK(metrics_of_stage(metrics, "t").skipped == 1);
    CHECK(metrics_of_stage(metrics, "s").entered == 0);
    check_equations(metrics);
}

TEST_CASE("metrics: a stage run that is cancelled, wherever it is", "[metrics][cancellation]") {
    const auto [at, starts] = GENERATE(std::pair(3ms, 1U), std::pair(3ms, 2U), std::pair(12ms, 1U));
    MeteredStage bench(1, retries(1, 5ms));
    bench.model.failures["a"] = 1;
    bench.start("a");
    auto& task = starts == 1 ? bench.tasks.front() : bench.start("b");  // in the model, in the line or in its backoff
    run_until(bench.context, at);
    task.cancel();
    sluice::testing::run(bench.context);
    CHECK(bench.now().cancelled == 1);
    CHECK(bench.now().entered == starts);
    CHECK(bench.now().succeeded == starts - 1);
    check_equations(bench.metrics);
}

TEST_CASE("metrics: the time of an attempt, or of a wait, that is cancelled counts", "[metrics][cancellation]") {
    MeteredStage bench(1);
    bench.start("a");
    bench.start("b");
    run_until(bench.context, 3ms);
    bench.tasks[1].cancel();
    run_until(bench.context, 4ms);
    bench.tasks[0].cancel();
    sluice::testing::run(bench.context);
    CHECK(bench.now().queue_time.sum() == 3ms);
    CHECK(bench.now().queue_time.count() == 2);
    CHECK(bench.now().latency.sum() == 4ms);
    CHECK(bench.now().latency.count() == 1);
    CHECK(bench.now().cancelled == 2);
}

TEST_CASE("metrics: a stage whose endpoint is closed fails what waits", "[metrics]") {
    MeteredStage bench(1);
    bench.start("a");
    bench.start("b");
    run_until(bench.context, 3ms);
    bench.stage.endpoint().close();
    bench.start("c");
    sluice::testing::run(bench.context);
    CHECK(bench.now().succeeded == 1);
    CHECK(bench.now().failed == 2);
    CHECK(bench.now().attempts == 1);
    check_equations(bench.metrics);
}

TEST_CASE("metrics: stages of one name are counted as one, and the others apart, by name", "[metrics]") {
    asio::io_context context;
    Metrics metrics;
    test::Model model("answer", 10ms);
    const sluice::StageOptions options{.observer = &metrics};
    std::deque<test::Task<sluice::StageResult<std::string>>> tasks;
    for (const std::string name : {"b", "a", "b"}) {
        const sluice::Stage stage(test::timed(context.get_executor()), name, 1, test::Endpoint{&model}, options);
        tasks.emplace_back(context.get_executor(), [stage] { return stage.run("q", std::string("t")); });
    }
    sluice::testing::run(context);
    const MetricsSnapshot snapshot = metrics.snapshot();
    REQUIRE(snapshot.stages.size() == 2);
    CHECK(snapshot.stages[0].stage == "a");
    CHECK(snapshot.stages[0].succeeded == 1);
    CHECK(snapshot.stages[1].stage == "b");
    CHECK(snapshot.stages[1].succeeded == 2);
}

TEST_CASE("metrics: any number of stages of one name come and go", "[metrics]") {
    asio::io_context context;
    Metrics metrics;
    test::Model model("answer", 0ms);
    for (int i = 0; i != 2500; ++i) {
        const std::string name = i % 2 == 0 ? "even" : "odd";
        const sluice::Stage stage(test::timed(context.get_executor()), name, 1, test::Endpoint{&model},
                                  sluice::StageOptions{.observer = &metrics});
        const test::Task<sluice::StageResult<std::string>> task(context.get_executor(),
                                                                [stage] { return stage.run("q", std::string("t")); });
        test::poll(context);
    }
    CHECK(metrics_of_stage(metrics, "even").succeeded == 1250);
    CHECK(metrics_of_stage(metrics, "odd").succeeded == 1250);
}

TEST_CASE("metrics: dead letters by stage and reason, and those that the sink lost", "[metrics]") {
    struct Full {
        int calls = 0;
        void put(const sluice::Query&, const sluice::StageResult<>&) {
            if (++calls == 2) {
                throw std::runtime_error("disk full");
            }
        }
    };
    test::Rig<Full> rig;
    Metrics metrics;
    sluice::StageOptions timed;
    timed.timeout = 20ms;
    auto pipeline = rig.pipeline({9, 9, 9}, {.generate = timed, .observer = &metrics});
    rig.classify.failures = {{"t0", 1}, {"t1", 1}};
    test::Task<decltype(rig)::Results> task(rig.context.get_executor(),
                                            [&]() -> asio::awaitable<decltype(rig)::Results> {
                                                const auto queries = test::make_queries(4);
                                                co_return co_await pipeline.process_batch(queries);
                                            });
    rig.run();
    const auto letters = metrics.snapshot().dead_letters;
    REQUIRE(letters.size() == 2);
    CHECK(letters[0].stage == "classify");
    CHECK(letters[0].dead_letters_because(Reason::model) == 2);
    CHECK(letters[0].dead_letters_because(Reason::timeout) == 0);
    CHECK(letters[0].lost == 1);
    CHECK(letters[1].stage == "generate");
    CHECK(letters[1].dead_letters_because(Reason::model) == 0);
    CHECK(letters[1].dead_letters_because(Reason::timeout) == 2);
    CHECK(letters[1].lost == 0);
}

TEST_CASE("metrics: a snapshot does not change afterwards", "[metrics]") {
    MeteredStage bench(1);
    bench.start("a");
    run_until(bench.context, 5ms);
    const MetricsSnapshot before = bench.metrics.snapshot();
    sluice::testing::run(bench.context);
    CHECK(before.stages[0].running == 1);
    CHECK(before.stages[0].latency.count() == 0);
}

TEST_CASE("metrics: what is destroyed with its context stays where it was, and what comes to its place is new",
          "[metrics][shutdown]") {
    Metrics metrics;
    test::Model model("answer", 10ms);
    model.failures["a"] = 1000;
    std::size_t begun = 0;
    test::for_every_step([&](test::Steps& steps) {
        auto context = std::make_unique<asio::io_context>(1);
        const sluice::Stage stage(test::timed(context->get_executor()), "s", 1, test::Endpoint{&model},
                                  sluice::StageOptions{.retry = retries(2, 5ms), .observer = &metrics});
        std::deque<test::Task<sluice::StageResult<std::string>>> tasks;
        for (const std::string text : {"a", "b", "a"}) {
            tasks.emplace_back(context->get_executor(), [stage, text] { return stage.run(text, std::string(text)); });
        }
        steps.take(*context);
        context.reset();
        check_equations(metrics);
        ++begun;
    });
    const StageMetrics stage = metrics_of_stage(metrics, "s");
    CHECK(stage.entered <= 3 * begun);
    CHECK(stage.queued + stage.running + stage.in_backoff > 0);
    CHECK(stage.latency.count_up_to(0) == stage.latency.count());        // no time was taken for another's
    CHECK(stage.queue_time.count_up_to(2) == stage.queue_time.count());  // nor more than what two of 10 ms take
}

TEST_CASE("metrics: a stage run at the address of one that was destroyed in its backoff has none of its times",
          "[metrics][shutdown]") {
    Metrics metrics;
    sluice::StageResult<> run("q", "s");
    const auto attempt = [&](std::chrono::nanoseconds queue_time, std::chrono::nanoseconds latency) {
        metrics.on_queued(run);
        run.queue_time += queue_time;
        ++run.attempts;
        metrics.on_started(run);
        run.latency += latency;
    };
    const auto fail_and_retry = [&] {
        metrics.on_attempt_failed(run, {});
        metrics.on_retry(run, Verdict(), 1ms);
    };
    attempt(100ms, 200ms);
    fail_and_retry();
    run.queue_time = run.latency = 0ms;  // another one, from here on
    run.attempts = 0;
    attempt(1ms, 2ms);
    CHECK(metrics_of_stage(metrics, "s").queue_time.sum() == 101ms);
    fail_and_retry();
    attempt(10ms, 20ms);
    metrics.on_finished(run, sluice::Observer::Outcome::succeeded, sluice::Observer::Event::started);
    CHECK(metrics_of_stage(metrics, "s").queue_time.sum() == 111ms);
    CHECK(metrics_of_stage(metrics, "s").latency.sum() == 222ms);
    check_equations(metrics);
}
