// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/result_stream.hpp>
#include <sluice/testing/run.hpp>

#include "support/models.hpp"
#include "support/task.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <deque>
#include <memory>
#include <optional>
#include <random>
#include <ranges>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using test::endless;
using test::Endpoint;
using test::idle;
using test::InferencePipelineOptions;
using test::make_queries;
using test::retries;
using test::run_until;
using test::SlowDeadLetters;
using test::Source;
using test::StageOptions;
using test::Task;
using test::with_window;
using Cancel = asio::cancellation_type;
using Rig = test::Rig<>;
using Stream = Rig::Pipeline::Stream;
using Item = std::optional<Stream::Item>;
using Strings = std::vector<std::string>;
using Indexes = std::vector<std::size_t>;

namespace {

Task<Item> next(Rig& rig, Stream& stream) {
    return Task<Item>(rig.context.get_executor(), [&stream] { return stream.next(); });
}

// Takes all that comes, and writes down where it stood in the input.
template <class AnyStream>
asio::awaitable<void> drain(AnyStream& stream, Indexes& indexes) {
    while (auto item = co_await stream.next()) {
        indexes.push_back(item->index);
    }
}

template <class R, class AnyStream>
Task<> start_drain(R& rig, AnyStream& stream, Indexes& indexes) {
    return Task<>(rig.context.get_executor(), [&stream, &indexes] { return drain(stream, indexes); });
}

Indexes up_to(std::size_t n) {
    Indexes indexes;
    for (std::size_t i = 0; i != n; ++i) {
        indexes.push_back(i);
    }
    return indexes;
}

Indexes sorted(Indexes indexes) {
    std::ranges::sort(indexes);
    return indexes;
}

}  // namespace

