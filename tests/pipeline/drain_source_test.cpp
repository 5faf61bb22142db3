// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/map.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <iterator>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

// Drains of pipelines that take their queries from the stream of another one.
namespace {

using namespace std::chrono_literals;
using sluice::Query;
using sluice::StageOptions;
using test::Model;
using test::Task;
using test::timed;
using test::VirtualTimer;
using Ids = std::vector<std::string>;

struct Entry {
    std::optional<std::string> first;
    std::optional<std::string> second;
};
struct Digest {
    std::optional<std::string> text;
};

using EntryStage = sluice::Stage<test::Endpoint, VirtualTimer>;

struct EntryRoute {
    EntryStage first;
    EntryStage second;

    asio::awaitable<void> operator()(sluice::Run<Entry>& run) const {
        co_await run.step(&Entry::first, first, run.query().text);
        co_await run.step(&Entry::second, second, run.query().text);
    }
};
struct DigestRoute {
    EntryStage stage;

    asio::awaitable<void> operator()(sluice::Run<Digest>& run) const {
        co_await run.step(&Digest::text, stage, run.query().text);
    }
};

using EntryPipeline = sluice::Pipeline<EntryRoute, test::DeadLetters, VirtualTimer>;
using DigestPipeline = sluice::Pipeline<DigestRoute, test::DeadLetters, VirtualTimer>;
using EntryResult = EntryPipeline::Result;
using DigestResult = DigestPipeline::Result;
using EntryReport = sluice::DrainReport<Entry>;
using DigestReport = sluice::DrainReport<Digest>;

// What the first pipeline has completed is a query of the second; its dead letters are left out.
std::optional<Query> to_query(sluice::StreamItem<EntryResult>&& item) {
    if (!item.result.completed) {
        return std::nullopt;
    }
    return Query(item.result.query.id, *item.result.record.second);
}

Ids numbered(std::size_t first, std::size_t end) {
    Ids ids;
    for (; first != end; ++first) {
        ids.push_back("q" + std::to_string(first));
    }
    return ids;
}

Ids sorted(Ids ids) {
    std::ranges::sort(ids);
    return ids;
}

template <class Report>
Ids ids_of(const Report& report) {
    Ids ids;
    for (const auto& checkpoint : report.checkpoints) {
        ids.push_back(checkpoint.query.id.str());
    }
    return sorted(std::move(ids));
}

bool is(const DigestReport& report, std::size_t completed, std::size_t dead, std::size_t cancelled,
        std::size_t unfinished) {
    return report.completed == completed && report.dead == dead && report.cancelled == cancelled &&
           report.unfinished == unfinished;
}

// Keeps the ids of the queries that a stream delivers, until it ends.
template <class Stream>
asio::awaitable<void> take_all(Stream& stream, Ids& ids) {
    while (auto item = co_await stream.next()) {
        ids.push_back(item->result.query.id.str());
    }
}

// Two pipelines: stages of 10 ms and 20 ms, then one of 25 ms. The context is destroyed first.
struct Chain {
    Model first{"first", 10ms};
    Model second{"second", 20ms};
    Model digest{"digest", 25ms};
    test::DeadLetters sink;
    test::DeadLetters digest_sink;
    Ids delivered;  // and completed
    Ids left;       // unfinished in the results of a batch
    asio::io_context context{1};
    EntryPipeline notes;
    DigestPipeline digests;

    explicit Chain(std::ptrdiff_t window = 2, const StageOptions& options = {})
        : notes(timed(context.get_executor()),
                EntryRoute{EntryStage(timed(context.get_executor()), "first", 9, test::Endpoint{&first}, options),
                           EntryStage(timed(context.get_executor()), "second", 9, test::Endpoint{&second}, options)},
                sink, window),
          digests(timed(context.get_executor()),
                  DigestRoute{EntryStage(timed(context.get_executor()), "digest", 9, test::Endpoint{&digest})},
                  digest_sink, window) {}

    template <class T, class Function>
    Task<T> start(Function function) {
        return Task<T>(context.get_executor(), std::move(function));
    }

