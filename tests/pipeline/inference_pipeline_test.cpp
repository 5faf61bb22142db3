// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/testing/run.hpp>

#include "support/models.hpp"
#include "support/pipeline_runs.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <queue>
#include <random>
#include <ranges>
#include <sstream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::InferencePipeline;
using sluice::Query;
using sluice::StageResult;
using test::idle;
using test::InferencePipelineOptions;
using test::is_complete;
using test::is_partial;
using test::make_queries;
using test::make_query;
using test::refusal_of;
using test::retries;
using test::Rig;
using test::run_until;
using test::SlowDeadLetters;
using test::Source;
using test::stage_names;
using test::StageOptions;
using test::start_batch;
using test::start_one;
using test::Task;
using test::with_window;
using Result = Rig<>::Result;
using Results = Rig<>::Results;
using Strings = std::vector<std::string>;

namespace {

// The time at which the last query is done if each stage serves first come, first served.
std::chrono::nanoseconds makespan(std::size_t queries, const std::vector<std::size_t>& limits,
                                  const std::function<std::chrono::nanoseconds(std::size_t, std::size_t)>& latency) {
    using Event = std::pair<std::chrono::nanoseconds, std::size_t>;  // when, and which query
    std::vector<Event> arrivals;
    for (std::size_t i = 0; i != queries; ++i) {
        arrivals.emplace_back(0ns, i);
    }
    for (std::size_t stage = 0; stage != limits.size(); ++stage) {
        std::ranges::sort(arrivals);
        std::priority_queue<std::chrono::nanoseconds, std::vector<std::chrono::nanoseconds>, std::greater<>> free;
        for (std::size_t i = 0; i != limits[stage]; ++i) {
            free.push(0ns);
        }
        for (auto& [when, query] : arrivals) {
            when = std::max(when, free.top()) + latency(stage, query);
            free.pop();
            free.push(when);
        }
    }
    return std::ranges::max(arrivals).first;
}

}  // namespace

TEST_CASE("pipeline: a query passes through the three stages in order, and each fills in its part of the result",
          "[pipeline]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    const auto when = std::chrono::system_clock::time_point(42s);
    auto task = start_one(rig.context, pipeline, Query("q", "t", when));
    CHECK(rig.run() == 700ms);
    REQUIRE(task.succeeded());
    const Result& result = task.value();
    CHECK(is_complete(result));
    CHECK(result.query.id == "q");
    CHECK(result.query.text == "t");
    CHECK(result.query.timestamp == when);
    REQUIRE(result.stage_results.size() == 3);
    const std::chrono::nanoseconds latencies[] = {50ms, 150ms, 500ms};
    for (std::size_t i = 0; i != 3; ++i) {
        const StageResult<>& stage = result.stage_results[i];
        CHECK(stage.query_id == "q");
        CHECK(stage.stage == stage_names[i]);
        CHECK(stage.latency == latencies[i]);
        CHECK(stage.queue_time == 0ms);
        CHECK(stage.attempts == 1);
        CHECK(stage.success);
        CHECK_FALSE(stage.error);
    }
    CHECK(rig.dead_letters.letters.empty());
    CHECK(idle(pipeline));
}

TEST_CASE("pipeline: after a failure no later stage runs, and the dead letter says where and why", "[pipeline]") {
    const int stage = GENERATE(0, 1, 2);
    Rig<> rig;
    rig.model(stage).failures["t"] = 1;
    auto pipeline = rig.pipeline();
    auto task = start_one(rig.context, pipeline, Query("q", "t"));
    rig.run();
    REQUIRE(task.succeeded());
    const Result& result = task.value();
    CHECK(is_partial(result, stage));
    CHECK_FALSE(result.dead_letter_error);
    for (int i = 0; i != 3; ++i) {
        CHECK(rig.model(i).calls() == (i <= stage ? 1 : 0));
    }
    for (std::size_t i = 0; i + 1 < result.stage_results.size(); ++i) {
        CHECK(result.stage_results[i].success);
    }

    REQUIRE(rig.dead_letters.letters.size() == 1);
    const auto& [query, reason] = rig.dead_letters.letters[0];
    CHECK(query.id == "q");
    CHECK(query.text == "t");
    CHECK(reason.query_id == "q");
    CHECK(reason.stage == stage_names[static_cast<std::size_t>(stage)]);
    CHECK(reason.attempts == 1);
    CHECK(reason.latency == rig.model(stage).latency);
    CHECK_FALSE(reason.success);
    CHECK(reason.error.type() == "std::runtime_error");
    CHECK(reason.error.message() == "cannot " + rig.model(stage).name + " t");
    CHECK(reason.error.exception() == result.stage_results.back().error.exception());
    CHECK(idle(pipeline));
}

