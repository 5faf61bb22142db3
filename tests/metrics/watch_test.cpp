// SPDX-License-Identifier: BSL-1.0
#include <sluice/metrics/metrics.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
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

TEST_CASE("watch: how long an endpoint is still paused", "[metrics][pause]") {
    asio::io_context context;
    Metrics metrics;
    const auto executor = test::timed(context.get_executor());
    WatchedEndpoint gpt(executor, "gpt", sluice::EndpointOptions{.limit = 2});
    metrics.watch(gpt);
    CHECK(only_endpoint(metrics).pause_left == 0s);
    gpt.pause(5s);
    CHECK(only_endpoint(metrics).pause_left == 5s);
    WatchedEndpoint other(executor, "gpt", sluice::EndpointOptions{.limit = 2});
    other.pause(4s);
    metrics.watch(other);
    CHECK(only_endpoint(metrics).pause_left == 5s);
    run_until(context, 3s);
    CHECK(only_endpoint(metrics).pause_left == 2s);
    run_until(context, 6s);
    CHECK(only_endpoint(metrics).pause_left == 0s);
    CHECK_FALSE(only_endpoint(metrics).breaker);
    CHECK(only_endpoint(metrics).rate(sluice::Rate::requests).periods.empty());
}

TEST_CASE("watch: the state of a breaker, and how often it has opened", "[metrics][breaker]") {
    WatchedPipeline bench;
    Metrics metrics;
    WatchedEndpoint gpt(
        test::timed(bench.context.get_executor()), "gpt",
        sluice::EndpointOptions{.limit = 2, .breaker = sluice::BreakerOptions{.minimum_calls = 2, .jitter = 0}});
    metrics.watch(gpt);
    const WatchedStage stage(gpt, "s", test::Endpoint{&bench.model});
    bench.model.failures["t"] = 2;
    // Of closed, open, half-open, forced open and forced closed; then the number of openings.
    const auto numbers = [&] {
        const sluice::BreakerMetrics now = only_endpoint(metrics).breaker.value();
        return std::vector<std::uint64_t>{now.closed,      now.open,          now.half_open,
                                          now.forced_open, now.forced_closed, now.openings};
    };
    using Numbers = std::vector<std::uint64_t>;
    CHECK(numbers() == Numbers{1, 0, 0, 0, 0, 0});
    std::deque<test::Task<sluice::StageResult<std::string>>> tasks;
    for (int i = 0; i != 2; ++i) {
        tasks.emplace_back(bench.context.get_executor(), [&] { return stage.run("q", std::string("t")); });
    }
    run_until(bench.context, 20ms);
    CHECK(numbers() == Numbers{0, 1, 0, 0, 0, 1});
    run_until(bench.context, 11s);
    CHECK(numbers() == Numbers{0, 0, 1, 0, 0, 1});
    gpt.breaker().force_open();
    CHECK(numbers() == Numbers{0, 0, 0, 1, 0, 2});
    gpt.breaker().force_open();
    CHECK(numbers() == Numbers{0, 0, 0, 1, 0, 2});
    gpt.breaker().force_closed();
    CHECK(numbers() == Numbers{0, 0, 0, 0, 1, 2});
    gpt.breaker().reset();
    CHECK(numbers() == Numbers{1, 0, 0, 0, 0, 2});
    SECTION("of two endpoints") {
        const WatchedEndpoint other(test::timed(bench.context.get_executor()), "gpt",
                                    sluice::EndpointOptions{.limit = 1, .breaker = sluice::BreakerOptions()});
        metrics.watch(other);
        other.breaker().force_open();
        CHECK(numbers() == Numbers{1, 0, 0, 1, 0, 3});
    }
    SECTION("of one that has none") {
        const WatchedEndpoint other(test::timed(bench.context.get_executor()), "gpt",
                                    sluice::EndpointOptions{.limit = 1});
        metrics.watch(other);
        CHECK(numbers() == Numbers{1, 0, 0, 0, 0, 2});
    }
}

