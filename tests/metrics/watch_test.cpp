// SPDX-License-Identifier: BSL-1.0
#include <sluice/metrics/metrics.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/testing/run.hpp>

#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::EndpointMetrics;
using sluice::Metrics;
using sluice::PipelineMetrics;
using test::run_until;

namespace {

using WatchedEndpoint = sluice::Endpoint<test::VirtualTimer>;
using WatchedStage = sluice::Stage<test::Endpoint, test::VirtualTimer>;

struct WatchedRecord {
    std::optional<std::string> answer;
};

// The one endpoint that is watched.
EndpointMetrics only_endpoint(const Metrics& metrics) {
    const auto endpoints = metrics.snapshot().endpoints;
    REQUIRE(endpoints.size() == 1);
    return endpoints.front();
}

PipelineMetrics only_pipeline(const Metrics& metrics) {
    const auto pipelines = metrics.snapshot().pipelines;
    REQUIRE(pipelines.size() == 1);
    return pipelines.front();
}

// A pipeline of one stage, of which each attempt takes 10 ms.
struct WatchedPipeline {
    asio::io_context context{1};
    Metrics metrics;
    test::Model model{"answer", 10ms};
    test::DeadLetters dead_letters;
    WatchedStage stage{test::timed(context.get_executor()), "s", 8, test::Endpoint{&model}};

    auto make(std::ptrdiff_t window) {
        const auto route = [this](sluice::Run<WatchedRecord>& run) -> asio::awaitable<void> {
            co_await run.step(&WatchedRecord::answer, stage, run.query().text);
        };
        return sluice::Pipeline(test::timed(context.get_executor()), route, dead_letters, window);
    }

    template <class Pipeline>
    auto start_batch(Pipeline& pipeline, std::size_t size) {
        return test::Task<>(context.get_executor(), [&pipeline, size]() -> asio::awaitable<void> {
            const auto queries = test::make_queries(size);
            static_cast<void>(co_await pipeline.process_batch(queries));
        });
    }
};

}  // namespace

// Endpoints

TEST_CASE("watch: an endpoint's limit, slots and line", "[metrics]") {
    WatchedPipeline bench;
    Metrics metrics;
    const WatchedEndpoint gpt(test::timed(bench.context.get_executor()), "gpt", sluice::EndpointOptions{.limit = 2});
    metrics.watch(gpt);
    const WatchedStage stage(gpt, "s", test::Endpoint{&bench.model});
    std::deque<test::Task<sluice::StageResult<std::string>>> tasks;
    for (int i = 0; i != 5; ++i) {
        tasks.emplace_back(bench.context.get_executor(), [&] { return stage.run("q", std::string("t")); });
    }
    run_until(bench.context, 5ms);
    CHECK(only_endpoint(metrics).endpoint == "gpt");
    CHECK(only_endpoint(metrics).limit == 2);
    CHECK(only_endpoint(metrics).active == 2);
    CHECK(only_endpoint(metrics).waiting == 3);
    stage.endpoint().set_limit(4);
    CHECK(only_endpoint(metrics).limit == 4);
    sluice::testing::run(bench.context);
    CHECK(only_endpoint(metrics).active == 0);
    CHECK(only_endpoint(metrics).waiting == 0);
}

TEST_CASE("watch: the handles to an endpoint are one, and watching it again has no effect", "[metrics]") {
    asio::io_context context;
    Metrics metrics;
    const WatchedEndpoint gpt(test::timed(context.get_executor()), "gpt", sluice::EndpointOptions{.limit = 2});
    const WatchedEndpoint copy = gpt;
    metrics.watch(gpt);
    metrics.watch(copy);
    metrics.watch(gpt);
    CHECK(only_endpoint(metrics).limit == 2);
}