TEST_CASE("pipeline: the limits are reached and never exceeded", "[pipeline]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({20, 10, 5});
    const auto queries = make_queries(50);
    auto task = start_batch(rig.context, pipeline, queries);
    while (test::step(rig.context)) {
        REQUIRE(rig.classify.running <= 20);
        REQUIRE(rig.extract.running <= 10);
        REQUIRE(rig.generate.running <= 5);
        REQUIRE(pipeline.generate().endpoint().active() <= 5);
    }
    CHECK(rig.classify.peak == 20);
    CHECK(rig.extract.peak == 10);
    CHECK(rig.generate.peak == 5);
    // From 200 ms on, queries are generated 5 at a time, without a gap.
    CHECK(test::now(rig.context) == 50ms + 150ms + 10 * 500ms);
    REQUIRE(task.succeeded());
    CHECK(std::ranges::all_of(task.value(), is_complete));
    CHECK(idle(pipeline));
}

TEST_CASE("pipeline: a batch takes as long as a first-come, first-served simulation says", "[pipeline][stress]") {
    for (unsigned seed = 0; seed != 20; ++seed) {
        std::mt19937_64 random(seed);
        std::vector<std::vector<std::chrono::nanoseconds>> latencies(3);
        std::vector<std::size_t> limits;
        for (std::size_t stage = 0; stage != 3; ++stage) {
            limits.push_back(random() % 8 + 1);
            for (int i = 0; i != 100; ++i) {
                latencies[stage].emplace_back(random() % 1'000'000'000 + 1);
            }
        }
        Rig<> rig;
        for (int stage = 0; stage != 3; ++stage) {
            rig.model(stage).latency_of = [&, stage](const std::string& text) {
                return latencies[static_cast<std::size_t>(stage)][std::stoul(text.substr(1))];
            };
        }
        auto pipeline = rig.pipeline({static_cast<std::ptrdiff_t>(limits[0]), static_cast<std::ptrdiff_t>(limits[1]),
                                      static_cast<std::ptrdiff_t>(limits[2])},
                                     with_window(1000));
        const auto queries = make_queries(100);
        auto task = start_batch(rig.context, pipeline, queries);
        CHECK(rig.run() ==
              makespan(100, limits, [&](std::size_t stage, std::size_t query) { return latencies[stage][query]; }));
        CHECK(std::ranges::all_of(task.value(), is_complete));
    }
}

TEST_CASE("pipeline: no slot is held between stages", "[pipeline]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({1, 1, 1}, with_window(10));
    const auto queries = make_queries(4);
    auto task = start_batch(rig.context, pipeline, queries);
    run_until(rig.context, 680ms);  // q0 is in generate until 700; the others wait for it
    CHECK(pipeline.classify().endpoint().active() == 0);
    CHECK(pipeline.extract().endpoint().active() == 0);
    CHECK(pipeline.generate().endpoint().active() == 1);
    CHECK(pipeline.generate().endpoint().waiting() == 3);
    CHECK(rig.classify.calls() == 4);
    CHECK(rig.extract.calls() == 4);
    rig.run();
    CHECK(test::now(rig.context) == 50ms + 150ms + 4 * 500ms);
    CHECK(task.value()[3].stage_results[2].queue_time == 2200ms - 500ms - (50ms + 4 * 150ms));
}

TEST_CASE("pipeline: a batch returns its results in the order of the input", "[pipeline]") {
    Rig<> rig;
    rig.classify.latency_of = [](const std::string& text) { return 100ms - std::stoi(text.substr(1)) * 1ms; };
    rig.classify.failures["t7"] = 1;
    auto pipeline = rig.pipeline({60, 60, 60});
    const auto queries = make_queries(50);
    auto task = start_batch(rig.context, pipeline, queries);
    rig.run();
    CHECK(rig.generate.finished.front() == "t49");
    REQUIRE(task.value().size() == 50);
    for (std::size_t i = 0; i != 50; ++i) {
        CHECK(task.value()[i].query.id == queries[i].id);
        CHECK((is_complete(task.value()[i]) || i == 7));
    }
}

TEST_CASE("pipeline: queries start in the order of the input", "[pipeline]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    const auto queries = make_queries(50);
    auto task = start_batch(rig.context, pipeline, queries);
    rig.run();
    Strings texts;
    for (const Query& query : queries) {
        texts.push_back(query.text);
    }
    for (int stage = 0; stage != 3; ++stage) {
        CHECK(rig.model(stage).begun == texts);
    }
}

TEST_CASE("pipeline: a failed query does not affect the others", "[pipeline]") {
    const auto queries = make_queries(9);
    const auto run = [&](Rig<>& rig) {
        auto pipeline = rig.pipeline({9, 9, 9});
        auto task = start_batch(rig.context, pipeline, queries);
        rig.run();
        return std::move(task.value());
    };
    Rig<> healthy;
    const Results expected = run(healthy);
    Rig<> rig;
    for (int stage = 0; stage != 3; ++stage) {
        rig.model(stage).failures["t" + std::to_string(2 + stage)] = 1;
    }
    const Results results = run(rig);
    for (std::size_t i = 0; i != 9; ++i) {
        if (i >= 2 && i <= 4) {
            CHECK(is_partial(results[i], static_cast<int>(i) - 2));
            continue;
        }
        CHECK(is_complete(results[i]));
        for (std::size_t stage = 0; stage != 3; ++stage) {
            CHECK(results[i].stage_results[stage].queue_time == expected[i].stage_results[stage].queue_time);
            CHECK(results[i].stage_results[stage].latency == expected[i].stage_results[stage].latency);
        }
    }
    CHECK(test::ids(rig.dead_letters.letters) == Strings{"q2", "q3", "q4"});
    for (std::size_t i = 0; i != 3; ++i) {
        CHECK(rig.dead_letters.letters[i].reason.stage == stage_names[i]);
    }
}

TEST_CASE("pipeline: each stage has its own retries, and the dead letter counts the attempts", "[pipeline]") {
    Rig<> rig;
    InferencePipelineOptions options;
    options.classify.retry = retries(1, 10ms);
    options.generate.retry = retries(3, 20ms);
    rig.classify.failures["t0"] = 1;
    rig.extract.failures["t1"] = 1;
    rig.generate.failures["t2"] = 3;
    rig.generate.failures["t3"] = 9;
    auto pipeline = rig.pipeline({9, 9, 9}, options);
    const auto queries = make_queries(4);
    auto task = start_batch(rig.context, pipeline, queries);
    rig.run();
    const Results& results = task.value();
    CHECK(is_complete(results[0]));
    CHECK(results[0].stage_results[0].attempts == 2);
    CHECK(results[0].stage_results[0].latency == 100ms);
    CHECK(is_partial(results[1], 1));
    CHECK(is_complete(results[2]));
    CHECK(results[2].stage_results[2].attempts == 4);
    CHECK(is_partial(results[3], 2));
    REQUIRE(test::ids(rig.dead_letters.letters) == Strings{"q1", "q3"});
    CHECK(rig.dead_letters.letters[0].reason.attempts == 1);
    CHECK(rig.dead_letters.letters[1].reason.attempts == 4);
    CHECK(test::now(rig.context) == 50ms + 150ms + 4 * 500ms + 3 * 20ms);
}

TEST_CASE("pipeline: one set of stage options can serve all three stages", "[pipeline]") {
    Rig<> rig;
    for (int stage = 0; stage != 3; ++stage) {
        rig.model(stage).failures["t0"] = 1;
    }
    auto pipeline = rig.pipeline({1, 1, 1}, test::every_stage(StageOptions{.retry = retries(1)}));
    auto task = start_one(rig.context, pipeline, make_query(0));
    rig.run();
    CHECK(is_complete(task.value()));
    for (const StageResult<>& stage : task.value().stage_results) {
        CHECK(stage.attempts == 2);
    }
}

TEST_CASE("pipeline: a query that times out in a stage is a dead letter", "[pipeline]") {
    Rig<> rig;
    InferencePipelineOptions options;
    options.generate.timeout = 499ms;
    auto pipeline = rig.pipeline({1, 1, 1}, options);
    auto task = start_one(rig.context, pipeline, make_query(0));
    CHECK(rig.run() == 699ms);
    CHECK(is_partial(task.value(), 2));
    REQUIRE(rig.dead_letters.letters.size() == 1);
    CHECK(rig.dead_letters.letters[0].reason.error.type() == "sluice::TimeoutError");
    CHECK(rig.generate.running == 0);
}

TEST_CASE("pipeline: the stages are accessible, and their limits can be changed", "[pipeline]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({1, 2, 3});
    CHECK(pipeline.classify().name() == "classify");
    CHECK(pipeline.extract().name() == "extract");
    CHECK(pipeline.generate().name() == "generate");
    CHECK(pipeline.classify().endpoint().limit() == 1);
    CHECK(pipeline.extract().endpoint().limit() == 2);
    CHECK(pipeline.generate().endpoint().limit() == 3);

    pipeline.extract().endpoint().set_limit(0);  // paused
    auto task = start_one(rig.context, pipeline, make_query(0));
    rig.run_until_stalled();
    CHECK_FALSE(task.done());
    CHECK(rig.extract.calls() == 0);
    pipeline.extract().endpoint().set_limit(1);
    rig.run();
    CHECK(is_complete(task.value()));
}

TEST_CASE("pipeline: one stage can be run alone, and its failure is no dead letter", "[pipeline]") {
    Rig<> rig;
    rig.extract.failures["t1"] = 1;
    auto pipeline = rig.pipeline();
    Query queries[] = {make_query(0), make_query(1)};
    const auto run = [&](Query& query) {
        Task<StageResult<std::string>> task(rig.context.get_executor(),
                                            [&] { return pipeline.extract().run(query.id, query.text); });
        rig.run();
        return std::move(task.value());
    };
    const auto good = run(queries[0]);
    CHECK(good.query_id == "q0");
    CHECK(good.stage == "extract");
    CHECK(good.data == "extract(t0)");
    const auto bad = run(queries[1]);
    CHECK_FALSE(bad.success);
    CHECK(bad.error.message() == "cannot extract t1");
    CHECK(rig.dead_letters.letters.empty());
    CHECK(rig.classify.calls() + rig.generate.calls() == 0);
}

TEST_CASE("pipeline: an empty batch returns no results", "[pipeline]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    std::vector<Query> none;
    auto a = start_batch(rig.context, pipeline, none);
    Task<Results> b(rig.context.get_executor(), [&] { return pipeline.process_batch(std::vector<Query>()); });
    Source empty(0);
    auto c = start_batch(rig.context, pipeline, empty);
    CHECK(rig.run() == 0ms);
    CHECK(a.value().empty());
    CHECK(b.value().empty());
    CHECK(c.value().empty());
    CHECK(rig.calls() == 0);
    CHECK(empty.made == 0);
}

TEST_CASE("pipeline: the queries of an lvalue range are copied, and those of an rvalue range are moved", "[pipeline]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({1, 1, 1});
    const std::string long_text(200, 'x');
    std::vector<Query> queries;
    for (int i = 0; i != 5; ++i) {
        queries.emplace_back("q", long_text);
    }
    std::vector<const char*> buffers;
    for (const Query& query : queries) {
        buffers.push_back(query.text.data());
    }
    auto copied = start_batch(rig.context, pipeline, queries);
    rig.run();
    for (std::size_t i = 0; i != 5; ++i) {
        CHECK(queries[i].text == long_text);
        CHECK(copied.value()[i].query.text.data() != buffers[i]);
        CHECK(copied.value()[i].query.text == long_text);
    }
    Task<Results> moved(rig.context.get_executor(), [&] { return pipeline.process_batch(std::move(queries)); });
    rig.run();
    for (std::size_t i = 0; i != 5; ++i) {
        CHECK(moved.value()[i].query.text.data() == buffers[i]);
    }
}

TEST_CASE("pipeline: an rvalue range is moved into the operation, even before that is awaited", "[pipeline]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    Task<Results> task(rig.context.get_executor(), [&] {
        auto queries = make_queries(40);
        return pipeline.process_batch(std::move(queries));  // it begins when the lambda has returned
    });
    rig.run();
    CHECK(task.value().size() == 40);
    CHECK(std::ranges::all_of(task.value(), is_complete));
}

