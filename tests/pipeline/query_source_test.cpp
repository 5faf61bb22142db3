// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/query_source.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/pipeline_runs.hpp"
#include "support/streams.hpp"
#include "support/task.hpp"

#include <sluice/pipeline/channel_source.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/query.hpp>
#include <sluice/sync/barrier.hpp>
#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/run.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/experimental/channel.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/system/error_code.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::Query;
using test::Indexes;
using test::Rig;
using test::Task;

// Produces `size` queries, one after each `delay`, and may throw instead of one.
struct SlowSource {
    std::size_t size;
    std::chrono::nanoseconds delay{};
    std::size_t throw_at = ~std::size_t{0};

    std::size_t asked = 0;
    int asking = 0;
    int most_asking = 0;
    std::size_t cancelled = 0;

    asio::awaitable<std::optional<Query>> next() { return produce(*this); }

private:
    static asio::awaitable<std::optional<Query>> produce(SlowSource& source) {
        const struct Inside {
            SlowSource& source;
            explicit Inside(SlowSource& entered) : source(entered) {
                source.most_asking = std::max(source.most_asking, ++source.asking);
            }
            ~Inside() { --source.asking; }
        } inside(source);
        const std::size_t index = source.asked++;
        if (source.delay.count() > 0 && co_await test::cancelled_within(source.delay)) {
            ++source.cancelled;
            throw boost::system::system_error(asio::error::operation_aborted);
        }
        if (index == source.throw_at) {
            throw std::out_of_range("no more queries");
        }
        if (index == source.size) {
            co_return std::nullopt;
        }
        co_return test::make_query(index);
    }
};

Task<Rig<>::Results> start_batch(Rig<>& rig, Rig<>::Pipeline& pipeline, SlowSource& source) {
    return Task<Rig<>::Results>(rig.context.get_executor(), [&] { return pipeline.process_batch(source); });
}

// One retry, after a backoff of 5 ms.
test::InferencePipelineOptions one_at_a_time() {
    auto options = test::every_stage({.retry = test::retries(1, 5ms)});
    options.window = 1;
    return options;
}

// A pipeline of the models of `rig` that runs on another context, that of the pipeline which feeds it.
Rig<>::Pipeline pipeline_on(asio::io_context& context, Rig<>& rig) {
    return Rig<>::Pipeline(test::timed(context.get_executor()), test::Endpoint{&rig.classify},
                           test::Endpoint{&rig.extract}, test::Endpoint{&rig.generate}, {1, 1, 1}, rig.dead_letters);
}

using Channel = asio::experimental::channel<void(boost::system::error_code, Query)>;

}  // namespace

TEST_CASE("source: a batch of one has the results in the order of the queries", "[source]") {
    const auto delay = GENERATE(0ms, 1ms, 70ms);
    Rig<> rig;
    auto pipeline = rig.pipeline({2, 2, 2});
    SlowSource source{20, delay};
    auto batch = start_batch(rig, pipeline, source);
    rig.run();
    REQUIRE(batch.value().size() == 20);
    for (std::size_t i = 0; i != 20; ++i) {
        CHECK(batch.value()[i].query.id == "q" + std::to_string(i));
        CHECK(test::is_complete(batch.value()[i]));
    }
    CHECK(source.asked == 21);
    CHECK(source.most_asking == 1);
}

TEST_CASE("source: it is asked only while there is room", "[source]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({9, 9, 9}, test::with_window(3));
    SlowSource source{20};
    auto batch = start_batch(rig, pipeline, source);
    while (test::step(rig.context)) {
        REQUIRE(source.asked <= rig.generate.finished.size() + 3);
        REQUIRE(rig.running() <= 3);
    }
    CHECK(batch.value().size() == 20);
}

TEST_CASE("source: a slow consumer of a stream slows it", "[source]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({9, 9, 9}, test::with_window(3));
    SlowSource source{20};
    auto stream = pipeline.process_stream(source);
    auto first = test::next(rig, stream);
    sluice::testing::run_until_stalled(rig.context);
    CHECK(first.value()->index == 0);
    CHECK(source.asked <= 4);
    Indexes rest;
    auto drained = test::start_drain(rig, stream, rest);
    rig.run();
    CHECK(rest.size() == 19);
}

TEST_CASE("source: one that is quiet keeps no place from a query that returns from its backoff", "[source]") {
    Rig<> rig;
    rig.classify.failures["t0"] = 1;
    auto pipeline = rig.pipeline({1, 1, 1}, one_at_a_time());
    SlowSource source{1, 1h};
    source.delay = 0ms;
    auto stream = pipeline.process_stream(source);
    auto first = test::next(rig, stream);
    test::run_until(rig.context, 40ms);
    source.delay = 1h;  // from the second query on
    rig.classify.latency = 1ms;
    test::run_until(rig.context, 30min);
    REQUIRE(first.done());
    CHECK(first.value()->result.completed);
    CHECK(source.asking == 1);
    rig.run();
}