namespace {

// Whether nothing that was granted has disappeared.
bool is_balanced(const sluice::RateMetrics& rate) {
    return rate.granted + rate.debt == rate.settled + rate.refunded + rate.outstanding;
}

// Costs 100 input tokens, and uses 150.
struct TokenModel {
    static sluice::Cost cost(const std::string&) { return {.input_tokens = 100}; }
    asio::awaitable<std::string> operator()(const std::string& text, sluice::Attempt& attempt) const {
        return call(text, attempt);
    }
    static asio::awaitable<std::string> call(std::string text, sluice::Attempt& attempt) {
        co_await test::sleep(10ms);
        attempt.used({.input_tokens = 150});
        co_return text;
    }
};

}  // namespace

TEST_CASE("watch: what is left of rates, and what was taken of them", "[metrics][rate]") {
    asio::io_context context;
    Metrics metrics;
    WatchedEndpoint gpt(test::timed(context.get_executor()), "gpt",
                        sluice::EndpointOptions{.limit = 9,
                                                .requests = sluice::Rate(60, 1min, 5).also(10, 1s, 10),
                                                .input_tokens = sluice::Rate(6000, 1min, 120)});
    metrics.watch(gpt);
    const sluice::Stage<TokenModel, test::VirtualTimer> stage(gpt, "s", TokenModel());
    const test::Task<sluice::StageResult<std::string>> first(context.get_executor(),
                                                             [&] { return stage.run("q", std::string("t")); });
    run_until(context, 1ms);
    sluice::RateMetrics requests = only_endpoint(metrics).rate(sluice::Rate::requests);
    REQUIRE(requests.periods.size() == 2);
    CHECK(requests.periods[0].per == 1s);
    CHECK(requests.periods[0].left == 9);
    CHECK(requests.periods[0].burst == 10);
    CHECK(requests.periods[1].per == 1min);
    CHECK(requests.periods[1].left == 4);
    CHECK(requests.periods[1].burst == 5);
    CHECK(requests.granted == 1);
    CHECK(requests.outstanding == 1);
    CHECK(only_endpoint(metrics).rate(sluice::Rate::input_tokens).periods.at(0).left == 20);
    CHECK(only_endpoint(metrics).rate(sluice::Rate::output_tokens).periods.empty());
    run_until(context, 10ms);
    const sluice::RateMetrics tokens = only_endpoint(metrics).rate(sluice::Rate::input_tokens);
    CHECK(tokens.periods.at(0).left == -29);  // 1 has come in 10 ms
    CHECK(tokens.granted == 100);
    CHECK(tokens.debt == 50);
    CHECK(tokens.settled == 150);
    CHECK(tokens.refunded == 0);
    CHECK(tokens.outstanding == 0);
    CHECK(is_balanced(tokens));
    run_until(context, 310ms);  // nothing happens, but time passes
    CHECK(only_endpoint(metrics).rate(sluice::Rate::input_tokens).periods.at(0).left == 1);
    gpt.set_rate(sluice::Rate::input_tokens, sluice::Rate::unlimited);
    CHECK(only_endpoint(metrics).rate(sluice::Rate::input_tokens).periods.empty());
    CHECK(only_endpoint(metrics).rate(sluice::Rate::input_tokens).settled == 150);
    gpt.pause(1min);
    requests = only_endpoint(metrics).rate(sluice::Rate::requests);
    CHECK(requests.periods[0].left == 0);
    CHECK(requests.settled == 1);
}

TEST_CASE("watch: of periods of one length the one counts of which less is left", "[metrics][rate]") {
    asio::io_context context;
    Metrics metrics;
    const bool turned = GENERATE(false, true);
    const sluice::Rate rate = turned ? sluice::Rate(50, 1s, 7).also(10, 1min, 3).also(50, 1s, 5)
                                     : sluice::Rate(50, 1s, 5).also(10, 1min, 3).also(50, 1s, 7);
    const sluice::EndpointOptions options{.limit = 9, .requests = rate};
    const WatchedEndpoint first(test::timed(context.get_executor()), "gpt", options);
    metrics.watch(first);
    auto periods = only_endpoint(metrics).rate(sluice::Rate::requests).periods;
    REQUIRE(periods.size() == 2);
    CHECK(periods[0].left == 5);
    CHECK(periods[0].burst == 5);
    CHECK(periods[1].left == 3);
    // Those of several endpoints are added up.
    const WatchedEndpoint second(
        test::timed(context.get_executor()), "gpt",
        sluice::EndpointOptions{.limit = 9, .requests = sluice::Rate(1, 2s, 1).also(50, 1s, 6)});
    metrics.watch(second);
    periods = only_endpoint(metrics).rate(sluice::Rate::requests).periods;
    REQUIRE(periods.size() == 3);
    CHECK(periods[0].left == 11);
    CHECK(periods[0].burst == 11);
    CHECK(periods[1].per == 2s);
    CHECK(periods[1].left == 1);
    CHECK(periods[2].left == 3);
}