TEST_CASE("pipeline: an input range is never read ahead of the window", "[pipeline]") {
    const std::ptrdiff_t window = GENERATE(1, 2, 7);
    Rig<> rig;
    auto pipeline = rig.pipeline({3, 2, 1}, with_window(window));
    Source source(20);
    std::size_t ended = 0;
    source.on_make = [&](std::size_t index) {
        ended = rig.generate.finished.size();
        CHECK(index < ended + static_cast<std::size_t>(window));
    };
    auto task = start_batch(rig.context, pipeline, source);
    while (test::step(rig.context)) {
        REQUIRE(source.made <= rig.generate.finished.size() + static_cast<std::size_t>(window));
        REQUIRE(source.read <= rig.generate.finished.size() + static_cast<std::size_t>(window));
    }
    CHECK(task.value().size() == 20);
    CHECK(source.made == 20);
    CHECK(source.read == 21);

    std::istringstream words("t0 t1 t2");
    auto narrow = rig.pipeline({1, 1, 1}, with_window(1));
    const auto lazy = [&] {
        return std::views::istream<std::string>(words) |
               std::views::transform([](const std::string& word) { return Query(word, word); });
    };
    Task<Results> streamed(rig.context.get_executor(), [&] { return narrow.process_batch(lazy()); });
    CHECK(words.tellg() == 0);
    run_until(rig.context, test::now(rig.context) + 600ms);
    CHECK(words.tellg() == 2);
    rig.run();
    CHECK(streamed.value().size() == 3);
}