TEST_CASE("source: a query that arrives when the window is full again waits for a place", "[source]") {
    Rig<> rig;
    rig.classify.failures["t0"] = 1;
    rig.classify.latency = 50ms;
    auto pipeline = rig.pipeline({9, 9, 9}, one_at_a_time());
    SlowSource source{2, 20ms};  // the second arrives at 70 + 20 ms, while the first is back since 75 ms
    auto batch = start_batch(rig, pipeline, source);
    while (test::step(rig.context)) {
        REQUIRE(rig.running() <= 1);
    }
    CHECK(rig.classify.begun == std::vector<std::string>{"t0", "t0", "t1"});
    CHECK(batch.value().size() == 2);
}

TEST_CASE("source: if it throws, a batch rethrows that after cancelling what runs", "[source]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({2, 2, 2});
    SlowSource source{20, 60ms, 3};
    auto batch = start_batch(rig, pipeline, source);
    rig.run();
    CHECK(batch.failed_with<std::out_of_range>());
    CHECK(source.asked == 4);
    CHECK(test::idle(pipeline));
}

namespace {

// Throws when it is asked for the second query.
struct FailsAtSecond {
    int asked = 0;

    asio::awaitable<std::optional<Query>> next() {
        if (++asked == 2) {
            throw std::range_error("no more");
        }
        co_return test::make_query(static_cast<std::size_t>(asked));
    }
};

}  // namespace

TEST_CASE("source: one that has thrown is not asked again, and a range is not read again", "[source]") {
    const int yields = GENERATE(range(0, 12));
    const bool is_range = GENERATE(false, true);
    // Its executor runs nothing inline, so that a worker's end and the end of its group are two steps.
    sluice::testing::InterleavingContext context([](std::size_t) { return std::size_t{0}; });
    test::DeadLetters sink;
    const auto model = [yields](const std::string&) -> asio::awaitable<int> {
        for (int i = 0; i != yields; ++i) {
            co_await test::yield();
        }
        co_return 1;
    };
    const auto second = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
    const auto last = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 1; };
    sluice::InferencePipeline pipeline(test::timed(context.get_executor()), model, second, last,
                                       sluice::StageLimits{3, 3, 3}, sink);
    FailsAtSecond source;
    int read = 0;
    auto range = std::views::iota(0, 9) | std::views::transform([&read](int i) {
                     if (++read == 2) {
                         throw std::range_error("no more");
                     }
                     return test::make_query(static_cast<std::size_t>(i));
                 });
    Task<std::vector<decltype(pipeline)::Result>> batch(context.get_executor(), [&] {
        return is_range ? pipeline.process_batch(range) : pipeline.process_batch(source);
    });
    context.run();
    CHECK(batch.failed_with<std::range_error>());
    CHECK((is_range ? read : source.asked) == 2);
}

TEST_CASE("source: if it throws, a stream rethrows that after the results of what was taken", "[source]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({2, 2, 2});
    SlowSource source{20, 1ms, 3};
    auto stream = pipeline.process_stream(source);
    Indexes indexes;
    auto drained = test::start_drain(rig, stream, indexes);
    rig.run();
    CHECK(drained.failed_with<std::out_of_range>());
    CHECK(test::sorted(indexes) == Indexes{0, 1, 2});
    CHECK(source.asked == 4);
}

TEST_CASE("source: it is cancelled together with the batch or stream, at every step", "[source]") {
    const bool streamed = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Rig<> rig;
        auto pipeline = rig.pipeline({2, 2, 2}, test::with_window(2));
        SlowSource source{6, 40ms};
        if (streamed) {
            auto stream = pipeline.process_stream(source);
            Indexes indexes;
            auto drained = test::start_drain(rig, stream, indexes);
            test::poll(rig.context);
            steps.take(rig.context);
            {
                const auto dropped = std::move(stream);
            }
            rig.run();
        } else {
            auto batch = start_batch(rig, pipeline, source);
            test::poll(rig.context);
            steps.take(rig.context);
            batch.cancel();
            rig.run();
            CHECK((batch.aborted() || batch.succeeded()));
        }
        CHECK(source.asking == 0);
        CHECK(test::idle(pipeline));
    });
}