    // Consumes the stream of the second pipeline, or awaits its batch.
    Task<> consume(bool streams, std::size_t queries = 6) {
        return start<void>(
            [this, streams, queries] { return streams ? stream(*this, queries) : batch(*this, queries); });
    }
    static asio::awaitable<void> stream(Chain& chain, std::size_t queries) {
        auto results = chain.digests.process_stream(chain.notes.process_stream(test::make_queries(queries)), to_query);
        while (auto item = co_await results.next()) {
            CHECK(item->result.completed);
            chain.delivered.push_back(item->result.query.id.str());
        }
    }
    static asio::awaitable<void> batch(Chain& chain, std::size_t queries) {
        auto notes = chain.notes.process_stream(test::make_queries(queries));
        for (const auto& result : co_await chain.digests.process_batch(std::move(notes), to_query)) {
            CHECK(result.completed + result.unfinished == 1);
            (result.completed ? chain.delivered : chain.left).push_back(result.query.id.str());
        }
    }

    Task<EntryReport> drain_notes(std::chrono::nanoseconds grace) {
        return start<EntryReport>([this, grace] { return notes.drain(grace); });
    }
    Task<DigestReport> drain_digests(std::chrono::nanoseconds grace) {
        return start<DigestReport>([this, grace] { return digests.drain(grace); });
    }
    std::chrono::nanoseconds run() { return sluice::testing::run(context); }

    // The queries that have left the first pipeline for the second, and have come out of that in some way.
    Ids handed_over(const DigestReport& report) {
        Ids ids = ids_of(report);
        ids.insert(ids.end(), delivered.begin(), delivered.end());
        ids.insert(ids.end(), left.begin(), left.end());
        return sorted(std::move(ids));
    }

    // All that has ended, and what is left in the reports.
    Ids all(const DigestReport& of_digests, const EntryReport& of_notes) {
        Ids ids = handed_over(of_digests);
        std::ranges::copy(ids_of(of_notes), std::back_inserter(ids));
        for (const auto& letter : sink.letters) {
            ids.push_back(letter.query.id.str());
        }
        return sorted(std::move(ids));
    }
};

}  // namespace

TEST_CASE("drain: the stream that a pipeline owns hands over what has ended, and what ends within the grace",
          "[drain][source]") {
    const bool streams = GENERATE(false, true);
    Chain chain;
    auto consumer = chain.consume(streams);
    test::run_until(chain.context, 35ms);  // q0 and q1 are digested; q2 and q3 are in the first pipeline
    auto report = chain.drain_digests(1s);
    CHECK(chain.run() == 25ms);
    CHECK(consumer.succeeded());
    CHECK(chain.delivered == numbered(0, 2));
    CHECK(is(report.value(), 2, 0, 0, 2));
    CHECK(chain.handed_over(report.value()) == numbered(0, 4));
    CHECK(chain.first.calls() == 4);
    if (streams) {
        REQUIRE(report.value().checkpoints.size() == 2);
        CHECK(report.value().checkpoints[0].query.text == "second(t2)");
    }
    auto of_notes = chain.drain_notes(0ms);
    chain.run();
    CHECK(ids_of(of_notes.value()) == numbered(4, 6));
}

TEST_CASE("drain: the stream that a pipeline owns is cut short at the end of the grace, for the report of its pipeline",
          "[drain][source]") {
    const bool streams = GENERATE(false, true);
    Chain chain;
    auto consumer = chain.consume(streams);
    test::run_until(chain.context, 45ms);
    auto report = chain.drain_digests(5ms);
    CHECK(chain.run() == 5ms);
    CHECK(consumer.succeeded());
    CHECK(is(report.value(), 0, 0, 0, 2));
    CHECK(chain.handed_over(report.value()) == numbered(0, 2));
    auto of_notes = chain.drain_notes(0ms);
    chain.run();
    REQUIRE(ids_of(of_notes.value()) == numbered(2, 6));
    CHECK(of_notes.value().checkpoints[0].record.first == "first(t2)");
}