TEST_CASE("pipeline: an exception of the range ends the batch, and the queries that run are cancelled", "[pipeline]") {
    const auto where = GENERATE(Source::Throw::in_begin, Source::Throw::in_increment, Source::Throw::in_dereference);
    const std::size_t at = GENERATE(std::size_t{0}, std::size_t{1}, std::size_t{10}, std::size_t{25});
    if (where == Source::Throw::in_increment && at == 0) {
        return;
    }
    Rig<> rig;
    auto pipeline = rig.pipeline({20, 10, 5}, with_window(20));
    rig.classify.failures["t3"] = 1;
    Source source(50);
    source.where = where;
    source.throw_at = at;
    auto task = start_batch(rig.context, pipeline, source);
    Task<Result> other(rig.context.get_executor(), [&] { return pipeline.process_one(Query("other", "other")); });
    rig.run();
    CHECK(task.failed_with<std::out_of_range>());
    CHECK(rig.running() == 0);
    CHECK(idle(pipeline));
    CHECK(is_complete(other.value()));  // it belongs to another call
    if (where != Source::Throw::in_begin) {
        CHECK(source.made == at);
        CHECK(test::ids(rig.dead_letters.letters) == (at == 25 ? Strings{"q3"} : Strings{}));
    }
    const std::size_t made = source.made;
    rig.run();
    CHECK(source.made == made);
}