TEST_CASE("source: the context may be destroyed at any step while it is asked", "[source][stress]") {
    const bool pipeline_first = GENERATE(false, true);
    const bool streamed = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Rig<> models;
        SlowSource source{6, 40ms};
        auto context = std::make_unique<asio::io_context>(1);
        auto pipeline = std::make_optional<Rig<>::Pipeline>(
            test::timed(context->get_executor()), test::Endpoint{&models.classify}, test::Endpoint{&models.extract},
            test::Endpoint{&models.generate}, sluice::StageLimits{2, 1, 1}, models.dead_letters,
            test::every_stage({.timeout = 90ms, .retry = test::retries(1, 10ms)}));
        models.classify.failures["t1"] = 1;
        std::optional<test::Stream> stream;
        std::optional<Task<>> drained;
        std::optional<Task<Rig<>::Results>> batch;
        Indexes indexes;
        if (streamed) {
            stream.emplace(pipeline->process_stream(source));
            drained.emplace(context->get_executor(), [&] { return test::drain(*stream, indexes); });
        } else {
            batch.emplace(context->get_executor(), [&] { return pipeline->process_batch(source); });
        }
        test::poll(*context);
        steps.take(*context);
        if (pipeline_first) {
            pipeline.reset();
        }
        context.reset();
        CHECK(source.asking == 0);
        CHECK(models.running() == 0);
    });
}

TEST_CASE("source: the stream of one pipeline feeds another, which may leave some out", "[source]") {
    Rig<> rig;
    rig.extract.failures["t3"] = 9;
    auto first = rig.pipeline({2, 2, 2});
    Rig<> other;
    auto second = pipeline_on(rig.context, other);
    const auto input = test::make_queries(8);
    const auto completed = [](sluice::StreamItem<Rig<>::Result>&& item) -> std::optional<Query> {
        if (!item.result.completed) {
            return std::nullopt;
        }
        return Query(item.result.query.id, *item.result.response);
    };
    auto stream = second.process_stream(first.process_stream(input), completed);
    std::vector<std::string> texts;
    Task<> task(rig.context.get_executor(), [&] {
        return [](auto& results, auto& into) -> asio::awaitable<void> {
            while (auto item = co_await results.next()) {
                CHECK(item->result.completed);
                into.push_back(item->result.query.text);
            }
        }(stream, texts);
    });
    rig.run();
    REQUIRE(task.succeeded());
    CHECK(texts.size() == 7);
    CHECK(std::ranges::all_of(texts, [](const std::string& text) { return text.starts_with("generate("); }));
    CHECK(rig.dead_letters.letters.size() == 1);
}

namespace {

// Takes 50 ms for each dead letter, which no cancellation shortens.
struct SlowSink {
    int begun = 0;
    int ended = 0;

    asio::awaitable<void> put(const Query&, const sluice::StageResult<>&) {
        ++begun;
        co_await test::sleep(50ms);
        ++ended;
    }
};

}  // namespace

TEST_CASE("source: one that is owned is closed and waited for, however the batch or stream ends", "[source]") {
    const auto way = GENERATE(as<std::string>(), "batch cancelled", "batch fails", "stream closed", "stream cancelled");
    CAPTURE(way);
    Rig<SlowSink> rig;
    rig.classify.failures["t0"] = 1;
    auto first = rig.pipeline({2, 2, 2});
    Rig<> other;
    auto second = pipeline_on(rig.context, other);
    const auto input = test::make_queries(8);
    const auto fails_after_one = [&, seen = 0](auto&& item) mutable -> Query {
        if (way == "batch fails" && ++seen == 2) {
            throw std::range_error("x");
        }
        return item.result.query;
    };
    std::optional<std::chrono::nanoseconds> ended;
    int unfinished = -1;
    Task<> task(rig.context.get_executor(), [&] {
        return [](auto& from, auto& to, auto& queries, auto projection, auto on_end, bool is_batch,
                  bool closes) -> asio::awaitable<void> {
            const struct AtEnd {
                decltype(on_end)& call;
                ~AtEnd() { call(); }
            } at_end{on_end};
            if (is_batch) {
                co_await to.process_batch(from.process_stream(queries), projection);
            } else {
                auto stream = to.process_stream(from.process_stream(queries), projection);
                if (closes) {
                    co_await stream.next();
                    co_await stream.close();
                } else {
                    while (co_await stream.next()) {
                    }
                }
            }
        }(
                                   first, second, input, fails_after_one,
                                   [&] {
                                       ended = test::now(rig.context);
                                       unfinished = rig.dead_letters.begun - rig.dead_letters.ended;
                                   },
                                   way.starts_with("batch"), way == "stream closed");
    });
    if (way.ends_with("cancelled")) {
        while (rig.dead_letters.begun == 0 && test::step(rig.context)) {
        }
        task.cancel();
        test::run_until(rig.context, test::now(rig.context) + 10ms);
        task.cancel();  // does not end the wait for what is owned
    }
    rig.run();
    CHECK(task.done());
    REQUIRE(ended);
    CHECK(rig.dead_letters.begun == 1);
    CHECK(rig.dead_letters.ended == 1);
    if (way != "stream cancelled") {  // there, only the wait for a result was cancelled, and the stream was destroyed
        CHECK(unfinished == 0);
    }
    CHECK(first.classify().endpoint().active() == 0);
}

