// SPDX-License-Identifier: BSL-1.0
#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/pipeline_runs.hpp"
#include "support/probes.hpp"
#include "support/streams.hpp"
#include "support/task.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/query.hpp>
#include <sluice/testing/run.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/query.hpp>
#include <boost/asio/require.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;

// The places of queries in the window, in backoff and when limits change.
namespace {

using namespace std::chrono_literals;
using sluice::Query;
using test::Indexes;
using test::InferencePipelineOptions;
using test::Rig;
using test::Task;

// `poisoned` queries that classify fails as often as it may, then `healthy` ones.
std::vector<Query> queries(std::size_t poisoned, std::size_t healthy) {
    std::vector<Query> all;
    for (std::size_t i = 0; i != poisoned; ++i) {
        all.emplace_back("p" + std::to_string(i), "poison" + std::to_string(i));
    }
    for (std::size_t i = 0; i != healthy; ++i) {
        all.emplace_back("h" + std::to_string(i), "healthy" + std::to_string(i));
    }
    return all;
}

// Three fast models, the first of which fails all that is poisoned `times` times.
struct Poisoned : Rig<> {
    explicit Poisoned(std::size_t poisoned, int times) {
        classify.latency = extract.latency = generate.latency = 1ms;
        for (std::size_t i = 0; i != poisoned; ++i) {
            classify.failures["poison" + std::to_string(i)] = times;
        }
    }
};

// Counts what is executed.
template <class Executor>
struct CountingExecutor {
    template <class Property>
    auto query(const Property& property) const noexcept -> decltype(asio::query(std::declval<Executor>(), property)) {
        return asio::query(executor, property);
    }

    template <class Property>
    auto require(const Property& property) const
        -> CountingExecutor<std::decay_t<decltype(asio::require(std::declval<Executor>(), property))>> {
        return {asio::require(executor, property), executed};
    }

    template <class Function>
    void execute(Function&& function) const {
        ++*executed;
        executor.execute(std::forward<Function>(function));
    }

    bool operator==(const CountingExecutor&) const noexcept = default;

    Executor executor;
    std::size_t* executed;
};

InferencePipelineOptions retrying(int retries, std::chrono::nanoseconds backoff, std::ptrdiff_t window,
                                  std::ptrdiff_t max_in_backoff = 1000) {
    auto options = test::every_stage({.retry = test::retries(retries, backoff)});
    options.window = window;
    options.max_in_backoff = max_in_backoff;
    return options;
}

}  // namespace

TEST_CASE("window: queries in backoff do not hold up the others", "[window]") {
    const bool streamed = GENERATE(false, true);
    Poisoned rig(3, 9);
    auto pipeline = rig.pipeline({1, 1, 1}, retrying(3, 30s, 3));
    const auto input = queries(3, 100);
    std::chrono::nanoseconds healthy_done{};
    if (streamed) {
        auto stream = pipeline.process_stream(input);
        Task<> task(rig.context.get_executor(), [&] {
            return [](auto& results, auto& context, auto& last) -> asio::awaitable<void> {
                while (auto item = co_await results.next()) {
                    if (item->result.completed) {
                        last = test::now(context);
                    }
                }
            }(stream, rig.context, healthy_done);
        });
        rig.run();
        CHECK(task.succeeded());
    } else {
        auto batch = test::start_batch(rig.context, pipeline, input);
        test::run_until(rig.context, 1s);
        CHECK(rig.generate.finished.size() == 100);
        healthy_done = 1s;
        rig.run();
        CHECK(std::ranges::count_if(batch.value(), [](const auto& r) { return r.completed; }) == 100);
    }
    CHECK(healthy_done <= 1s);
    CHECK(test::now(rig.context) >= 90s);
    CHECK(rig.dead_letters.letters.size() == 3);
    CHECK(test::idle(pipeline));
}

TEST_CASE("window: a window of 1 means one query at a time, though others are in backoff", "[window]") {
    const auto backoff = GENERATE(1ms, 2ms, 7ms, 100ms);
    Poisoned rig(5, 2);
    auto pipeline = rig.pipeline({9, 9, 9}, retrying(3, backoff, 1));
    const auto input = queries(5, 20);
    auto batch = test::start_batch(rig.context, pipeline, input);
    while (test::step(rig.context)) {
        REQUIRE(rig.running() <= 1);
    }
    CHECK(std::ranges::all_of(batch.value(), [](const auto& r) { return r.completed; }));
}