TEST_CASE("pipeline: the window bounds how many queries of a batch run at once", "[pipeline]") {
    const auto peak = [](std::ptrdiff_t window, std::size_t queries) {
        Rig<> rig;
        auto pipeline = rig.pipeline({100, 100, 100}, with_window(window));
        CHECK(pipeline.window() == window);
        const auto batch = make_queries(queries);
        auto task = start_batch(rig.context, pipeline, batch);
        int most = 0;
        while (test::step(rig.context)) {
            most = std::max(most, rig.running());
        }
        CHECK(task.value().size() == queries);
        return std::pair(most, test::now(rig.context));
    };
    CHECK(peak(1, 5) == std::pair(1, std::chrono::nanoseconds(5 * 700ms)));
    CHECK(peak(2, 6) == std::pair(2, std::chrono::nanoseconds(3 * 700ms)));
    CHECK(peak(std::numeric_limits<std::ptrdiff_t>::max(), 60) == std::pair(60, std::chrono::nanoseconds(700ms)));
}

TEST_CASE("pipeline: the default window is the sum of the limits", "[pipeline]") {
    Rig<> rig;
    CHECK(rig.pipeline({20, 10, 5}).window() == 35);
    constexpr auto most = std::numeric_limits<std::ptrdiff_t>::max();
    CHECK(rig.pipeline({most, 1, 1}).window() == most);
    CHECK(rig.pipeline({1, most, most}).window() == most);
    CHECK(rig.pipeline({1, 1, most - 2}).window() == most);

    auto pipeline = rig.pipeline({3, 2, 1});
    rig.generate.latency = 1h;
    Source source(100);
    auto task = start_batch(rig.context, pipeline, source);
    run_until(rig.context, 50min);
    CHECK(source.made == 6);
    rig.generate.latency = 1ms;
    rig.run();
    CHECK(task.value().size() == 100);
}