namespace {

// Delivers two queries, and needs 50 ms to close.
struct SlowToClose {
    int delivered = 0;

    asio::awaitable<std::optional<Query>> next() {
        co_return delivered == 2 ? std::nullopt
                                 : std::optional(test::make_query(static_cast<std::size_t>(delivered++)));
    }
    asio::awaitable<void> close() { return test::sleep(50ms); }
};

}  // namespace

TEST_CASE("source: while one that is owned is being closed, its stream is read, closed or destroyed", "[source]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({2, 2, 2}, test::with_window(2));
    std::optional stream = pipeline.process_stream(SlowToClose());
    using Item = std::optional<sluice::StreamItem<Rig<>::Result>>;
    const auto begin = [&] { return Task<Item>(rig.context.get_executor(), [&] { return stream->next(); }); };
    auto first = begin();
    test::run_until(rig.context, 705ms);  // both queries have ended, and the source is being closed
    CHECK(first.value());
    SECTION("read") {
        auto second = begin();
        auto end = begin();
        CHECK(rig.run() == 45ms);
        CHECK(second.value());
        CHECK_FALSE(end.value());
    }
    SECTION("closed") {
        Task<> closed(rig.context.get_executor(), [&] { return stream->close(); });
        CHECK(rig.run() == 45ms);
        CHECK(closed.succeeded());
    }
    SECTION("destroyed") {
        stream.reset();
        CHECK(rig.run() == 45ms);
    }
}

TEST_CASE("source: a projection makes queries of the elements of a range too", "[source]") {
    Rig<> rig;
    auto pipeline = rig.pipeline();
    const std::vector<int> numbers{1, 2, 3, 4};
    const auto even = [](int number) -> std::optional<Query> {
        return number % 2 == 0 ? std::optional<Query>(Query(std::to_string(number), "t")) : std::nullopt;
    };
    Task<Rig<>::Results> batch(rig.context.get_executor(), [&] { return pipeline.process_batch(numbers, even); });
    rig.run();
    REQUIRE(batch.value().size() == 2);
    CHECK(batch.value()[0].query.id == "2");
    CHECK(batch.value()[1].query.id == "4");
}

TEST_CASE("source: a channel is one, and its closing is the end", "[source][channel]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({2, 2, 2});
    Channel channel(rig.context.get_executor(), 2);
    Task<Rig<>::Results> batch(rig.context.get_executor(),
                               [&] { return pipeline.process_batch(sluice::ChannelSource(channel)); });
    Task<> sender(rig.context.get_executor(), [&] {
        return [](Channel& to) -> asio::awaitable<void> {
            for (std::size_t i = 0; i != 10; ++i) {
                co_await to.async_send(boost::system::error_code(), test::make_query(i), asio::deferred);
            }
            to.close();
        }(channel);
    });
    rig.run();
    CHECK(sender.succeeded());
    REQUIRE(batch.value().size() == 10);
    CHECK(batch.value()[9].query.id == "q9");
}

TEST_CASE("source: an error that is sent to a channel ends the input, and a cancelled wait loses nothing",
          "[source][channel]") {
    Rig<> rig;
    Channel channel(rig.context.get_executor(), 2);
    sluice::ChannelSource source(channel);
    Task<std::optional<Query>> waiting(rig.context.get_executor(), [&] { return source.next(); });
    test::poll(rig.context);
    waiting.cancel();
    test::poll(rig.context);
    CHECK(waiting.done());
    CHECK_FALSE(waiting.succeeded());
    channel.try_send(boost::system::error_code(), test::make_query(1));
    Task<std::optional<Query>> received(rig.context.get_executor(), [&] { return source.next(); });
    test::poll(rig.context);
    CHECK(received.value()->id == "q1");
    channel.try_send(asio::error::eof, Query());
    Task<std::optional<Query>> failed(rig.context.get_executor(), [&] { return source.next(); });
    test::poll(rig.context);
    CHECK(failed.failed_with<boost::system::system_error>());
}