TEST_CASE("watch: what endpoints that were destroyed have taken counts as long as one of the name is left",
          "[metrics][rate][breaker]") {
    asio::io_context context;
    Metrics metrics;
    const auto executor = test::timed(context.get_executor());
    const sluice::EndpointOptions options{
        .limit = 9, .requests = sluice::Rate(60, 1min, 5), .breaker = sluice::BreakerOptions()};
    const auto use = [&](const WatchedEndpoint& endpoint) {
        const sluice::Stage<TokenModel, test::VirtualTimer> stage(endpoint, "s", TokenModel());
        const test::Task<sluice::StageResult<std::string>> task(context.get_executor(),
                                                                [&] { return stage.run("q", std::string("t")); });
        sluice::testing::run(context);
        endpoint.breaker().force_open();
    };
    const auto check = [&](std::uint64_t times) {
        const EndpointMetrics now = only_endpoint(metrics);
        CHECK(now.rate(sluice::Rate::requests).granted == times);
        CHECK(now.rate(sluice::Rate::requests).settled == times);
        CHECK(is_balanced(now.rate(sluice::Rate::requests)));
        CHECK(now.breaker.value().openings == times);
    };
    std::optional<WatchedEndpoint> first(std::in_place, executor, "gpt", options);
    metrics.watch(*first);
    use(*first);
    std::optional<WatchedEndpoint> second(std::in_place, executor, "gpt", options);
    metrics.watch(*second);
    use(*second);
    check(2);
    first.reset();
    check(2);
    CHECK(only_endpoint(metrics).limit == 9);
    CHECK(only_endpoint(metrics).breaker.value().forced_open == 1);
    CHECK(only_endpoint(metrics).rate(sluice::Rate::requests).periods.at(0).burst == 5);
    first.emplace(executor, "gpt", options);
    metrics.watch(*first);  // drops the line of the one before
    check(2);
    first.reset();
    second.reset();
    CHECK(metrics.snapshot().endpoints.empty());
    second.emplace(executor, "gpt", options);
    metrics.watch(*second);
    check(2);
    use(*second);
    check(3);
}

TEST_CASE("watch: the clock of an endpoint stands still once its context is gone", "[metrics][shutdown]") {
    auto context = std::make_unique<asio::io_context>(1);
    Metrics metrics;
    WatchedEndpoint gpt(test::timed(context->get_executor()), "gpt",
                        sluice::EndpointOptions{
                            .limit = 2, .requests = sluice::Rate(60, 1min, 5), .breaker = sluice::BreakerOptions()});
    const sluice::Stage<TokenModel, test::VirtualTimer> stage(gpt, "s", TokenModel());
    metrics.watch(gpt);
    const test::Task<sluice::StageResult<std::string>> task(context->get_executor(),
                                                            [&] { return stage.run("q", std::string("t")); });
    run_until(*context, 5ms);
    gpt.pause(5s);
    gpt.breaker().force_open();
    context.reset();
    const EndpointMetrics now = only_endpoint(metrics);
    CHECK(now.limit == 2);
    CHECK(now.active == 0);
    CHECK(now.pause_left == 5s);
    CHECK(now.breaker.value().forced_open == 1);
    CHECK(now.rate(sluice::Rate::requests).periods.at(0).left == 0);
    CHECK(now.rate(sluice::Rate::requests).outstanding == 0);
    CHECK(is_balanced(now.rate(sluice::Rate::requests)));
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
