// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/testing/run.hpp>

#include "support/models.hpp"
#include "support/pipeline_runs.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <deque>
#include <exception>
#include <memory>
#include <optional>
#include <ranges>
#include <span>
#include <sstream>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::InferencePipeline;
using sluice::Query;
using sluice::StageResult;
using test::Endpoint;
using test::InferencePipelineOptions;
using test::is_complete;
using test::is_partial;
using test::make_queries;
using test::make_query;
using test::retries;
using test::Rig;
using test::SlowDeadLetters;
using test::StageOptions;
using test::start_one;
using test::Task;
using test::VirtualTimer;
using Results = Rig<>::Results;
using Strings = std::vector<std::string>;

TEST_CASE("pipeline: a batch may be any input range of queries", "[pipeline][typed]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({2, 2, 2});
    const auto check = [&](auto make, std::size_t n) {
        Task<Results> task(rig.context.get_executor(), [&] { return pipeline.process_batch(make()); });
        rig.run();
        REQUIRE(task.succeeded());
        CHECK(task.value().size() == n);
        CHECK(std::ranges::all_of(task.value(), is_complete));
    };
    auto queries = make_queries(20);
    const auto& constant = queries;
    std::deque<Query> others(queries.begin(), queries.end());
    std::istringstream words("t0 t1 t2 t3 t4");
    const auto named = [](const std::string& word) { return Query("q", word); };
    check([&] { return std::span(queries); }, 20);
    check([&] { return std::span(constant); }, 20);
    check([&] { return std::views::all(others); }, 20);
    check([&] { return std::move(others); }, 20);
    check([] { return std::views::iota(std::size_t{0}, std::size_t{30}) | std::views::transform(make_query); }, 30);
    check([&] { return queries | std::views::filter([](const Query& q) { return q.text != "t3"; }); }, 19);
    check([&] { return queries | std::views::reverse | std::views::take(3); }, 3);
    check([&] { return std::views::istream<std::string>(words) | std::views::transform(named); }, 5);
    check([&] { return std::views::single(make_query(0)); }, 1);
    for (const Query& query : queries) {
        CHECK_FALSE(query.text.empty());  // a view's queries are copied
    }
}

TEST_CASE("pipeline: a sink is anything with a suitable put", "[pipeline][typed]") {
    struct Overloaded {  // put returns something, and is const
        std::vector<std::string>* out;
        int put(const Query& query, const StageResult<>& reason) const {
            out->push_back(query.id.str() + " " + reason.stage.str());
            return 1;
        }
    };
    struct Wrong {
        void put(const Query&) {}
    };
    static_assert(sluice::DeadLetterSink<Overloaded> && sluice::DeadLetterSink<const Overloaded>);
    static_assert(sluice::DeadLetterSink<test::DeadLetters> && sluice::DeadLetterSink<SlowDeadLetters>);
    static_assert(!sluice::DeadLetterSink<Wrong> && !sluice::DeadLetterSink<int>);
    Rig<> rig;
    rig.extract.failures["t0"] = 1;
    Strings out;
    const Overloaded sink{&out};
    InferencePipeline pipeline(test::timed(rig.context.get_executor()), Endpoint{&rig.classify}, Endpoint{&rig.extract},
                               Endpoint{&rig.generate}, {1, 1, 1}, sink, InferencePipelineOptions{});
    auto task = start_one(rig.context, pipeline, make_query(0));
    rig.run();
    CHECK(is_partial(task.value(), 1));
    CHECK(out == Strings{"q0 extract"});
}

namespace {

enum class Intent { billing, technical };
struct Entities {
    std::unique_ptr<std::string> account;
    explicit Entities(std::string text) : account(std::make_unique<std::string>(std::move(text))) {}
};
struct Answer {
    Intent intent;
    std::string account;
    Answer(Intent i, std::string a) : intent(i), account(std::move(a)) {}
    Answer(Answer&&) = default;
    Answer& operator=(Answer&&) = default;
};

}  // namespace