TEST_CASE("pipeline: a query in backoff leaves its place in the window, as far as max_in_backoff allows",
          "[pipeline]") {
    const bool leaves = GENERATE(false, true);
    Rig<> rig;
    rig.classify.failures["t0"] = 1;
    auto pipeline = rig.pipeline(
        {1, 1, 1}, {.classify = {.retry = retries(1, 10s)}, .window = 1, .max_in_backoff = leaves ? 1 : 0});
    Source source(2);
    auto task = start_batch(rig.context, pipeline, source);
    run_until(rig.context, 9s);
    CHECK(idle(pipeline));
    CHECK(source.made == (leaves ? 2 : 1));
    rig.run();
    CHECK(task.value().size() == 2);
}

TEST_CASE("pipeline: an awaitable sink is awaited before the result is returned", "[pipeline]") {
    test::Rig<SlowDeadLetters> rig;
    rig.extract.failures["t1"] = 1;
    auto pipeline = rig.pipeline({1, 1, 1});
    auto task = start_one(rig.context, pipeline, make_query(1));
    run_until(rig.context, 239ms);
    CHECK_FALSE(task.done());
    CHECK(idle(pipeline));  // no slot is held meanwhile
    run_until(rig.context, 240ms);
    REQUIRE(task.done());
    CHECK(is_partial(task.value(), 1));
    CHECK_FALSE(task.value().dead_letter_error);
    CHECK(rig.dead_letters.begun == 1);
    REQUIRE(rig.dead_letters.letters.size() == 1);
    CHECK(rig.dead_letters.letters[0].query.id == "q1");
    CHECK(rig.dead_letters.letters[0].reason.error.message() == "cannot extract t1");
}

namespace {

struct ThrowingSink {
    int calls = 0;
    void put(const Query&, const StageResult<>&) {
        ++calls;
        throw std::overflow_error("queue full");
    }
};

struct ThrowingAwaitableSink {
    int calls = 0;
    asio::awaitable<void> put(const Query&, const StageResult<>&) {
        ++calls;
        co_await test::sleep(5ms);
        throw std::overflow_error("queue full");
    }
};

struct SinkThatThrowsBeforeItsAwaitable {
    int calls = 0;
    asio::awaitable<void> put(const Query&, const StageResult<>&) {
        ++calls;
        throw std::overflow_error("queue full");
    }
};
struct SinkThatThrowsAnInt {
    int calls = 0;
    void put(const Query&, const StageResult<>&) {
        ++calls;
        throw 42;
    }
};

template <class Sink>
void check_throwing_sink(const std::string& type) {
    test::Rig<Sink> rig;
    rig.classify.failures["t0"] = 1;
    rig.generate.failures["t2"] = 1;
    auto pipeline = rig.pipeline({4, 4, 4});
    const auto queries = make_queries(4);
    auto task = start_batch(rig.context, pipeline, queries);
    rig.run();
    REQUIRE(task.succeeded());
    const Results& results = task.value();
    CHECK(is_partial(results[0], 0));
    CHECK(is_partial(results[2], 2));
    CHECK(results[0].stage_results.back().error.message() == "cannot classify t0");
    CHECK(results[2].stage_results.back().error.message() == "cannot generate t2");
    for (const std::size_t i : {0u, 2u}) {
        CHECK(results[i].dead_letter_error.type() == type);
        CHECK(results[i].dead_letter_error.exception());
    }
    CHECK(is_complete(results[1]));
    CHECK(is_complete(results[3]));
    CHECK(rig.dead_letters.calls == 2);
    CHECK(idle(pipeline));

    Task<Result> one(rig.context.get_executor(), [&] { return pipeline.process_one(Query("q", "t2")); });
    rig.generate.failures["t2"] = 1;
    rig.run();
    CHECK(is_partial(one.value(), 2));
    CHECK(one.value().dead_letter_error.type() == type);
}

}  // namespace

TEST_CASE("pipeline: a sink that throws does not replace the query's own error or affect other queries", "[pipeline]") {
    SECTION("plain") { check_throwing_sink<ThrowingSink>("std::overflow_error"); }
    SECTION("awaitable") { check_throwing_sink<ThrowingAwaitableSink>("std::overflow_error"); }
    SECTION("before its awaitable") { check_throwing_sink<SinkThatThrowsBeforeItsAwaitable>("std::overflow_error"); }
    SECTION("an int") { check_throwing_sink<SinkThatThrowsAnInt>("int"); }
}