TEST_CASE("watch: an endpoint is watched until its last handle is gone, the one of a stage included", "[metrics]") {
    asio::io_context context;
    Metrics metrics;
    test::Model model("answer", 10ms);
    auto gpt = std::make_unique<WatchedEndpoint>(test::timed(context.get_executor()), "gpt",
                                                 sluice::EndpointOptions{.limit = 2});
    metrics.watch(*gpt);
    const auto moved = std::make_unique<WatchedEndpoint>(std::move(*gpt));
    gpt.reset();
    CHECK(only_endpoint(metrics).limit == 2);
    std::optional<WatchedStage> stage(std::in_place, *moved, "s", test::Endpoint{&model});
    SECTION("a stage") {
        WatchedEndpoint other(test::timed(context.get_executor()), "other", sluice::EndpointOptions{.limit = 1});
        *moved = other;
        CHECK(only_endpoint(metrics).endpoint == "gpt");
        stage.reset();
        CHECK(metrics.snapshot().endpoints.empty());
        metrics.watch(*moved);
        CHECK(only_endpoint(metrics).endpoint == "other");
    }
    SECTION("a query that runs") {
        const test::Task<sluice::StageResult<std::string>> task(
            context.get_executor(), [copy = *stage] { return copy.run("q", std::string("t")); });
        stage.reset();
        *moved = WatchedEndpoint(test::timed(context.get_executor()), "other", sluice::EndpointOptions{.limit = 1});
        run_until(context, 5ms);
        CHECK(only_endpoint(metrics).active == 1);
        sluice::testing::run(context);
        CHECK(metrics.snapshot().endpoints.empty());
    }
}

TEST_CASE("watch: endpoints of one name are added up, and the others are sorted by name", "[metrics]") {
    asio::io_context context;
    Metrics metrics;
    const auto executor = test::timed(context.get_executor());
    constexpr auto most = std::numeric_limits<std::ptrdiff_t>::max();
    const WatchedEndpoint first(executor, "b", sluice::EndpointOptions{.limit = 2});
    const WatchedEndpoint second(executor, "a", sluice::EndpointOptions{.limit = most});
    const WatchedEndpoint third(executor, "b", sluice::EndpointOptions{.limit = 3});
    const WatchedEndpoint fourth(executor, "a", sluice::EndpointOptions{.limit = most});
    const WatchedEndpoint fifth(executor, "a", sluice::EndpointOptions{.limit = most});
    for (const auto* endpoint : {&first, &second, &third, &fourth, &fifth}) {
        metrics.watch(*endpoint);
    }
    const auto endpoints = metrics.snapshot().endpoints;
    REQUIRE(endpoints.size() == 2);
    CHECK(endpoints[0].endpoint == "a");
    CHECK(endpoints[0].limit == std::numeric_limits<std::uint64_t>::max());
    CHECK(endpoints[1].endpoint == "b");
    CHECK(endpoints[1].limit == 5);
}

TEST_CASE("watch: metrics, an endpoint and its context are destroyed in any order", "[metrics][shutdown]") {
    const int order = GENERATE(0, 1, 2, 3, 4, 5);
    test::Model model("answer", 10ms);
    auto context = std::make_unique<asio::io_context>(1);
    auto metrics = std::make_unique<Metrics>();
    std::optional<WatchedStage> stage(std::in_place, test::timed(context->get_executor()), "s", 1,
                                      test::Endpoint{&model});
    metrics->watch(stage->endpoint());
    std::deque<test::Task<sluice::StageResult<std::string>>> tasks;
    for (int i = 0; i != 3; ++i) {
        tasks.emplace_back(context->get_executor(), [copy = *stage] { return copy.run("q", std::string("t")); });
    }
    run_until(*context, 5ms);
    CHECK(only_endpoint(*metrics).waiting == 2);
    const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    bool context_gone = false;
    bool stage_gone = false;
    for (const int what : orders[order]) {
        if (what == 0) {
            context.reset();
            context_gone = true;
        } else if (what == 1) {
            stage.reset();
            stage_gone = true;
        } else {
            metrics.reset();
        }
        if (metrics && context_gone && !stage_gone) {
            CHECK(only_endpoint(*metrics).limit == 1);
            CHECK(only_endpoint(*metrics).active == 0);
            CHECK(only_endpoint(*metrics).waiting == 0);
        } else if (metrics) {
            CHECK(metrics->snapshot().endpoints.size() == (context_gone ? 0 : 1));
        }
    }
}

// Pipelines

TEST_CASE("watch: a pipeline's window, and its queries by their ends", "[metrics]") {
    WatchedPipeline bench;
    auto pipeline = bench.make(3);
    bench.metrics.watch(pipeline, "support");
    bench.model.failures["t1"] = 1;
    const auto batch = bench.start_batch(pipeline, 5);
    PipelineMetrics now = only_pipeline(bench.metrics);
    CHECK(now.pipeline == "support");
    CHECK(now.window == 3);
    CHECK(now.windows == 0);
    run_until(bench.context, 5ms);
    now = only_pipeline(bench.metrics);
    CHECK(now.windows == 1);
    CHECK(now.window_in_use == 3);
    CHECK(now.in_work == 3);
    CHECK(now.completed == 0);
    run_until(bench.context, 15ms);
    now = only_pipeline(bench.metrics);
    CHECK(now.window_in_use == 2);
    CHECK(now.in_work == 2);
    CHECK(now.completed == 2);
    CHECK(now.dead_letters == 1);
    sluice::testing::run(bench.context);
    now = only_pipeline(bench.metrics);
    CHECK(now.windows == 0);
    CHECK(now.window_in_use == 0);
    CHECK(now.in_work == 0);
    CHECK(now.completed == 4);
    CHECK(now.dead_letters == 1);
}