TEST_CASE("window: never more than the window run, in whatever order backoffs end", "[window]") {
    const std::ptrdiff_t window = GENERATE(1, 2, 3, 7);
    const std::ptrdiff_t max_in_backoff = GENERATE(0, 1, 4, 1000);
    Poisoned rig(30, 1);
    rig.classify.latency_of = [](const std::string& text) {
        return std::chrono::milliseconds(1 + static_cast<int>(text.back() - '0') % 4);
    };
    auto pipeline = rig.pipeline({20, 20, 20}, retrying(3, 3ms, window, max_in_backoff));
    auto input = queries(30, 30);
    std::ranges::rotate(input, input.begin() + 10);
    auto batch = test::start_batch(rig.context, pipeline, input);
    int most = 0;
    while (test::step(rig.context)) {
        most = std::max(most, rig.running());
    }
    CHECK(most == window);
    REQUIRE(batch.succeeded());
    for (std::size_t i = 0; i != input.size(); ++i) {
        CHECK(batch.value()[i].query.id == input[i].id);
        CHECK(batch.value()[i].completed);
    }
}

TEST_CASE("window: a query comes back from its backoff ahead of those that have not begun", "[window]") {
    Poisoned rig(1, 1);
    rig.classify.latency = 10ms;
    auto pipeline = rig.pipeline({1, 1, 1}, retrying(1, 5ms, 1));
    const auto input = queries(1, 3);
    auto batch = test::start_batch(rig.context, pipeline, input);
    rig.run();
    CHECK(rig.classify.begun == std::vector<std::string>{"poison0", "healthy0", "poison0", "healthy1", "healthy2"});
    CHECK(batch.value()[0].completed);
}

TEST_CASE("window: no more queries are taken in than the window and the bound on backoffs allow", "[window]") {
    const std::ptrdiff_t max_in_backoff = GENERATE(0, 1, 5);
    Poisoned rig(50, 99);
    auto pipeline = rig.pipeline({9, 9, 9}, retrying(99, 1h, 2, max_in_backoff));
    test::Source source(test::endless);
    for (std::size_t i = 0; i != 50; ++i) {
        rig.classify.failures["t" + std::to_string(i)] = 99;
    }
    auto batch = test::start_batch(rig.context, pipeline, source);
    test::run_until(rig.context, 30min);
    CHECK(source.made == static_cast<std::size_t>(2 + max_in_backoff));
    batch.cancel();
    rig.run();
    CHECK(batch.aborted());
    CHECK(test::idle(pipeline));
}

TEST_CASE("window: queries that never suspend start no more workers than there are places", "[window]") {
    Rig<> rig;
    rig.classify.latency = rig.extract.latency = rig.generate.latency = 0ms;
    auto pipeline = rig.pipeline({9, 9, 9}, test::with_window(3));
    const auto input = test::make_queries(1000);
    std::size_t executed = 0;
    const CountingExecutor executor{rig.context.get_executor(), &executed};
    Task<Rig<>::Results> batch(executor, [&] { return pipeline.process_batch(input); });
    test::poll(rig.context);
    CHECK(batch.value().size() == 1000);
    CHECK(executed < 100);  // each worker is executed once
}

TEST_CASE("window: the bound on backoffs must not be negative", "[window]") {
    Rig<> rig;
    CHECK(test::refusal_of([&] { rig.pipeline({1, 1, 1}, {.max_in_backoff = -1}); }) ==
          "InferencePipeline: max_in_backoff must not be negative, got -1");
    CHECK(InferencePipelineOptions{}.max_in_backoff == 1000);
}

TEST_CASE("window: by default it follows the limits while a batch runs", "[window]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({1, 1, 1});
    const auto input = test::make_queries(40);
    auto batch = test::start_batch(rig.context, pipeline, input);
    test::poll(rig.context);
    CHECK(pipeline.window() == 3);
    CHECK(rig.classify.running == 1);
    pipeline.classify().endpoint().set_limit(10);
    CHECK(pipeline.window() == 12);
    test::poll(rig.context);
    CHECK(rig.classify.running == 10);  // at once, not when the next query ends
    pipeline.classify().endpoint().set_limit(1);
    CHECK(pipeline.window() == 3);
    rig.run();
    CHECK(batch.value().size() == 40);
    CHECK(std::ranges::all_of(batch.value(), [](const auto& r) { return r.completed; }));
}