TEST_CASE("drain: at every step, nothing is lost of a stream that a pipeline owns", "[drain][source][stress]") {
    const auto grace = GENERATE(0ms, 15ms, 1000ms);
    const bool streams = GENERATE(false, true);
    const bool both = GENERATE(false, true);  // are drained at the same time
    test::for_every_step([&](test::Steps& steps) {
        Chain chain(2, StageOptions{.retry = test::retries(1, 12ms)});
        chain.first.failures["t1"] = 2;
        chain.second.failures["t3"] = 1;
        auto consumer = chain.consume(streams);
        test::poll(chain.context);
        steps.take(chain.context);
        std::optional<Task<EntryReport>> of_notes;
        if (both) {
            of_notes.emplace(chain.drain_notes(grace));
        }
        auto of_digests = chain.drain_digests(grace);
        chain.run();
        if (!both) {
            of_notes.emplace(chain.drain_notes(grace));
            CHECK(chain.run() == 0ms);
        }
        CHECK(consumer.succeeded());
        CHECK(chain.all(of_digests.value(), of_notes->value()) == numbered(0, 6));
        CHECK(chain.handed_over(of_digests.value()).size() == chain.second.finished.size());
        CHECK(chain.first.running + chain.second.running + chain.digest.running == 0);
    });
}

TEST_CASE("drain: nothing is lost of a stream that a pipeline owns, if its own pipeline is drained before",
          "[drain][source]") {
    const bool streams = GENERATE(false, true);
    Chain chain;
    auto consumer = chain.consume(streams);
    test::run_until(chain.context, 35ms);
    auto of_notes = chain.drain_notes(1s);
    CHECK(chain.run() == 50ms);  // the second pipeline goes on until the stream has ended
    CHECK(consumer.succeeded());
    CHECK(chain.delivered == numbered(0, 4));
    CHECK(ids_of(of_notes.value()) == numbered(4, 6));
    auto of_digests = chain.drain_digests(1s);
    CHECK(chain.run() == 0ms);
    CHECK(is(of_digests.value(), 0, 0, 0, 0));
    CHECK(of_digests.value().checkpoints.empty());
}

TEST_CASE("drain: a stream that was passed by reference goes on for somebody else", "[drain][source]") {
    Chain chain;
    auto notes = chain.notes.process_stream(test::make_queries(6));
    auto digests = chain.digests.process_stream(notes, to_query);
    auto first = chain.start<std::optional<sluice::StreamItem<DigestResult>>>([&] { return digests.next(); });
    test::run_until(chain.context, 35ms);
    auto report = chain.drain_digests(1s);
    CHECK(sluice::testing::run_until_stalled(chain.context) == 25ms);
    CHECK(is(report.value(), 2, 0, 0, 0));
    CHECK(first.value()->result.completed);
    Ids rest;
    auto others = chain.start<void>([&] { return take_all(notes, rest); });
    chain.run();
    CHECK(others.succeeded());
    CHECK(sorted(rest) == numbered(2, 6));
}

TEST_CASE("drain: a second one with a shorter grace also shortens that of a stream that the pipeline owns",
          "[drain][source]") {
    Chain chain;
    chain.second.latency = 1h;
    auto consumer = chain.consume(true);
    test::run_until(chain.context, 35ms);
    auto first = chain.drain_digests(2h);
    test::poll(chain.context);
    auto second = chain.drain_digests(10ms);
    CHECK(chain.run() == 10ms);
    CHECK(is(first.value(), 0, 0, 0, 0));
    CHECK(second.succeeded());
    auto of_notes = chain.drain_notes(0ms);
    chain.run();
    REQUIRE(ids_of(of_notes.value()) == numbered(0, 6));
    CHECK(of_notes.value().checkpoints[0].record.first == "first(t0)");
}

TEST_CASE("drain: a backoff in a stream that the pipeline owns gives up if it would outlast the grace",
          "[drain][source]") {
    Chain chain(2, StageOptions{.retry = test::retries(1, 1h)});
    chain.second.failures = {{"t0", 1}, {"t1", 1}};
    auto consumer = chain.consume(true, 2);
    test::run_until(chain.context, 35ms);
    auto report = chain.drain_digests(1min);
    CHECK(chain.run() == 0ms);
    CHECK(is(report.value(), 0, 0, 0, 0));
    auto of_notes = chain.drain_notes(0ms);
    chain.run();
    CHECK(ids_of(of_notes.value()) == numbered(0, 2));
}