TEST_CASE("watch: single queries count, and have no place in a window", "[metrics][cancellation]") {
    WatchedPipeline bench;
    auto pipeline = bench.make(3);
    bench.metrics.watch(pipeline, "support");
    bench.model.failures["fails"] = 1;
    std::deque<test::Task<>> tasks;
    for (const std::string text : {"a", "fails", "b"}) {
        tasks.emplace_back(bench.context.get_executor(), [&pipeline, text]() -> asio::awaitable<void> {
            sluice::Query query("q", text);
            static_cast<void>(co_await pipeline.process_one(std::move(query)));
        });
    }
    run_until(bench.context, 5ms);
    CHECK(only_pipeline(bench.metrics).in_work == 3);
    CHECK(only_pipeline(bench.metrics).window_in_use == 0);
    tasks[2].cancel();
    sluice::testing::run(bench.context);
    const PipelineMetrics end = only_pipeline(bench.metrics);
    CHECK(end.completed == 1);
    CHECK(end.dead_letters == 1);
    CHECK(end.cancelled == 1);
    CHECK(end.in_work == 0);
}

TEST_CASE("watch: an InferencePipeline counts single queries, batches and streams", "[metrics][cancellation]") {
    test::Rig<> rig;
    Metrics metrics;
    auto pipeline = rig.pipeline({2, 2, 2});
    metrics.watch(pipeline, "three");
    rig.extract.failures["t1"] = 2;
    auto query = test::make_query(1);
    test::Task<> one(rig.context.get_executor(),
                     [&]() -> asio::awaitable<void> { static_cast<void>(co_await pipeline.process_one(query)); });
    const auto queries = test::make_queries(3);
    test::Task<> batch(rig.context.get_executor(),
                       [&]() -> asio::awaitable<void> { static_cast<void>(co_await pipeline.process_batch(queries)); });
    test::Task<> stream(rig.context.get_executor(), [&]() -> asio::awaitable<void> {
        auto results = pipeline.process_stream(queries);
        while (const auto item = co_await results.next()) {
        }
    });
    run_until(rig.context, 1ms);
    CHECK(only_pipeline(metrics).window == 6);
    CHECK(only_pipeline(metrics).windows == 2);
    CHECK(only_pipeline(metrics).window_in_use == 6);
    CHECK(only_pipeline(metrics).in_work == 7);
    pipeline.classify().endpoint().set_limit(3);
    CHECK(only_pipeline(metrics).window == 7);
    test::Task<> late(rig.context.get_executor(),
                      [&]() -> asio::awaitable<void> { static_cast<void>(co_await pipeline.process_one(query)); });
    run_until(rig.context, 2ms);
    late.cancel();
    rig.run();
    const PipelineMetrics end = only_pipeline(metrics);
    CHECK(end.completed == 5);
    CHECK(end.dead_letters == 2);
    CHECK(end.cancelled == 1);
    CHECK(end.unfinished == 0);
    CHECK(end.in_work == 0);
}

TEST_CASE("watch: queries that a batch cancels, and those that a drain cuts short", "[metrics][drain]") {
    const bool drains = GENERATE(false, true);
    WatchedPipeline bench;
    auto pipeline = bench.make(3);
    bench.metrics.watch(pipeline, "support");
    auto batch = bench.start_batch(pipeline, 9);
    run_until(bench.context, 15ms);
    CHECK(only_pipeline(bench.metrics).completed == 3);
    test::Task<> drain(bench.context.get_executor(), [&]() -> asio::awaitable<void> {
        if (drains) {
            const auto report = co_await pipeline.drain(0ms);
            CHECK(report.unfinished == 3);
        }
    });
    if (!drains) {
        batch.cancel();
    }
    sluice::testing::run(bench.context);
    const PipelineMetrics end = only_pipeline(bench.metrics);
    CHECK(end.completed == 3);
    CHECK(end.cancelled == (drains ? 0 : 3));
    CHECK(end.unfinished == (drains ? 3 : 0));
    CHECK(end.in_work == 0);
}