TEST_CASE("window: one that was given does not follow the limits", "[window]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({1, 1, 1}, test::with_window(2));
    const auto input = test::make_queries(10);
    auto batch = test::start_batch(rig.context, pipeline, input);
    test::poll(rig.context);
    pipeline.classify().endpoint().set_limit(10);
    CHECK(pipeline.window() == 2);
    int most = 0;
    while (test::step(rig.context)) {
        most = std::max(most, rig.running());
    }
    CHECK(most == 2);
    CHECK(batch.value().size() == 10);
}

TEST_CASE("window: a batch or stream that begins while every stage is paused waits", "[window]") {
    const bool streamed = GENERATE(false, true);
    Rig<> rig;
    auto pipeline = rig.pipeline({1, 1, 1});
    const auto set_limits = [&](std::ptrdiff_t limit) {
        pipeline.classify().endpoint().set_limit(limit);
        pipeline.extract().endpoint().set_limit(limit);
        pipeline.generate().endpoint().set_limit(limit);
    };
    set_limits(0);
    CHECK(pipeline.window() == 0);
    const auto input = test::make_queries(20);
    if (streamed) {
        auto stream = pipeline.process_stream(input);
        Indexes indexes;
        auto drained = test::start_drain(rig, stream, indexes);
        rig.run_until_stalled();
        CHECK_FALSE(drained.done());
        set_limits(2);
        rig.run();
        CHECK(indexes.size() == 20);
    } else {
        auto batch = test::start_batch(rig.context, pipeline, input);
        rig.run_until_stalled();
        CHECK_FALSE(batch.done());
        set_limits(2);
        rig.run();
        CHECK(batch.value().size() == 20);
    }
}

TEST_CASE("window: limits may change when nothing runs, and when the pipeline is gone", "[window]") {
    Rig<> rig;
    auto endpoint = [&] {
        auto pipeline = rig.pipeline({1, 1, 1});
        auto classify = pipeline.classify();
        classify.endpoint().set_limit(2);
        CHECK(pipeline.window() == 4);
        return classify.endpoint();
    }();
    endpoint.set_limit(7);
    CHECK(endpoint.limit() == 7);
}

TEST_CASE("window: limits raised while a stream's consumer is slow start nothing beyond the window", "[window]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({2, 2, 2});
    const auto input = test::make_queries(40);
    auto stream = pipeline.process_stream(input);
    auto first = test::next(rig, stream);
    sluice::testing::run_until_stalled(rig.context);
    CHECK(first.value()->result.completed);
    CHECK(rig.generate.finished.size() <= 7);
    pipeline.generate().endpoint().set_limit(5);
    sluice::testing::run_until_stalled(rig.context);
    CHECK(rig.generate.finished.size() <= 10);
    CHECK(rig.generate.finished.size() >= 9);
    Indexes rest;
    auto drained = test::start_drain(rig, stream, rest);
    rig.run();
    CHECK(rest.size() == 39);
}

TEST_CASE("window: cancelling a batch ends queries that wait to come back from a backoff", "[window]") {
    const bool streamed = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Poisoned rig(4, 3);
        auto pipeline = rig.pipeline({3, 3, 3}, retrying(3, 2ms, 1));
        const auto input = queries(4, 4);
        if (streamed) {
            auto stream = pipeline.process_stream(input);
            Indexes indexes;
            auto drained = test::start_drain(rig, stream, indexes);
            test::poll(rig.context);
            steps.take(rig.context);
            Task<> closed(rig.context.get_executor(), [&] { return stream.close(); });
            rig.run();
            CHECK(closed.succeeded());
            CHECK(drained.succeeded());
        } else {
            auto batch = test::start_batch(rig.context, pipeline, input);
            test::poll(rig.context);
            steps.take(rig.context);
            batch.cancel();
            rig.run();
            CHECK((batch.aborted() || batch.succeeded()));
        }
        CHECK(test::idle(pipeline));
        CHECK(rig.running() == 0);
    });
}