TEST_CASE("pipeline: process_one, process_batch and process_stream share the limits", "[pipeline][stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({4, 3, 2});
    const auto batch = make_queries(20);
    auto task = start_batch(rig.context, pipeline, batch);
    std::deque<Task<Result>> ones;
    for (std::size_t i = 20; i != 30; ++i) {
        ones.push_back(start_one(rig.context, pipeline, make_query(i)));
    }
    int streamed = 0;
    Task<> consumer(rig.context.get_executor(), [&]() -> asio::awaitable<void> {
        auto stream = pipeline.process_stream(std::views::iota(std::size_t{30}, std::size_t{50}) |
                                              std::views::transform(make_query));
        while (auto item = co_await stream.next()) {
            streamed += is_complete(item->result);
        }
    });
    while (test::step(rig.context)) {
        REQUIRE(rig.classify.running <= 4);
        REQUIRE(rig.extract.running <= 3);
        REQUIRE(rig.generate.running <= 2);
    }
    CHECK(rig.classify.peak == 4);
    CHECK(rig.extract.peak == 3);
    CHECK(rig.generate.peak == 2);
    CHECK(test::now(rig.context) == 200ms + 25 * 500ms);
    CHECK(std::ranges::all_of(task.value(), is_complete));
    for (auto& one : ones) {
        CHECK(is_complete(one.value()));
    }
    CHECK(consumer.succeeded());
    CHECK(streamed == 20);
    CHECK(idle(pipeline));
}

namespace {

// Counts its instances.
struct Counted {
    static inline int alive = 0;
    static inline int most = 0;
    Counted() { most = std::max(most, ++alive); }
    Counted(const Counted&) : Counted() {}
    ~Counted() { --alive; }
    Counted& operator=(const Counted&) = default;
};

}  // namespace