TEST_CASE("stream: results come as they complete, with their index, and then the end for ever", "[stream]") {
    Rig rig;
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
    Rig rig;
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
    Rig rig;
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
    Rig rig;
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

TEST_CASE("stream: a slow consumer slows intake", "[stream]") {
    const std::ptrdiff_t window = GENERATE(1, 2, 5);
    Rig rig;
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

TEST_CASE("stream: one whose context was destroyed has ended for whoever asks from elsewhere", "[stream][shutdown]") {
    auto rig = std::make_unique<Rig>();
    auto stream = rig->pipeline({1, 1, 1}).process_stream(test::make_queries(3));
    {
        auto task = next(*rig, stream);
        test::steps(rig->context, 3);
    }
    rig.reset();
    asio::io_context elsewhere;
    bool ended = false;
    const Task<> asker(elsewhere.get_executor(), [&]() -> asio::awaitable<void> {
        ended = !co_await stream.next();
        co_await stream.close();
    });
    sluice::testing::run(elsewhere);
    CHECK(asker.succeeded());
    CHECK(ended);
}

TEST_CASE("stream: results that nobody asks for fill the window, and no more is taken in", "[stream]") {
    Rig rig;
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

TEST_CASE("stream: as many queries begin as results are taken at once", "[stream]") {
    Rig rig;
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

TEST_CASE("stream: an endless range ends with the consumer that walks away", "[stream][cancellation]") {
    Rig rig;
    rig.classify.failures["t3"] = 1;
    auto pipeline = rig.pipeline({4, 3, 2});
    Source source(endless);
    int calls = 0;
    std::size_t made = 0;
    Task<> consumer(rig.context.get_executor(), [&]() -> asio::awaitable<void> {
        auto stream = pipeline.process_stream(source);
        for (int i = 0; i != 5; ++i) {
            co_await stream.next();
        }
        CHECK(rig.running() > 0);
        calls = rig.calls();
        made = source.made;
    });
    const auto other = Task<Rig::Result>(rig.context.get_executor(),
                                         [&] { return pipeline.process_one(sluice::Query("other", "other")); });
    rig.run();
    CHECK(consumer.succeeded());
    CHECK(source.made == made);
    CHECK(rig.calls() == calls);
    CHECK(rig.running() == 0);
    CHECK(idle(pipeline));
    CHECK(test::ids(rig.dead_letters.letters) == Strings{"q3"});
    CHECK(other.succeeded());  // of another call
}

TEST_CASE("stream: what a consumer that walks away has cancelled is no dead letter", "[stream][cancellation]") {
    Rig rig;
    rig.generate.clean_up = 30ms;
    auto pipeline = rig.pipeline({4, 3, 2});
    auto stream = std::make_unique<Stream>(pipeline.process_stream(make_queries(10)));
    auto task = next(rig, *stream);
    run_until(rig.context, 300ms);
    CHECK(rig.generate.running == 2);
    stream.reset();
    run_until(rig.context, 301ms);
    CHECK(pipeline.generate().semaphore().active() == 2);  // until they have cleaned up
    CHECK_FALSE(task.done());
    CHECK(rig.run() == 29ms);
    REQUIRE(task.succeeded());
    CHECK_FALSE(task.value());  // the end
    CHECK(rig.dead_letters.letters.empty());
    CHECK(rig.generate.calls() == 2);
    CHECK(idle(pipeline));
}

TEST_CASE("stream: a cancelled consumer takes its stream with it", "[stream][cancellation]") {
    const auto type = GENERATE(Cancel::terminal, Cancel::partial, Cancel::total);
    Rig rig;
    auto pipeline = rig.pipeline({4, 3, 2});
    Source source(endless);
    Task<> consumer(rig.context.get_executor(), [&]() -> asio::awaitable<void> {
        auto stream = pipeline.process_stream(source);
        Indexes indexes;
        co_await drain(stream, indexes);
    });
    run_until(rig.context, 3s);
    const std::size_t made = source.made;
    consumer.cancel(type);
    CHECK(rig.run() == 0ms);
    CHECK(consumer.aborted());
    CHECK(source.made == made);
    CHECK(idle(pipeline));
    CHECK(rig.running() == 0);
}

TEST_CASE("stream: close() waits until nothing runs, and drops what was not asked for", "[stream][cancellation]") {
    Rig rig;
    rig.generate.latency_of = [](const std::string& text) { return text == "t0" || text == "t1" ? 1ms : 1s; };
    rig.generate.clean_up = 30ms;
    auto pipeline = rig.pipeline({9, 9, 9}, with_window(4));
    Source source(endless);
    auto stream = pipeline.process_stream(source);
    auto first = next(rig, stream);
    run_until(rig.context, 500ms);
    REQUIRE(first.value());
    CHECK(rig.generate.finished == Strings{"t0", "t1"});
    CHECK(rig.generate.running == 3);
    const std::size_t made = source.made;

    Task<> closing(rig.context.get_executor(), [&] { return stream.close(); });
    run_until(rig.context, 529ms);
    CHECK_FALSE(closing.done());
    CHECK(rig.generate.running == 3);
    CHECK(rig.run() == 1ms);
    CHECK(closing.succeeded());
    CHECK(idle(pipeline));
    for (int i = 0; i != 2; ++i) {
        auto task = next(rig, stream);
        CHECK(rig.run() == 0ms);
        REQUIRE(task.succeeded());
        CHECK_FALSE(task.value());
    }
    CHECK(source.made == made);

    Task<> again(rig.context.get_executor(), [&] { return stream.close(); });
    CHECK(rig.run() == 0ms);
    CHECK(again.succeeded());
}

TEST_CASE("stream: closed before it began, it never begins", "[stream]") {
    Rig rig;
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

TEST_CASE("stream: closed at its end, it stays at its end", "[stream]") {
    Rig rig;
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
    CHECK(sorted(indexes) == up_to(2));
}

TEST_CASE("stream: those who wait for a result when it is closed get the end", "[stream]") {
    Rig rig;
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

TEST_CASE("stream: a cancelled close() has stopped the stream all the same", "[stream][cancellation]") {
    Rig rig;
    rig.classify.clean_up = 30ms;
    auto pipeline = rig.pipeline();
    Source source(endless);
    auto stream = pipeline.process_stream(source);
    auto task = next(rig, stream);
    run_until(rig.context, 10ms);
    Task<> closing(rig.context.get_executor(), [&] { return stream.close(); });
    run_until(rig.context, 20ms);
    closing.cancel();
    run_until(rig.context, 20ms);
    CHECK(closing.aborted());
    CHECK(rig.classify.running == 20);
    const int calls = rig.calls();
    CHECK(rig.run() == 20ms);
    CHECK(rig.calls() == calls);
    CHECK_FALSE(task.value());
    CHECK(idle(pipeline));
}

TEST_CASE("stream: a cancelled next() is that wait alone", "[stream][cancellation]") {
    const auto type = GENERATE(Cancel::terminal, Cancel::partial, Cancel::total);
    Rig rig;
    auto pipeline = rig.pipeline();
    auto stream = pipeline.process_stream(make_queries(3));
    auto first = next(rig, stream);
    run_until(rig.context, 300ms);
    first.cancel(type);
    run_until(rig.context, 300ms);
    CHECK(first.aborted());
    CHECK(rig.generate.running == 3);
    Indexes indexes;
    auto consumer = start_drain(rig, stream, indexes);
    CHECK(rig.run() == 400ms);
    CHECK(sorted(indexes) == up_to(3));
}

TEST_CASE("stream: next() cancelled at any step loses no result", "[stream][cancellation][stress]") {
    const bool another_waits = GENERATE(false, true);
    bool more = true;
    for (int n = 0; more; ++n) {
        Rig rig;
        rig.extract.failures["t1"] = 1;
        auto pipeline = rig.pipeline({2, 2, 1}, with_window(3));
        Source source(6);
        auto stream = pipeline.process_stream(source);
        Indexes indexes;
        auto impatient = start_drain(rig, stream, indexes);
        test::step(rig.context);
        Indexes patient_indexes;
        std::optional<Task<>> patient;
        if (another_waits) {
            patient = start_drain(rig, stream, patient_indexes);
        }
        more = test::steps(rig.context, n);
        impatient.cancel();
        rig.run_until_stalled();
        REQUIRE(impatient.done());
        CHECK((impatient.succeeded() || impatient.aborted()));
        auto rest = start_drain(rig, stream, patient_indexes);
        rig.run();
        CHECK(rest.succeeded());
        CHECK((!patient || patient->succeeded()));
        std::ranges::copy(patient_indexes, std::back_inserter(indexes));
        CHECK(sorted(indexes) == up_to(6));
        CHECK(idle(pipeline));
    }
}

TEST_CASE("stream: a wait that is cancelled as its result comes passes it on to who waits next",
          "[stream][cancellation][stress]") {
    bool more = true;
    for (int n = 0; more; ++n) {
        Rig rig;
        rig.classify.latency_of = [](const std::string& text) { return text == "t0" ? 50ms : 1h; };
        auto pipeline = rig.pipeline();
        auto stream = pipeline.process_stream(make_queries(2));
        auto first = next(rig, stream);
        auto second = next(rig, stream);
        test::step(rig.context);
        test::step(rig.context);
        more = test::steps(rig.context, n);
        first.cancel();
        run_until(rig.context, 1s);
        if (first.aborted() && test::now(rig.context) == 1s) {
            REQUIRE(second.succeeded());  // now, not with the next result
            CHECK(second.value()->index == 0);
        }
        rig.run();
        CHECK(first.done());
        CHECK(second.succeeded());
    }
}

TEST_CASE("stream: of two consumers each result goes to one, and the end to both", "[stream]") {
    Rig rig;
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
    CHECK(sorted(a) == up_to(20));
}

TEST_CASE("stream: what a range throws comes after the results of the queries before it, once", "[stream]") {
    const auto where = GENERATE(Source::Throw::in_increment, Source::Throw::in_dereference);
    const std::size_t at = GENERATE(std::size_t{1}, std::size_t{3}, std::size_t{10});
    Rig rig;
    auto pipeline = rig.pipeline({2, 2, 2}, with_window(4));
    Source source(20);
    source.where = where;
    source.throw_at = at;
    auto stream = pipeline.process_stream(source);
    Indexes indexes;
    auto consumer = start_drain(rig, stream, indexes);
    rig.run();
    CHECK(consumer.failed_with<std::out_of_range>());
    CHECK(sorted(indexes) == up_to(at));
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

TEST_CASE("stream: what a range throws at its first query is what next() throws", "[stream]") {
    const auto where = GENERATE(Source::Throw::in_begin, Source::Throw::in_dereference);
    Rig rig;
    auto pipeline = rig.pipeline();
    Source source(20);
    source.where = where;
    auto stream = pipeline.process_stream(source);
    auto a = next(rig, stream);
    auto b = next(rig, stream);
    rig.run();
    CHECK(a.failed_with<std::out_of_range>() != b.failed_with<std::out_of_range>());  // one of them
    CHECK(a.succeeded() != b.succeeded());
    CHECK(rig.calls() == 0);
}

TEST_CASE("stream: what a range threw is forgotten by a stream that is closed", "[stream]") {
    Rig rig;
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

TEST_CASE("stream: a range that closes or destroys its own stream gets no further", "[stream]") {
    const bool destroys = GENERATE(false, true);
    Rig rig;
    auto pipeline = rig.pipeline();
    Source source(endless);
    std::optional<Stream> stream(pipeline.process_stream(source));
    std::optional<Task<>> closing;
    source.on_make = [&](std::size_t index) {
        if (index == 3 && destroys) {
            stream.reset();
        } else if (index == 3) {
            auto closed = std::move(*stream);
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

TEST_CASE("stream: it keeps what it needs of its pipeline alive", "[stream][shutdown]") {
    const auto when = GENERATE(0ms, 100ms, 600ms);
    Rig rig;
    std::optional<Rig::Pipeline> pipeline(rig.pipeline({2, 2, 2}));
    auto stream = pipeline->process_stream(make_queries(5));
    Indexes indexes;
    auto consumer = start_drain(rig, stream, indexes);
    run_until(rig.context, when);
    pipeline.reset();
    rig.run();
    CHECK(consumer.succeeded());
    CHECK(sorted(indexes) == up_to(5));
}

TEST_CASE("stream: destroyed after its pipeline, its work is cancelled all the same", "[stream][shutdown]") {
    Rig rig;
    std::optional<Rig::Pipeline> pipeline(rig.pipeline({2, 2, 2}));
    Source source(endless);
    std::optional<Stream> stream(pipeline->process_stream(source));
    auto task = next(rig, *stream);
    run_until(rig.context, 100ms);
    pipeline.reset();
    stream.reset();
    const int calls = rig.calls();
    CHECK(rig.run() == 0ms);
    CHECK(rig.calls() == calls);
    CHECK(rig.running() == 0);
    CHECK_FALSE(task.value());
}

TEST_CASE("stream: destroyed before the first next(), it has touched nothing", "[stream]") {
    Rig rig;
    auto pipeline = rig.pipeline();
    Source source(endless);
    {
        auto stream = pipeline.process_stream(source);
    }
    rig.run();
    CHECK(source.read == 0);
    CHECK(rig.calls() == 0);
}

TEST_CASE("stream: a next() that outlives its stream gets the end", "[stream]") {
    Rig rig;
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

TEST_CASE("stream: a stream can be moved, also while it works", "[stream]") {
    static_assert(std::is_nothrow_move_constructible_v<Stream> && std::is_nothrow_move_assignable_v<Stream>);
    static_assert(!std::copy_constructible<Stream>);
    Rig rig;
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
    CHECK(sorted(indexes) == up_to(4));
}

TEST_CASE("stream: one that is assigned to stops what it was", "[stream][cancellation]") {
    Rig rig;
    auto pipeline = rig.pipeline({2, 2, 2});
    Source source(endless);
    auto stream = pipeline.process_stream(source);
    auto first = next(rig, stream);
    run_until(rig.context, 100ms);
    stream = pipeline.process_stream(make_queries(2));
    const int calls = rig.calls();
    CHECK(rig.run() == 0ms);
    CHECK(rig.calls() == calls);
    REQUIRE(first.succeeded());
    CHECK_FALSE(first.value());
    CHECK(idle(pipeline));
    Indexes indexes;
    auto consumer = start_drain(rig, stream, indexes);
    rig.run();
    CHECK(sorted(indexes) == up_to(2));
}

TEST_CASE("stream: a range given as an lvalue is copied from, one that is handed over is kept and moved from",
          "[stream]") {
    Rig rig;
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

TEST_CASE("stream: the window of the pipeline is the window of each of its streams", "[stream]") {
    Rig rig;
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

TEST_CASE("stream: a closed stream waits for a dead letter that is being put", "[stream][cancellation]") {
    test::Rig<SlowDeadLetters> rig;
    rig.classify.failures["t0"] = 1;
    auto pipeline = rig.pipeline();
    auto stream = pipeline.process_stream(make_queries(3));
    Indexes indexes;
    auto consumer = start_drain(rig, stream, indexes);
    run_until(rig.context, 60ms);
    CHECK(rig.dead_letters.begun == 1);
    Task<> closing(rig.context.get_executor(), [&] { return stream.close(); });
    CHECK(rig.run() == 30ms);
    CHECK(closing.succeeded());
    CHECK(consumer.succeeded());
    CHECK(indexes.empty());
    CHECK(test::ids(rig.dead_letters.letters) == Strings{"q0"});
}

namespace {

enum class Leave { close, destroy, cancel };

template <class Sink>
void leave_at_every_step(Leave how) {
    bool more = true;
    for (int n = 0; more; ++n) {
        test::Rig<Sink> rig;
        rig.classify.failures["t0"] = 9;
        rig.generate.failures["t2"] = 9;
        auto options = with_window(4);
        options.generate.retry = retries(1, 10ms);
        options.extract.timeout = 151ms;
        auto pipeline = rig.pipeline({2, 2, 1}, options);
        Source source(7);
        Indexes indexes;
        using AnyStream = typename test::Rig<Sink>::Pipeline::Stream;
        std::optional<AnyStream> stream(pipeline.process_stream(source));
        auto consumer = start_drain(rig, *stream, indexes);
        test::step(rig.context);
        more = test::steps(rig.context, n);
        const int calls = rig.calls();
        const std::size_t made = source.made;
        const bool was_done = consumer.done();
        std::optional<Task<>> closing;
        if (how == Leave::close) {
            closing.emplace(rig.context.get_executor(), [&] { return stream->close(); });
            while (!closing->done()) {
                REQUIRE(test::step(rig.context));
            }
            CHECK(closing->succeeded());
            CHECK(idle(pipeline));  // already
            CHECK(rig.running() == 0);
        } else {
            if (how == Leave::cancel) {
                consumer.cancel();
            }
            stream.reset();
        }
        rig.run();
        REQUIRE(consumer.done());
        CHECK((how == Leave::cancel ? consumer.succeeded() || consumer.aborted() : consumer.succeeded()));
        CHECK((!was_done || consumer.succeeded()));
        if (how != Leave::close) {  // close() has first to be reached
            CHECK(rig.calls() == calls);
            CHECK(source.made == made);
        }
        CHECK(idle(pipeline));
        CHECK(rig.running() == 0);
        const Strings dead = test::ids(rig.dead_letters.letters);
        CHECK(test::all_different(dead));
        CHECK(test::all_different(indexes));
        CHECK(test::all_different(rig.generate.finished));
        for (const std::string& text : rig.generate.finished) {
            CHECK(std::ranges::count(dead, "q" + text.substr(1)) == 0);
        }
        CHECK(indexes.size() <= rig.generate.finished.size() + dead.size());
        CHECK(rig.generate.finished.size() + dead.size() <= source.made);
        if constexpr (requires { rig.dead_letters.begun; }) {
            CHECK(dead.size() == static_cast<std::size_t>(rig.dead_letters.begun));
        }
    }
}

}  // namespace

TEST_CASE("stream: left at any step, it starts nothing new and gives every slot back",
          "[stream][cancellation][stress]") {
    const auto how = GENERATE(Leave::close, Leave::destroy, Leave::cancel);
    SECTION("plain sink") { leave_at_every_step<test::DeadLetters>(how); }
    SECTION("awaitable sink") { leave_at_every_step<SlowDeadLetters>(how); }
}

TEST_CASE("stream: the context may be destroyed at any step, before or after pipeline and stream",
          "[stream][shutdown][stress]") {
    const int order = GENERATE(0, 1, 2, 3);
    const int wanted = GENERATE(1, 9);  // by the consumer that then closes the stream
    bool more = true;
    for (int n = 0; more; ++n) {
        using R = test::Rig<SlowDeadLetters>;
        R rig;  // for its models; the context is another one
        rig.classify.failures["t0"] = 1;
        rig.extract.failures["t1"] = 9;
        rig.generate.failures["t2"] = 1;
        auto context = std::make_unique<asio::io_context>(1);
        InferencePipelineOptions options(StageOptions(retries(1, 10ms), 1s));
        options.window = 3;
        auto pipeline = std::make_unique<R::Pipeline>(context->get_executor(), Endpoint{&rig.classify},
                                                      Endpoint{&rig.extract}, Endpoint{&rig.generate},
                                                      sluice::StageLimits{2, 2, 1}, rig.dead_letters, options);
        Source source(6);
        auto stream = std::make_unique<R::Pipeline::Stream>(pipeline->process_stream(source));
        const auto consume = [&](int most) -> asio::awaitable<void> {
            for (Item item; stream && most != 0; --most) {
                item = co_await stream->next();
                if (!item) {
                    break;
                }
            }
            if (stream) {
                co_await stream->close();
            }
        };
        Task<> consumer(context->get_executor(), [&] { return consume(wanted); });
        Task<> second(context->get_executor(), [&] { return consume(9); });
        more = test::steps(*context, n);
        if (order == 0) {
            context.reset();
            CHECK(idle(*pipeline));
        } else if (order == 1) {
            pipeline.reset();
            context.reset();
        } else if (order == 2) {
            stream.reset();
            context.reset();
        } else {
            pipeline.reset();
            stream.reset();
            test::step(*context);
            context.reset();
        }
        CHECK(rig.running() == 0);
    }
}

TEST_CASE("stream: the context may be destroyed while it owns the stream", "[stream][shutdown][stress]") {
    bool more = true;
    for (int n = 0; more; ++n) {
        Rig rig;
        std::optional<asio::io_context> context(std::in_place, 1);
        Rig::Pipeline pipeline(context->get_executor(), Endpoint{&rig.classify}, Endpoint{&rig.extract},
                               Endpoint{&rig.generate}, {2, 2, 1}, rig.dead_letters, with_window(3));
        Task<> consumer(context->get_executor(), [&]() -> asio::awaitable<void> {
            auto stream = pipeline.process_stream(make_queries(6));
            Indexes indexes;
            co_await drain(stream, indexes);
        });
        more = test::steps(*context, n);
        context.reset();
        CHECK(rig.running() == 0);
        CHECK(idle(pipeline));
    }
}

TEST_CASE("stream: 100,000 lazy queries leave nothing behind as they pass", "[stream][stress]") {
    asio::io_context context(1);
    test::DeadLetters dead_letters;
    const auto model = [](const std::string& text) -> asio::awaitable<std::size_t> { co_return text.size(); };
    const auto generate = [](std::size_t, std::size_t, const std::string& text) -> asio::awaitable<std::string> {
        co_await test::yield();
        co_return text;
    };
    sluice::InferencePipeline pipeline(context.get_executor(), model, model, generate, {20, 10, 5}, dead_letters,
                                       with_window(8));
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

TEST_CASE("stream: consumers that come and go at random lose nothing", "[stream][cancellation][stress]") {
    for (unsigned seed = 0; seed != 20; ++seed) {
        std::mt19937 random(seed);
        Rig rig;
        for (int stage = 0; stage != 3; ++stage) {
            rig.model(stage).latency_of = [&](const std::string&) { return std::chrono::milliseconds(random() % 20); };
            rig.model(stage).failures["t" + std::to_string(random() % 60)] = 1;
        }
        auto pipeline = rig.pipeline({4, 3, 2});
        Source source(60);
        auto stream = pipeline.process_stream(source);
        Indexes indexes;
        std::deque<Task<>> consumers;
        for (int i = 0; i != 5; ++i) {
            consumers.push_back(start_drain(rig, stream, indexes));
        }
        test::steps(rig.context, 5);  // each has begun
        while (test::step(rig.context)) {
            if (random() % 10 == 0) {
                Task<>& consumer = consumers[random() % 5];
                if (!consumer.done()) {
                    consumer.cancel();
                }
            }
        }
        auto last = start_drain(rig, stream, indexes);
        rig.run();
        CHECK(last.succeeded());
        CHECK(sorted(indexes) == up_to(60));
        CHECK(idle(pipeline));
    }
}
