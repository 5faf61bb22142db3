// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/result_stream.hpp>
#include <sluice/testing/run.hpp>

#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/streams.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <iterator>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using test::drain;
using test::endless;
using test::first_numbers;
using test::idle;
using test::Indexes;
using test::Item;
using test::make_queries;
using test::next;
using test::Rig;
using test::run_until;
using test::sorted;
using test::Source;
using test::start_drain;
using test::Stream;
using test::Task;
using test::with_window;
using Strings = std::vector<std::string>;

TEST_CASE("stream: results come as they complete, with their index, and then every next() returns the end",
          "[stream]") {
    Rig<> rig;
    rig.classify.latency_of = [](const std::string& text) { return text == "t0" ? 30ms : text == "t1" ? 10ms : 20ms; };
    auto pipeline = rig.pipeline({3, 3, 3});
    const auto queries = make_queries(3);
    auto stream = pipeline.process_stream(queries);
    Indexes order;
    std::vector<std::chrono::nanoseconds> times;
    int ends = 0;
    Task<> consumer(rig.context.get_executor(), [&]() -> asio::awaitable<void> {
        while (auto item = co_await stream.next()) {
            order.push_back(item->index);
            times.push_back(test::now(rig.context));
            CHECK(item->result.completed);
            CHECK(item->result.query.id == queries[item->index].id);
            CHECK(item->result.stage_results.size() == 3);
            CHECK(item->result.response.has_value());
        }
        for (int i = 0; i != 3; ++i) {
            const auto item = co_await stream.next();
            ends += !item.has_value();
        }
    });
    rig.run();
    CHECK(consumer.succeeded());
    CHECK(order == Indexes{1, 2, 0});
    CHECK(times == std::vector<std::chrono::nanoseconds>{660ms, 670ms, 680ms});
    CHECK(ends == 3);
    CHECK(idle(pipeline));
}

TEST_CASE("stream: an empty range ends at once", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    auto stream = pipeline.process_stream(std::vector<sluice::Query>());
    for (int i = 0; i != 3; ++i) {
        auto task = next(rig, stream);
        CHECK(rig.run() == 0ms);
        REQUIRE(task.succeeded());
        CHECK_FALSE(task.value());
    }
    CHECK(rig.calls() == 0);
}

TEST_CASE("stream: a failed query is a result like any other, and a dead letter", "[stream]") {
    Rig<> rig;
    rig.extract.failures["t1"] = 1;
    auto pipeline = rig.pipeline();
    auto stream = pipeline.process_stream(make_queries(3));
    auto first = next(rig, stream);
    rig.run();
    REQUIRE(first.value());
    CHECK(first.value()->index == 1);
    CHECK_FALSE(first.value()->result.completed);
    CHECK(first.value()->result.stage_results.back().error.message() == "cannot extract t1");
    CHECK(test::ids(rig.dead_letters.letters) == Strings{"q1"});
    Indexes rest;
    auto consumer = start_drain(rig, stream, rest);
    rig.run();
    CHECK(sorted(rest) == Indexes{0, 2});
}

TEST_CASE("stream: work begins with the first next()", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    Source source(5);
    auto stream = pipeline.process_stream(source);
    rig.run();
    {
        auto unused = stream.next();
    }
    rig.run();
    CHECK(source.read == 0);
    CHECK(rig.calls() == 0);
    auto task = next(rig, stream);
    rig.run();
    CHECK(task.value());
    CHECK(source.made == 5);
}

TEST_CASE("stream: a slow consumer slows down the intake", "[stream]") {
    const std::ptrdiff_t window = GENERATE(1, 2, 5);
    Rig<> rig;
    auto pipeline = rig.pipeline({3, 3, 3}, with_window(window));
    Source source(endless);
    std::size_t consumed = 0;
    const auto bound = static_cast<std::size_t>(window);
    Task<> consumer(rig.context.get_executor(), [&]() -> asio::awaitable<void> {
        auto stream = pipeline.process_stream(source);
        while (consumed != 12) {
            const auto item = co_await stream.next();
            ++consumed;
            co_await test::sleep(10s);
        }
    });
    bool full = false;
    while (test::step(rig.context)) {
        REQUIRE(source.made <= consumed + 1 + bound);  // the one that is being consumed has left the window
        REQUIRE(source.read <= consumed + 1 + bound);
        full = full || source.made == consumed + bound;
    }
    CHECK(consumer.succeeded());
    CHECK(full);
    CHECK(idle(pipeline));
    CHECK(rig.running() == 0);
}

TEST_CASE("stream: results that wait for a consumer fill the window, and intake stops", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({9, 9, 9}, with_window(4));
    Source source(endless);
    auto stream = pipeline.process_stream(source);
    for (std::size_t taken = 1; taken != 6; ++taken) {
        auto task = next(rig, stream);
        rig.run_until_stalled();
        CHECK(task.value());
        CHECK(source.made == 4 + taken);
        CHECK(rig.generate.finished.size() == 4 + taken);
        CHECK(idle(pipeline));  // results hold no slot of a stage
    }
}