TEST_CASE(
    "drain: a stream that a pipeline owns has the same grace, whichever of the two pipelines read its clock before",
    "[drain][source]") {
    const bool first_read = GENERATE(false, true);
    const bool in_grace = GENERATE(false, true);
    Chain chain(2, StageOptions{.retry = test::retries(1, in_grace ? 10s : 1h)});
    const auto executor = timed(chain.context.get_executor());
    DigestPipeline pipeline(executor,
                            DigestRoute{EntryStage(executor, "digest", 9, test::Endpoint{&chain.digest},
                                                   StageOptions{.retry = test::retries(1, 1s)})},
                            chain.digest_sink, 2);
    chain.first.failures = {{"early", 1}};
    chain.digest.failures = {{"early", 1}};
    auto note = chain.start<EntryResult>([&] { return chain.notes.process_one(Query("early", "early")); });
    if (!first_read) {
        test::run_until(chain.context, 2h);
    }
    auto digest = chain.start<DigestResult>([&] { return pipeline.process_one(Query("early", "early")); });
    test::run_until(chain.context, 5h);
    CHECK((note.value().completed && digest.value().completed));
    chain.first.failures = {{"t0", 1}};
    auto stream = pipeline.process_stream(chain.notes.process_stream(test::make_queries(1)), to_query);
    auto consumer = chain.start<void>([&] { return take_all(stream, chain.delivered); });
    test::run_until(chain.context, 5h + 15ms);  // q0 is in a backoff
    auto report = chain.start<DigestReport>([&] { return pipeline.drain(1min); });
    CHECK(chain.run() == (in_grace ? 10s + 25ms : 0ms));
    CHECK(report.value().unfinished == (in_grace ? 1 : 0));
    auto of_notes = chain.drain_notes(0ms);
    chain.run();
    CHECK(ids_of(of_notes.value()) == numbered(0, in_grace ? 0 : 1));
}

TEST_CASE(
    "drain: of a pipeline whose stream is closed or destroyed or whose batch is cancelled meanwhile, nothing is "
    "lost of a stream that it owns",
    "[drain][source][cancellation][stress]") {
    enum class Leaves { closes, destroys, cancels };
    const Leaves leaves = GENERATE(Leaves::closes, Leaves::destroys, Leaves::cancels);
    test::for_every_step([&](test::Steps& steps) {
        Chain chain;
        chain.second.latency_of = [](const std::string& text) { return text < "t2" ? 20ms : 200ms; };
        chain.digest.clean_up = 5ms;
        std::optional<DigestPipeline::Stream> stream;
        std::optional<Task<>> consumer;
        std::optional<Task<std::optional<sluice::StreamItem<DigestResult>>>> item;
        if (leaves == Leaves::cancels) {
            consumer.emplace(chain.consume(false));
        } else {
            stream.emplace(chain.digests.process_stream(chain.notes.process_stream(test::make_queries(6)), to_query));
            item.emplace(chain.start<std::optional<sluice::StreamItem<DigestResult>>>([&] { return stream->next(); }));
        }
        test::run_until(chain.context, 35ms);
        auto report = chain.drain_digests(1h);
        test::step(chain.context);
        steps.take(chain.context);
        const auto before = test::now(chain.context);
        std::optional<Task<>> closed;
        if (leaves == Leaves::closes) {
            closed.emplace(chain.start<void>([&] { return stream->close(); }));
        } else if (leaves == Leaves::destroys) {
            stream.reset();
        } else {
            consumer->cancel();
        }
        sluice::testing::run(chain.context);
        CHECK(test::now(chain.context) <= before + 5ms);
        REQUIRE(report.succeeded());
        CHECK((!closed || closed->succeeded()));
        CHECK((!consumer || consumer->aborted() || consumer->succeeded()));
        auto of_notes = chain.drain_notes(0ms);
        chain.run();
        const Ids handed_over = ids_of(report.value());
        CHECK(handed_over.size() == report.value().unfinished - chain.left.size());
        CHECK(chain.digest.finished.size() + report.value().cancelled + handed_over.size() + chain.left.size() ==
              chain.second.finished.size());
        CHECK(chain.second.finished.size() + of_notes.value().checkpoints.size() == 6);
    });
}