TEST_CASE("pipeline: its types are deduced from the model functions, and may be move-only", "[pipeline][typed]") {
    asio::io_context context(1);
    test::DeadLetters dead_letters;
    const auto classify = [](const std::string& text) -> asio::awaitable<Intent> {
        co_return text.find("bill") != std::string::npos ? Intent::billing : Intent::technical;
    };
    const auto extract = [](std::string text) -> asio::awaitable<Entities> { co_return Entities(std::move(text)); };
    const auto generate = [](Intent intent, const Entities& entities, std::string_view) -> asio::awaitable<Answer> {
        co_return Answer(intent, *entities.account);
    };
    InferencePipeline pipeline(test::timed(context.get_executor()), classify, extract, generate, {1, 1, 1},
                               dead_letters, InferencePipelineOptions{});
    using Pipeline = decltype(pipeline);
    static_assert(std::same_as<Pipeline::Intent, Intent>);
    static_assert(std::same_as<Pipeline::Entities, Entities>);
    static_assert(std::same_as<Pipeline::Response, Answer>);
    static_assert(std::same_as<Pipeline::Executor, asio::any_io_executor>);
    static_assert(std::same_as<decltype(Pipeline::Result::entities), std::optional<Entities>>);
    std::vector<Query> queries;
    queries.emplace_back("a", "my bill");
    queries.emplace_back("b", "a crash");
    Task<std::vector<Pipeline::Result>> task(context.get_executor(), [&] { return pipeline.process_batch(queries); });
    sluice::testing::run(context);
    REQUIRE(task.succeeded());
    CHECK(task.value()[0].response->intent == Intent::billing);
    CHECK(task.value()[1].response->intent == Intent::technical);
    CHECK(*task.value()[1].entities->account == "a crash");
    CHECK(task.value()[1].response->account == "a crash");

    InferencePipeline plain(context.get_executor(), classify, extract, generate, {1, 1, 1}, dead_letters);
    static_assert(std::same_as<decltype(plain),
                               InferencePipeline<std::decay_t<decltype(classify)>, std::decay_t<decltype(extract)>,
                                                 std::decay_t<decltype(generate)>, test::DeadLetters>>);
}

TEST_CASE("pipeline: it uses the executor of the model functions' coroutines", "[pipeline][stream][typed]") {
    using Executor = asio::io_context::executor_type;
    asio::io_context context(1);
    struct Sink {
        int puts = 0;
        asio::awaitable<void, Executor> put(const Query&, const StageResult<>&) {
            ++puts;
            co_return;
        }
    } sink;
    const auto model = [](const std::string& text) -> asio::awaitable<std::string, Executor> {
        VirtualTimer timer(co_await asio::this_coro::executor, 1ms);
        co_await timer.async_wait(asio::deferred);
        if (text == "t1") {
            throw 1;
        }
        co_return text;
    };
    const auto generate = [](const auto&, const auto&,
                             const std::string& text) -> asio::awaitable<std::string, Executor> { co_return text; };
    InferencePipeline pipeline(test::timed(context.get_executor()), model, model, generate, {2, 2, 2}, sink,
                               test::every_stage(StageOptions{.timeout = 1s, .retry = retries(1)}));
    using Pipeline = decltype(pipeline);
    static_assert(std::same_as<Pipeline::Executor, Executor>);
    static_assert(std::same_as<decltype(pipeline.process_one(Query())), asio::awaitable<Pipeline::Result, Executor>>);
    const auto all = [&]() -> asio::awaitable<int, Executor> {
        int completed = 0;
        for (const auto& result : co_await pipeline.process_batch(make_queries(3))) {
            completed += result.completed;
        }
        const auto one = co_await pipeline.process_one(make_query(5));
        completed += one.completed;
        auto stream = pipeline.process_stream(make_queries(3));
        while (auto item = co_await stream.next()) {
            completed += item->result.completed;
        }
        co_await stream.close();
        co_return completed;
    };
    int completed = 0;
    asio::co_spawn(context.get_executor(), all(), [&](std::exception_ptr error, int n) {
        CHECK_FALSE(error);
        completed = n;
    });
    sluice::testing::run(context);
    CHECK(completed == 5);
    CHECK(sink.puts == 2);
}

TEST_CASE("pipeline: it runs on a strand", "[pipeline][typed]") {
    asio::io_context context;
    const auto strand = asio::make_strand(context.get_executor());
    Rig<> rig;
    test::DeadLetters dead_letters;
    InferencePipeline pipeline(test::timed(strand), Endpoint{&rig.classify}, Endpoint{&rig.extract},
                               Endpoint{&rig.generate}, {2, 2, 2}, dead_letters, InferencePipelineOptions{});
    Task<Results> task(strand, [&] { return pipeline.process_batch(make_queries(6)); });
    CHECK(sluice::testing::run(context) == 1700ms);
    CHECK(std::ranges::all_of(task.value(), is_complete));
}