TEST_CASE("stream: when several results are taken at once, as many queries begin", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({9, 9, 9}, with_window(4));
    Source source(endless);
    auto stream = pipeline.process_stream(source);
    auto first = next(rig, stream);
    rig.run_until_stalled();
    REQUIRE(source.made == 5);
    REQUIRE(idle(pipeline));  // four results wait
    const auto full = test::now(rig.context);
    Task<> consumer(rig.context.get_executor(), [&]() -> asio::awaitable<void> {
        for (int i = 0; i != 3; ++i) {
            const auto item = co_await stream.next();
        }
    });
    run_until(rig.context, full + 20ms);
    CHECK(consumer.succeeded());
    CHECK(rig.classify.running == 3);
    rig.run_until_stalled();
    CHECK(source.made == 8);
    CHECK(test::now(rig.context) - full == 700ms);
}

TEST_CASE("stream: a stream closed before it began never begins", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    Source source(endless);
    auto stream = pipeline.process_stream(source);
    Task<> closing(rig.context.get_executor(), [&] { return stream.close(); });
    rig.run();
    CHECK(closing.succeeded());
    auto task = next(rig, stream);
    rig.run();
    REQUIRE(task.succeeded());
    CHECK_FALSE(task.value());
    CHECK(source.read == 0);
    CHECK(rig.calls() == 0);
}

TEST_CASE("stream: a stream closed at its end stays at its end", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    auto stream = pipeline.process_stream(make_queries(2));
    Indexes indexes;
    Task<> consumer(rig.context.get_executor(), [&]() -> asio::awaitable<void> {
        co_await drain(stream, indexes);
        co_await stream.close();
        co_await drain(stream, indexes);
    });
    rig.run();
    CHECK(consumer.succeeded());
    CHECK(sorted(indexes) == first_numbers(2));
}

TEST_CASE("stream: consumers that wait for a result when it is closed get the end", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    Source source(endless);
    auto stream = pipeline.process_stream(source);
    auto a = next(rig, stream);
    auto b = next(rig, stream);
    run_until(rig.context, 100ms);
    Task<> closing(rig.context.get_executor(), [&] { return stream.close(); });
    Task<> too(rig.context.get_executor(), [&] { return stream.close(); });
    rig.run();
    CHECK(closing.succeeded());
    CHECK(too.succeeded());
    REQUIRE(a.succeeded());
    REQUIRE(b.succeeded());
    CHECK_FALSE(a.value());
    CHECK_FALSE(b.value());
}

TEST_CASE("stream: with two consumers, each result goes to one of them and the end to both", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({4, 3, 1});  // so that results come one at a time
    auto stream = pipeline.process_stream(make_queries(20));
    Indexes a;
    Indexes b;
    auto first = start_drain(rig, stream, a);
    auto second = start_drain(rig, stream, b);
    rig.run();
    CHECK(first.succeeded());
    CHECK(second.succeeded());
    CHECK(a.size() == 10);
    std::ranges::copy(b, std::back_inserter(a));
    CHECK(sorted(a) == first_numbers(20));
}

TEST_CASE("stream: an exception of the range comes once, after the results of the queries before it", "[stream]") {
    const auto where = GENERATE(Source::Throw::in_increment, Source::Throw::in_dereference);
    const std::size_t at = GENERATE(std::size_t{1}, std::size_t{3}, std::size_t{10});
    Rig<> rig;
    auto pipeline = rig.pipeline({2, 2, 2}, with_window(4));
    Source source(20);
    source.where = where;
    source.throw_at = at;
    auto stream = pipeline.process_stream(source);
    Indexes indexes;
    auto consumer = start_drain(rig, stream, indexes);
    rig.run();
    CHECK(consumer.failed_with<std::out_of_range>());
    CHECK(sorted(indexes) == first_numbers(at));
    CHECK(rig.generate.finished.size() == at);  // they ran to their end
    for (int i = 0; i != 2; ++i) {
        auto task = next(rig, stream);
        rig.run();
        REQUIRE(task.succeeded());
        CHECK_FALSE(task.value());
    }
    CHECK(source.made == at);
    CHECK(idle(pipeline));
}

TEST_CASE("stream: if the range throws at its first query, one next() throws that", "[stream]") {
    const auto where = GENERATE(Source::Throw::in_begin, Source::Throw::in_dereference);
    Rig<> rig;
    auto pipeline = rig.pipeline();
    Source source(20);
    source.where = where;
    auto stream = pipeline.process_stream(source);
    auto a = next(rig, stream);
    auto b = next(rig, stream);
    rig.run();
    CHECK(a.failed_with<std::out_of_range>() != b.failed_with<std::out_of_range>());  // exactly one of them
    CHECK(a.succeeded() != b.succeeded());
    CHECK(rig.calls() == 0);
}