TEST_CASE("drain: a stream that has not begun hands over what a stream that it owns has in work", "[drain][source]") {
    Chain chain;
    auto notes = chain.notes.process_stream(test::make_queries(6));
    auto peeked = chain.start<std::optional<sluice::StreamItem<EntryResult>>>([&] { return notes.next(); });
    test::run_until(chain.context, 35ms);  // q0 was taken, q1 was not, and q2 runs
    CHECK(peeked.value()->result.completed);
    auto digests = chain.digests.process_stream(std::move(notes), to_query);
    const bool whole_pipeline = GENERATE(false, true);
    auto report =
        chain.start<DigestReport>([&] { return whole_pipeline ? chain.digests.drain(1s) : digests.drain(1s); });
    CHECK(chain.run() == 25ms);
    CHECK(is(report.value(), 0, 0, 0, 2));
    CHECK(ids_of(report.value()) == numbered(1, 3));
    auto of_notes = chain.drain_notes(0ms);
    chain.run();
    CHECK(ids_of(of_notes.value()) == numbered(3, 6));
}

TEST_CASE("drain: of a stream that has not begun, the stream that it owns does not begin", "[drain][source]") {
    Chain chain;
    auto digests = chain.digests.process_stream(chain.notes.process_stream(test::make_queries(6)), to_query);
    auto report = chain.drain_digests(1s);
    CHECK(chain.run() == 0ms);
    CHECK(is(report.value(), 0, 0, 0, 0));
    auto of_notes = chain.drain_notes(0ms);
    chain.run();
    CHECK(ids_of(of_notes.value()) == numbered(0, 6));
    CHECK(chain.first.calls() == 0);
}

TEST_CASE("drain: a projection that throws while a stream hands over its work ends that", "[drain][source]") {
    Chain chain;
    const auto fails_at_three = [](sluice::StreamItem<EntryResult>&& item) {
        if (item.result.query.id == "q3") {
            throw std::range_error("no such note");
        }
        return to_query(std::move(item));
    };
    auto digests = chain.digests.process_stream(chain.notes.process_stream(test::make_queries(6)), fails_at_three);
    auto consumer = chain.start<void>([&] {
        return [](auto& from) -> asio::awaitable<void> {
            while (co_await from.next()) {
            }
        }(digests);
    });
    test::run_until(chain.context, 35ms);
    auto report = chain.drain_digests(1s);
    chain.run();
    CHECK(is(report.value(), 2, 0, 0, 1));
    CHECK(consumer.failed_with<std::range_error>());
}

TEST_CASE("drain: at every step, nothing is lost of a chain of three pipelines", "[drain][source][stress]") {
    const auto grace = GENERATE(0ms, 15ms, 1000ms);
    test::for_every_step([&](test::Steps& steps) {
        Chain chain;
        const auto again = [](sluice::StreamItem<DigestResult>&& item) {
            return Query(item.result.query.id, *item.result.record.text);
        };
        auto pipeline = DigestPipeline(
            timed(chain.context.get_executor()),
            DigestRoute{EntryStage(timed(chain.context.get_executor()), "digest", 9, test::Endpoint{&chain.digest})},
            chain.digest_sink, 2);
        auto stream = pipeline.process_stream(
            chain.digests.process_stream(chain.notes.process_stream(test::make_queries(6)), to_query), again);
        auto consumer = chain.start<void>([&] { return take_all(stream, chain.delivered); });
        steps.take(chain.context);
        auto of_last = chain.start<DigestReport>([&] { return pipeline.drain(grace); });
        chain.run();
        auto of_digests = chain.drain_digests(0ms);
        auto of_notes = chain.drain_notes(0ms);
        CHECK(chain.run() == 0ms);
        CHECK(consumer.succeeded());
        Ids all = chain.all(of_digests.value(), of_notes.value());
        std::ranges::copy(ids_of(of_last.value()), std::back_inserter(all));
        CHECK(sorted(std::move(all)) == numbered(0, 6));
    });
}