TEST_CASE("pipeline: 100,000 lazy queries run in a bounded window", "[pipeline][stress]") {
    const bool suspends = GENERATE(false, true);
    asio::io_context context(1);
    test::DeadLetters dead_letters;
    int running = 0;
    int peak = 0;
    Counted::alive = Counted::most = 0;
    const auto classify = [&](const std::string&) -> asio::awaitable<std::unique_ptr<std::optional<Counted>>> {
        peak = std::max(peak, ++running);
        if (suspends) {
            co_await test::yield();
        }
        co_return std::make_unique<std::optional<Counted>>(std::in_place);
    };
    const auto extract = [](const std::string& text) -> asio::awaitable<std::size_t> { co_return text.size(); };
    const auto generate = [&](const std::unique_ptr<std::optional<Counted>>& intent, std::size_t,
                              const std::string&) -> asio::awaitable<int> {
        if (suspends) {
            co_await test::yield();
        }
        intent->reset();
        --running;
        co_return 1;
    };
    InferencePipeline pipeline(test::timed(context.get_executor()), classify, extract, generate, {20, 10, 5},
                               dead_letters, with_window(8));
    Source source(100'000);
    int pulled_ahead = 0;
    source.on_make = [&](std::size_t) { pulled_ahead = std::max(pulled_ahead, running + 1); };
    Task<std::size_t> task(context.get_executor(), [&]() -> asio::awaitable<std::size_t> {
        auto results = co_await pipeline.process_batch(source);
        co_return static_cast<std::size_t>(
            std::ranges::count(results, true, [](const auto& r) { return r.completed; }));
    });
    sluice::testing::run(context);
    CHECK(task.value() == 100'000);
    CHECK(peak <= 8);
    CHECK(pulled_ahead <= 8);
    CHECK(Counted::most <= 8);
    CHECK(Counted::alive == 0);
}

TEST_CASE("pipeline: the constructor rejects invalid arguments, naming the stage or option and the value",
          "[pipeline]") {
    Rig<> rig;
    const auto with_limits = [&](sluice::StageLimits limits) { return refusal_of([&] { rig.pipeline(limits); }); };
    CHECK(with_limits({0, 1, 1}) == "Stage 'classify': limit must be at least 1, got 0");
    CHECK(with_limits({1, -1, 1}) == "Stage 'extract': limit must be at least 1, got -1");
    CHECK(with_limits({1, 1, -5}) == "Stage 'generate': limit must be at least 1, got -5");
    CHECK(with_limits({1, 1, 1}) == "no error");

    const auto window = [&](std::ptrdiff_t n) { return refusal_of([&] { rig.pipeline({1, 1, 1}, with_window(n)); }); };
    CHECK(window(0) == "InferencePipeline: window must be at least 1, got 0");
    CHECK(window(-3) == "InferencePipeline: window must be at least 1, got -3");
    CHECK(window(1) == "no error");

    const auto timeouts = [&](auto member, std::chrono::nanoseconds timeout) {
        InferencePipelineOptions options;
        (options.*member).timeout = timeout;
        return refusal_of([&] { rig.pipeline({1, 1, 1}, options); });
    };
    CHECK(timeouts(&InferencePipelineOptions::classify, 0ns) == "Stage 'classify': timeout must be positive, got 0 ns");
    CHECK(timeouts(&InferencePipelineOptions::extract, -1ns) == "Stage 'extract': timeout must be positive, got -1 ns");
    CHECK(timeouts(&InferencePipelineOptions::generate, -9ns) ==
          "Stage 'generate': timeout must be positive, got -9 ns");

    using OfText = std::function<asio::awaitable<int>(const std::string&)>;
    using OfAll = asio::awaitable<int> (*)(int, int, const std::string&);
    const OfText good = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
    const OfAll all = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 1; };
    const auto functions = [&](OfText classify, OfText extract, OfAll generate) {
        return refusal_of([&] {
            InferencePipeline pipeline(test::timed(rig.context.get_executor()), classify, extract, generate, {1, 1, 1},
                                       rig.dead_letters);
        });
    };
    CHECK(functions({}, good, all) == "Stage 'classify': the model function must not be empty");
    CHECK(functions(good, {}, all) == "Stage 'extract': the model function must not be empty");
    CHECK(functions(good, good, nullptr) == "Stage 'generate': the model function must not be empty");
    CHECK(functions(good, good, all) == "no error");
}

TEST_CASE("pipeline: nothing begins until the operation is awaited", "[pipeline]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    Source source(3);
    {
        auto one = pipeline.process_one(make_query(0));
        auto batch = pipeline.process_batch(source);
    }
    rig.run();
    CHECK(rig.calls() == 0);
    CHECK(source.read == 0);
}

TEST_CASE("pipeline: with random latencies, failures and retries, limits and order hold and no query is lost",
          "[pipeline][stress]") {
    for (unsigned seed = 0; seed != 15; ++seed) {
        std::mt19937 random(seed);
        test::Rig<SlowDeadLetters> rig;
        const std::size_t n = random() % 120 + 1;
        for (int stage = 0; stage != 3; ++stage) {
            rig.model(stage).latency_of = [&](const std::string&) {
                return std::chrono::microseconds(random() % 9999);
            };
            for (std::size_t i = 0; i != n; ++i) {
                if (random() % 8 == 0) {
                    rig.model(stage).failures["t" + std::to_string(i)] = static_cast<int>(random() % 4);
                }
            }
        }
        const sluice::StageLimits limits{static_cast<int>(random() % 6) + 1, static_cast<int>(random() % 6) + 1,
                                         static_cast<int>(random() % 6) + 1};
        auto pipeline = rig.pipeline(limits, test::every_stage(StageOptions{.timeout = 8ms, .retry = retries(1, 3ms)}));
        const auto queries = make_queries(n);
        auto task = start_batch(rig.context, pipeline, queries);
        while (test::step(rig.context)) {
            REQUIRE(rig.classify.running <= limits.classify);
            REQUIRE(rig.extract.running <= limits.extract);
            REQUIRE(rig.generate.running <= limits.generate);
        }
        REQUIRE(task.succeeded());
        REQUIRE(task.value().size() == n);
        const Strings dead = test::ids(rig.dead_letters.letters);
        CHECK(test::all_different(dead));
        std::size_t completed = 0;
        for (std::size_t i = 0; i != n; ++i) {
            const Result& result = task.value()[i];
            CHECK(result.query.id == queries[i].id);
            CHECK(result.completed == is_complete(result));
            CHECK(result.completed == (std::ranges::count(dead, result.query.id.str()) == 0));
            completed += result.completed;
        }
        CHECK(completed + dead.size() == n);
        CHECK(idle(pipeline));
    }
}