TEST_CASE("stream: closing a stream discards an exception of its range", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    Source source(20);
    source.where = Source::Throw::in_dereference;
    source.throw_at = 2;
    auto stream = pipeline.process_stream(source);
    auto first = next(rig, stream);
    run_until(rig.context, 100ms);
    Task<> closing(rig.context.get_executor(), [&] { return stream.close(); });
    rig.run();
    CHECK(closing.succeeded());
    REQUIRE(first.succeeded());
    CHECK_FALSE(first.value());
}

TEST_CASE("stream: a range that destroys its own stream is read no further", "[stream]") {
    const bool moves = GENERATE(false, true);
    Rig<> rig;
    auto pipeline = rig.pipeline();
    Source source(endless);
    std::optional<Stream> stream(pipeline.process_stream(source));
    source.on_make = [&](std::size_t index) {
        if (index == 3 && moves) {
            const auto moved = std::move(*stream);
        } else if (index == 3) {
            stream.reset();
        }
    };
    auto task = next(rig, *stream);
    rig.run();
    REQUIRE(task.succeeded());
    CHECK_FALSE(task.value());
    CHECK(source.made == 4);
    CHECK(rig.classify.finished.empty());
    CHECK(idle(pipeline));
}

TEST_CASE("stream: a stream destroyed before the first next() has not touched its range", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    Source source(endless);
    {
        auto stream = pipeline.process_stream(source);
    }
    rig.run();
    CHECK(source.read == 0);
    CHECK(rig.calls() == 0);
}

TEST_CASE("stream: a next() that outlives its stream returns the end", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    Source source(endless);
    std::optional<Stream> stream(pipeline.process_stream(source));
    Task<Item> task(rig.context.get_executor(),
                    [unstarted = stream->next()]() mutable { return std::move(unstarted); });
    stream.reset();
    rig.run();
    REQUIRE(task.succeeded());
    CHECK_FALSE(task.value());
    CHECK(source.read == 0);
}

TEST_CASE("stream: a stream can be moved, even while it works", "[stream]") {
    static_assert(std::is_nothrow_move_constructible_v<Stream> && std::is_nothrow_move_assignable_v<Stream>);
    static_assert(!std::copy_constructible<Stream>);
    Rig<> rig;
    auto pipeline = rig.pipeline({2, 2, 2});
    auto stream = pipeline.process_stream(make_queries(4));
    auto first = next(rig, stream);
    run_until(rig.context, 100ms);
    std::optional<Stream> moved(std::move(stream));
    rig.run();
    REQUIRE(first.value());
    Indexes indexes{first.value()->index};
    auto other = pipeline.process_stream(make_queries(0));
    other = std::move(*moved);
    moved.reset();
    auto consumer = start_drain(rig, other, indexes);
    rig.run();
    CHECK(sorted(indexes) == first_numbers(4));
}

TEST_CASE("stream: an lvalue range is copied from, and an rvalue range is moved in and moved from", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    std::vector<sluice::Query> queries;
    queries.emplace_back("q", std::string(200, 'x'));
    const char* const buffer = queries[0].text.data();
    auto copying = pipeline.process_stream(queries);
    auto copied = next(rig, copying);
    rig.run();
    CHECK(queries[0].text.size() == 200);
    CHECK(copied.value()->result.query.text.data() != buffer);
    auto moving = pipeline.process_stream(std::move(queries));
    queries.clear();
    auto moved = next(rig, moving);
    rig.run();
    CHECK(moved.value()->result.query.text.data() == buffer);
}

TEST_CASE("stream: each stream of a pipeline has a window of its own", "[stream]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({9, 9, 9}, with_window(2));
    Source one(endless);
    Source two(endless);
    auto a = pipeline.process_stream(one);
    auto b = pipeline.process_stream(two);
    auto first = next(rig, a);
    auto second = next(rig, b);
    run_until(rig.context, 10ms);
    CHECK(one.made == 2);
    CHECK(two.made == 2);
    CHECK(rig.classify.running == 4);
}

TEST_CASE("stream: 100,000 lazy queries stay within a window of their consumer", "[stream][stress]") {
    asio::io_context context(1);
    test::DeadLetters dead_letters;
    const auto model = [](const std::string& text) -> asio::awaitable<std::size_t> { co_return text.size(); };
    const auto generate = [](std::size_t, std::size_t, const std::string& text) -> asio::awaitable<std::string> {
        co_await test::yield();
        co_return text;
    };
    sluice::InferencePipeline pipeline(test::timed(context.get_executor()), model, model, generate, {20, 10, 5},
                                       dead_letters, with_window(8));
    Source source(100'000);
    std::size_t consumed = 0;
    std::size_t ahead = 0;
    source.on_make = [&](std::size_t index) { ahead = std::max(ahead, index + 1 - consumed); };
    auto stream = pipeline.process_stream(source);
    Task<> consumer(context.get_executor(), [&]() -> asio::awaitable<void> {
        while (auto item = co_await stream.next()) {
            ++consumed;
        }
    });
    sluice::testing::run(context);
    CHECK(consumer.succeeded());
    CHECK(consumed == 100'000);
    CHECK(ahead <= 8 + 1);  // one may be on its way to the consumer
}