TEST_CASE("drain: of what cannot be drained, a stream that a pipeline owns hands over what ends within the grace",
          "[drain][source][stress]") {
    const auto grace = GENERATE(15ms, 1000ms);
    test::for_every_step([&](test::Steps& steps) {
        Chain chain;
        const auto read = [&chain](const Query& query) { return chain.first.run(query.id.str(), query.text); };
        const auto to_digest = [](sluice::StreamItem<std::string>&& item) { return Query(item.result, item.result); };
        auto digests = chain.digests.process_stream(sluice::map_stream(test::make_queries(6), 2, read), to_digest);
        auto consumer = chain.start<void>([&] { return take_all(digests, chain.delivered); });
        steps.take(chain.context);
        int begun = 0;
        auto report = chain.start<DigestReport>([&] {
            begun = chain.first.calls();
            return chain.digests.drain(grace);
        });
        chain.run();
        CHECK(consumer.succeeded());
        CHECK(chain.first.calls() == begun);  // none afterwards
        CHECK(static_cast<int>(chain.handed_over(report.value()).size()) == begun);
        CHECK(chain.first.running == 0);
    });
}

TEST_CASE("drain: of what cannot be drained, a stream that a pipeline owns is cancelled at the end of the grace",
          "[drain][source]") {
    Chain chain;
    chain.first.latency_of = [](const std::string& text) { return text == "t1" ? 1h : 10ms; };
    const auto read = [&chain](const Query& query) { return chain.first.run(query.id.str(), query.text); };
    const auto to_digest = [](sluice::StreamItem<std::string>&& item) { return Query(item.result, item.result); };
    auto digests = chain.digests.process_stream(sluice::map_stream(test::make_queries(6), 2, read), to_digest);
    auto item = chain.start<std::optional<sluice::StreamItem<DigestResult>>>([&] { return digests.next(); });
    test::run_until(chain.context, 15ms);  // q0 is digested, q1 hangs, and q2 is read
    auto report = chain.drain_digests(10ms);
    CHECK(chain.run() == 10ms);
    CHECK(is(report.value(), 0, 0, 0, 2));
    CHECK(ids_of(report.value()) == Ids{"first(q0)", "first(q2)"});
    CHECK(chain.first.calls() == 3);
    CHECK_FALSE(item.value());
}

TEST_CASE("drain: what cannot be drained goes on with what the stream that it owns has in work",
          "[drain][source][stress]") {
    test::for_every_step([&](test::Steps& steps) {
        Chain chain;
        Model read{"read", 15ms};
        const auto to_text = [&read](const sluice::StreamItem<EntryResult>& item) {
            return read.run(item.result.query.id.str(), item.result.query.id.str());
        };
        const auto to_digest = [](sluice::StreamItem<std::string>&& item) { return Query(item.result, item.result); };
        auto digests = chain.digests.process_stream(
            sluice::map_stream(chain.notes.process_stream(test::make_queries(6)), 2, to_text), to_digest);
        auto consumer = chain.start<void>([&] { return take_all(digests, chain.delivered); });
        steps.take(chain.context);
        auto report = chain.drain_digests(1h);
        chain.run();
        auto of_notes = chain.drain_notes(0ms);
        CHECK(chain.run() == 0ms);
        CHECK(consumer.succeeded());
        CHECK(chain.handed_over(report.value()).size() == chain.second.finished.size());
        CHECK(chain.second.finished.size() + of_notes.value().checkpoints.size() == 6);
    });
}