TEST_CASE("watch: a pipeline may be moved, and is watched from its beginning", "[metrics]") {
    WatchedPipeline bench;
    auto first = bench.make(3);
    auto batch = bench.start_batch(first, 2);
    sluice::testing::run(bench.context);
    bench.metrics.watch(first, "support");
    auto pipeline = std::move(first);
    CHECK(only_pipeline(bench.metrics).completed == 2);
    bench.metrics.watch(pipeline, "support");  // no effect
    auto again = bench.start_batch(pipeline, 2);
    sluice::testing::run(bench.context);
    CHECK(only_pipeline(bench.metrics).window == 3);
    CHECK(only_pipeline(bench.metrics).completed == 4);
}

TEST_CASE("watch: the queries of pipelines that were destroyed still count, and so no number falls", "[metrics]") {
    WatchedPipeline bench;
    for (std::uint64_t round = 1; round != 4; ++round) {
        auto pipeline = bench.make(3);
        bench.metrics.watch(pipeline, "support");
        auto batch = bench.start_batch(pipeline, 4);
        CHECK(only_pipeline(bench.metrics).completed == 4 * (round - 1));
        sluice::testing::run(bench.context);
        CHECK(only_pipeline(bench.metrics).completed == 4 * round);
        CHECK(only_pipeline(bench.metrics).window == 3);
    }
    CHECK(only_pipeline(bench.metrics).completed == 12);
    CHECK(only_pipeline(bench.metrics).window == 0);
}

TEST_CASE("watch: a pipeline is watched until it is gone and nothing runs in it", "[metrics][shutdown]") {
    WatchedPipeline bench;
    auto pipeline = std::make_unique<decltype(bench.make(3))>(bench.make(3));
    bench.metrics.watch(*pipeline, "support");
    auto batch = bench.start_batch(*pipeline, 4);
    run_until(bench.context, 5ms);
    pipeline.reset();
    CHECK(only_pipeline(bench.metrics).window_in_use == 3);
    CHECK(only_pipeline(bench.metrics).in_work == 3);
    sluice::testing::run(bench.context);
    CHECK(only_pipeline(bench.metrics).completed == 4);
    CHECK(only_pipeline(bench.metrics).window == 0);
}

TEST_CASE("watch: metrics, a pipeline and its context are destroyed in any order", "[metrics][shutdown]") {
    const int order = GENERATE(0, 1, 2, 3, 4, 5);
    test::Rig<> rig;  // its context is not used
    auto context = std::make_unique<asio::io_context>(1);
    auto metrics = std::make_unique<Metrics>();
    auto pipeline = std::make_unique<test::Rig<>::Pipeline>(
        test::timed(context->get_executor()), test::Endpoint{&rig.classify}, test::Endpoint{&rig.extract},
        test::Endpoint{&rig.generate}, sluice::StageLimits{1, 1, 1}, rig.dead_letters);
    metrics->watch(*pipeline, "three");
    const auto queries = test::make_queries(5);
    const test::Task<> batch(context->get_executor(), [&pipeline, &queries]() -> asio::awaitable<void> {
        static_cast<void>(co_await pipeline->process_batch(queries));
    });
    run_until(*context, 60ms);
    CHECK(only_pipeline(*metrics).in_work == 3);
    const int orders[6][3] = {{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}};
    bool context_gone = false;
    for (const int what : orders[order]) {
        if (what == 0) {
            context.reset();
            context_gone = true;
        } else if (what == 1) {
            pipeline.reset();
        } else {
            metrics.reset();
        }
        if (metrics) {
            const PipelineMetrics now = only_pipeline(*metrics);
            CHECK(now.windows == (context_gone ? 0 : 1));
            CHECK(now.window_in_use == (context_gone ? 0 : 3));
            CHECK(now.in_work == (context_gone && !pipeline ? 0 : 3));
            CHECK(now.completed == 0);
        }
    }
}

TEST_CASE("watch: a pipeline needs a name", "[metrics]") {
    WatchedPipeline bench;
    const auto pipeline = bench.make(3);
    CHECK_THROWS_MATCHES(bench.metrics.watch(pipeline, ""), std::invalid_argument,
                         Catch::Matchers::Message("Metrics: the name of a pipeline must not be empty"));
    CHECK(bench.metrics.snapshot().pipelines.empty());
}