TEST_CASE("drain: of a pipeline that owns the stream of another, whatever is destroyed first, at every step",
          "[drain][source][stress]") {
    const bool pipelines_first = GENERATE(false, true);
    const bool streams = GENERATE(false, true);
    const auto grace = GENERATE(0ms, 15ms, 1000ms);
    test::for_every_step([&](test::Steps& steps) {
        Model first{"first", 10ms};
        Model digest{"digest", 25ms};
        test::DeadLetters sink;
        auto context = std::make_unique<asio::io_context>(1);
        const auto executor = timed(context->get_executor());
        const EntryStage stage(executor, "first", 9, test::Endpoint{&first});
        std::optional<EntryPipeline> notes(std::in_place, executor, EntryRoute{stage, stage}, sink, 2);
        std::optional<DigestPipeline> digests(
            std::in_place, executor, DigestRoute{EntryStage(executor, "digest", 9, test::Endpoint{&digest})}, sink, 2);
        std::optional<DigestPipeline::Stream> stream;
        std::optional<Task<std::optional<sluice::StreamItem<DigestResult>>>> item;
        std::optional<Task<std::vector<DigestResult>>> batch;
        if (streams) {
            stream.emplace(digests->process_stream(notes->process_stream(test::make_queries(6)), to_query));
            item.emplace(context->get_executor(), [&] { return stream->next(); });
        } else {
            batch.emplace(context->get_executor(), [&] {
                return digests->process_batch(notes->process_stream(test::make_queries(6)), to_query);
            });
        }
        test::run_until(*context, 25ms);
        Task<DigestReport> report(context->get_executor(),
                                  [drain = digests->drain(grace)]() mutable { return std::move(drain); });
        steps.take(*context);
        if (pipelines_first) {
            notes.reset();
            digests.reset();
        }
        context.reset();
        CHECK(first.running + digest.running == 0);
    });
}

namespace {

// Needs 50 ms to close.
struct SlowlyClosed {
    int* closed;
    bool fails = false;

    asio::awaitable<std::optional<Query>> next() { co_return test::make_query(0); }
    asio::awaitable<void> close() { return close(closed, fails); }

private:
    static asio::awaitable<void> close(int* closed, bool fails) {
        co_await test::sleep(50ms);
        ++*closed;
        if (fails) {
            throw std::range_error("not closed");
        }
    }
};

}  // namespace

TEST_CASE("drain: a batch that is refused closes the source that it owns", "[drain][source]") {
    const bool fails = GENERATE(false, true);
    const bool cancelled = GENERATE(false, true);
    Chain chain;
    auto report = chain.drain_digests(0ms);
    chain.run();
    int closed = 0;
    auto batch = chain.start<std::vector<DigestResult>>(
        [&] { return chain.digests.process_batch(SlowlyClosed{&closed, fails}); });
    test::poll(chain.context);
    CHECK_FALSE(batch.done());
    if (cancelled) {
        batch.cancel();
    }
    CHECK(chain.run() == 50ms);
    CHECK(closed == 1);
    CHECK(batch.failed_with<sluice::Draining>());
}

TEST_CASE("drain: a stream that is refused leaves the source where it is", "[drain][source]") {
    Chain chain;
    auto report = chain.drain_digests(0ms);
    chain.run();
    auto notes = chain.notes.process_stream(test::make_queries(2));
    CHECK_THROWS_AS(chain.digests.process_stream(std::move(notes), to_query), sluice::Draining);
    auto item = chain.start<std::optional<sluice::StreamItem<EntryResult>>>(
        [&] { return notes.next(); });  // NOLINT(bugprone-use-after-move): it was not
    sluice::testing::run_until_stalled(chain.context);
    CHECK(item.value()->result.completed);
}

TEST_CASE("drain: a stream that is closed before it has begun closes the source that it owns", "[drain][source]") {
    Chain chain;
    int ended = 0;
    auto stream = chain.digests.process_stream(SlowlyClosed{&ended});
    const bool drained = GENERATE(false, true);
    if (drained) {
        auto report = chain.drain_digests(0ms);
        CHECK(chain.run() == 50ms);
    }
    auto closed = chain.start<void>([&] { return stream.close(); });
    CHECK(chain.run() == (drained ? 0ms : 50ms));
    CHECK(closed.succeeded());
    CHECK(ended == 1);
    CHECK(chain.digest.calls() == 0);
    auto item = chain.start<std::optional<sluice::StreamItem<DigestResult>>>([&] { return stream.next(); });
    chain.run();
    CHECK_FALSE(item.value());
}
