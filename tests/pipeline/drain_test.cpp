// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <ranges>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::Query;
using sluice::StageOptions;
using test::Model;
using test::Task;
using test::timed;
using test::VirtualTimer;

struct Note {
    std::optional<std::string> first;
    std::optional<std::string> second;
};

// Can be awaited in place: its call is not overloaded.
struct NoteModel {
    Model* model;

    asio::awaitable<std::string> operator()(const std::string& text) const { return model->run(text, text); }
};

using NoteRun = sluice::Run<Note>;
using NoteResult = sluice::RecordResult<Note>;
using Report = sluice::DrainReport<Note>;
using NoteStage = sluice::Stage<NoteModel, VirtualTimer>;

struct NoteRoute {
    NoteStage first;
    NoteStage second;

    asio::awaitable<void> operator()(NoteRun& run) const {
        co_await run.step(&Note::first, first, run.query().text);
        co_await run.step(&Note::second, second, run.query().text);
    }
};

// A view that refers to its queries, and can only be moved.
struct OnlyMovable : std::ranges::view_interface<OnlyMovable> {
    explicit OnlyMovable(const std::vector<Query>& queries) : viewed(queries) {}
    OnlyMovable(OnlyMovable&&) = default;
    OnlyMovable& operator=(OnlyMovable&&) = default;

    auto begin() const { return viewed.begin(); }
    auto end() const { return viewed.end(); }
    auto base() && { return viewed; }

    std::ranges::ref_view<const std::vector<Query>> viewed;
};

// Two stages of 10 ms and 100 ms. The context is destroyed first.
struct Office {
    using Pipeline = sluice::Pipeline<NoteRoute, test::DeadLetters, VirtualTimer>;

    Model first{"first", 10ms};
    Model second{"second", 100ms};
    test::DeadLetters sink;
    asio::io_context context{1};
    NoteRoute route;
    Pipeline pipeline;

    explicit Office(std::ptrdiff_t window = 2, const StageOptions& options = {})
        : route{NoteStage(timed(context.get_executor()), "first", 9, NoteModel{&first}, options),
                NoteStage(timed(context.get_executor()), "second", 9, NoteModel{&second}, options)},
          pipeline(timed(context.get_executor()), route, sink, window) {}

    Task<Report> drain(std::chrono::nanoseconds grace) {
        return Task<Report>(context.get_executor(), [this, grace] { return pipeline.drain(grace); });
    }
    Task<NoteResult> one(std::string id) {
        return Task<NoteResult>(context.get_executor(),
                                [this, id = std::move(id)] { return pipeline.process_one(Query(id, id)); });
    }
    std::chrono::nanoseconds run() { return sluice::testing::run(context); }
    std::chrono::nanoseconds now() { return test::now(context); }
};

// Until those that waited have been granted a slot or have given up. The last of them has not resumed.
void poll_until_none_waits(asio::io_context& context, const sluice::Endpoint<VirtualTimer>& endpoint) {
    context.restart();
    while (endpoint.waiting() != 0) {
        context.poll_one();
    }
}

bool is(const Report& report, std::size_t completed, std::size_t dead, std::size_t cancelled, std::size_t unfinished) {
    return report.completed == completed && report.dead == dead && report.cancelled == cancelled &&
           report.unfinished == unfinished;
}

}  // namespace

TEST_CASE("drain: of an idle pipeline it ends at once, and nothing is taken in afterwards", "[drain]") {
    Office office;
    auto report = office.drain(1h);
    CHECK(office.run() == 0ms);
    CHECK(is(report.value(), 0, 0, 0, 0));
    const auto refused = office.one("a");
    Task<std::vector<NoteResult>> batch(office.context.get_executor(),
                                        [&] { return office.pipeline.process_batch(test::make_queries(2)); });
    office.run();
    CHECK(refused.failed_with<sluice::Draining>());
    CHECK(batch.failed_with<sluice::Draining>());
    CHECK_THROWS_AS(office.pipeline.process_stream(test::make_queries(2)), sluice::Draining);
    CHECK(office.first.calls() == 0);
}

TEST_CASE("drain: what ends within the grace is completed or dead", "[drain]") {
    Office office;
    office.second.failures["b"] = 1;
    auto a = office.one("a");
    auto b = office.one("b");
    test::run_until(office.context, 5ms);
    auto report = office.drain(1s);
    CHECK(office.run() == 105ms);
    CHECK(is(report.value(), 1, 1, 0, 0));
    CHECK(report.value().checkpoints.empty());
    CHECK(a.value().completed);
    CHECK_FALSE(b.value().completed);
    CHECK(office.sink.letters.size() == 1);
}

TEST_CASE("drain: at the end of the grace, what runs is cut short, with its record", "[drain]") {
    Office office;
    auto a = office.one("a");
    test::run_until(office.context, 5ms);
    auto report = office.drain(20ms);
    CHECK(office.run() == 20ms);
    CHECK(is(report.value(), 0, 0, 0, 1));
    REQUIRE(a.succeeded());
    CHECK(a.value().unfinished);
    CHECK_FALSE(a.value().completed);
    CHECK(a.value().failure() == nullptr);
    CHECK(a.value().record.first == "first(a)");
    CHECK_FALSE(a.value().record.second);
    CHECK(report.value().checkpoints.empty());
    CHECK(office.sink.letters.empty());
}

TEST_CASE("drain: a batch returns all that it had taken, and the rest of what it owns", "[drain]") {
    Office office(2);
    const bool owned = GENERATE(false, true);
    const bool view = owned && GENERATE(false, true);
    auto queries = test::make_queries(5);
    Task<std::vector<NoteResult>> batch(office.context.get_executor(), [&] {
        const auto same = std::views::transform([](Query& query) { return std::move(query); });
        return view    ? office.pipeline.process_batch(std::move(queries) | same)
               : owned ? office.pipeline.process_batch(std::move(queries))
                       : office.pipeline.process_batch(queries);
    });
    test::run_until(office.context, 115ms);  // two have ended, and two have begun
    auto report = office.drain(20ms);
    office.run();
    CHECK(is(report.value(), 0, 0, 0, 2));
    REQUIRE(batch.succeeded());
    const auto& results = batch.value();
    REQUIRE(results.size() == (owned ? 5U : 4U));
    for (std::size_t i = 0; i != results.size(); ++i) {
        CHECK(results[i].query.id == "q" + std::to_string(i));
        CHECK(results[i].completed == (i < 2));
        CHECK(results[i].unfinished == (i >= 2));
        CHECK(results[i].record.first.has_value() == (i < 4));
    }
}

TEST_CASE("drain: the rest stays where it is if a view of it was moved in, even one that cannot be copied", "[drain]") {
    Office office(2);
    const auto queries = test::make_queries(5);
    Task<std::vector<NoteResult>> batch(office.context.get_executor(),
                                        [&] { return office.pipeline.process_batch(OnlyMovable(queries)); });
    test::run_until(office.context, 5ms);
    auto report = office.drain(20ms);
    office.run();
    CHECK(batch.value().size() == 2);
}

TEST_CASE("drain: a stream delivers what is complete, and the report has the rest", "[drain]") {
    Office office(2);
    std::vector<std::string> delivered;
    Task<> consumer(office.context.get_executor(), [&] {
        return [](auto& from, auto& into) -> asio::awaitable<void> {
            auto stream = from.process_stream(test::make_queries(5));
            while (auto item = co_await stream.next()) {
                CHECK(item->result.completed);
                into.push_back(item->result.query.id.str());
            }
        }(office.pipeline, delivered);
    });
    test::run_until(office.context, 115ms);
    auto report = office.drain(20ms);
    office.run();
    CHECK(consumer.succeeded());
    CHECK(delivered == std::vector<std::string>{"q0", "q1"});
    CHECK(is(report.value(), 0, 0, 0, 2));
    std::vector<std::string> rest;
    for (const auto& checkpoint : report.value().checkpoints) {
        rest.push_back(checkpoint.query.id.str() + (checkpoint.record.first ? " begun" : ""));
    }
    std::ranges::sort(rest);
    CHECK(rest == std::vector<std::string>{"q2 begun", "q3 begun", "q4"});
}

TEST_CASE("drain: a backoff that would outlast the grace gives up at once", "[drain]") {
    Office office(2, StageOptions{.retry = test::retries(1, 1s)});
    office.first.failures["a"] = 1;
    auto a = office.one("a");
    test::run_until(office.context, 15ms);
    SECTION("it would") {
        auto report = office.drain(500ms);
        CHECK(office.run() == 0ms);
        CHECK(is(report.value(), 0, 0, 0, 1));
        CHECK(a.value().unfinished);
    }
    SECTION("it would not") {
        auto report = office.drain(2s);
        office.run();
        CHECK(is(report.value(), 1, 0, 0, 0));
        CHECK(a.value().completed);
    }
    SECTION("it begins later") {
        office.first.failures["b"] = 1;
        auto b = office.one("b");
        auto report = office.drain(500ms);
        test::run_until(office.context, 24ms);
        CHECK_FALSE(b.done());
        CHECK(office.run() <= 1ms);
        CHECK(is(report.value(), 0, 0, 0, 2));
        CHECK(b.value().unfinished);
    }
}

TEST_CASE("drain: whoever waits for a pause that outlasts the grace gives up at once", "[drain]") {
    const bool limited = GENERATE(false, true);  // its stage has a coroutine of its own
    Office office(9, limited ? StageOptions{.timeout = 1h} : StageOptions());
    sluice::Endpoint<VirtualTimer> endpoint = office.route.first.endpoint();
    SECTION("it would") {
        endpoint.pause(1s + 1ns);
        auto a = office.one("a");
        test::run_until(office.context, 0s);
        auto report = office.drain(1s);
        CHECK(office.run() == 0s);
        CHECK(is(report.value(), 0, 0, 0, 1));
        CHECK(a.value().unfinished);
        CHECK(office.sink.letters.empty());
    }
    SECTION("it would not") {
        endpoint.pause(1s);
        auto a = office.one("a");
        test::run_until(office.context, 0s);
        auto report = office.drain(2s);
        office.run();
        CHECK(is(report.value(), 1, 0, 0, 0));
        CHECK(a.value().completed);
    }
    SECTION("its query would be late before: a dead letter") {
        endpoint.set_limit(0);
        Task<NoteResult> a(office.context.get_executor(), [&]() -> asio::awaitable<NoteResult> {
            Query query("a", "a");
            query.timeout = 500ms;
            NoteResult result = co_await office.pipeline.process_one(query);
            co_return std::move(result);
        });
        test::run_until(office.context, 0s);
        auto report = office.drain(1s);
        test::run_until(office.context, 100ms);
        endpoint.pause(2s);
        office.run();
        CHECK(office.now() == 100ms);
        CHECK(is(report.value(), 0, 1, 0, 0));
        CHECK(a.value().failure()->reason == sluice::Reason::deadline);
    }
    SECTION("a second drain shortens the grace") {
        endpoint.pause(1s);
        auto a = office.one("a");
        test::run_until(office.context, 0s);
        auto report = office.drain(2s);
        test::run_until(office.context, 100ms);
        CHECK_FALSE(a.done());
        auto again = office.drain(800ms);
        office.run();
        CHECK(office.now() == 100ms);
        CHECK(a.value().unfinished);
    }
    SECTION("it begins to wait later") {
        auto a = office.one("a");
        auto b = office.one("b");
        test::run_until(office.context, 5ms);
        office.route.second.endpoint().pause(2s);
        auto report = office.drain(1s);
        office.run();
        CHECK(office.now() == 10ms);
        CHECK(is(report.value(), 0, 0, 0, 2));
        CHECK(a.value().record.first);
    }
}

TEST_CASE("drain: whoever waits for a breaker gives up at once if it is open for longer than the grace", "[drain]") {
    const StageOptions retried{.retry = test::retries(1, 0s)};  // since the first failure opens the breaker
    Office office(9, retried);
    const sluice::BreakerOptions breaker{.minimum_calls = 1, .open_time = 2s, .jitter = 0, .probes = 1};
    sluice::Endpoint<VirtualTimer> endpoint(timed(office.context.get_executor()), "guarded",
                                            sluice::EndpointOptions{.limit = 9, .breaker = breaker});
    const NoteStage guarded(endpoint, "guarded", NoteModel{&office.first}, retried);
    const auto route = [&](NoteRun& run) -> asio::awaitable<void> {
        co_await run.step(&Note::first, guarded, run.query().text);
    };
    sluice::Pipeline pipeline(timed(office.context.get_executor()), route, office.sink, 9);
    const auto begin = [&](const char* id) {
        return Task<NoteResult>(office.context.get_executor(), [&, id] { return pipeline.process_one(Query(id, id)); });
    };
    const auto drain = [&](std::chrono::nanoseconds grace) {
        return Task<Report>(office.context.get_executor(), [&, grace] { return pipeline.drain(grace); });
    };
    office.first.failures["a"] = 1;
    auto a = begin("a");
    SECTION("it is open already") {
        test::run_until(office.context, 10ms);
        auto b = begin("b");
        test::run_until(office.context, 10ms);
        auto report = drain(2s - 1ns);
        office.run();
        CHECK(office.now() == 10ms);
        CHECK(is(report.value(), 0, 0, 0, 2));
        CHECK(b.value().unfinished);
    }
    SECTION("it opens later") {
        auto report = drain(2s);
        office.run();
        CHECK(office.now() == 10ms);
        CHECK(is(report.value(), 0, 0, 0, 1));
    }
    SECTION("it is not open for so long") {
        test::run_until(office.context, 10ms);
        auto report = drain(3s);
        office.run();
        CHECK(office.now() == 2s + 20ms);
        CHECK(is(report.value(), 1, 0, 0, 0));
    }
    SECTION("a person has opened it, and may close it") {
        endpoint.breaker().force_open();
        test::run_until(office.context, 10ms);
        auto report = drain(3s);
        test::run_until(office.context, 1s);
        endpoint.breaker().force_closed();
        office.run();
        CHECK(office.now() == 1s + 20ms);
        CHECK(is(report.value(), 1, 0, 0, 0));
    }
}

TEST_CASE("drain: the grace is rounded up to the ticks of the timer", "[drain]") {
    struct WholeSeconds : VirtualTimer {
        using VirtualTimer::VirtualTimer;
        using duration = std::chrono::seconds;
        void expires_after(duration after) { VirtualTimer::expires_after(after); }
    };
    asio::io_context context(1);
    test::DeadLetters sink;
    const auto route = [](NoteRun& run) -> asio::awaitable<void> {
        co_await test::sleep(1h);
        run->first = "never";
    };
    sluice::Pipeline pipeline(sluice::timed_by<WholeSeconds>(context.get_executor()), route, sink, 1);
    const Query query("a", "a");
    Task<NoteResult> a(context.get_executor(), [&] { return pipeline.process_one(query); });
    Task<Report> report(context.get_executor(), [&] { return pipeline.drain(1s + 1ns); });
    CHECK(sluice::testing::run(context) == 2s);
    CHECK(is(report.value(), 0, 0, 0, 1));
}

TEST_CASE("drain: whoever waits for a slot when the endpoint is paused gives up too, in place or not", "[drain]") {
    const StageOptions options =
        GENERATE(StageOptions{}, StageOptions{.retry = test::retries(1, 1ms)}, StageOptions{.timeout = 1h});
    Office office(9, options);
    sluice::Endpoint<VirtualTimer> endpoint = office.route.first.endpoint();
    endpoint.set_limit(1);
    auto a = office.one("a");
    auto b = office.one("b");
    test::run_until(office.context, 5ms);
    SECTION("before the drain") {
        endpoint.pause(2s);
        auto report = office.drain(1s);
        office.run();
        CHECK(office.now() == 110ms);
        CHECK(is(report.value(), 1, 0, 0, 1));
        CHECK(b.value().unfinished);
    }
    SECTION("after the drain has begun") {
        endpoint.pause(2s);
        auto report = office.drain(3s);
        test::run_until(office.context, 500ms);
        endpoint.pause(4s);
        office.run();
        CHECK(office.now() == 500ms);
        CHECK(b.value().unfinished);
    }
    SECTION("before the drain shortens its grace") {
        endpoint.pause(2s);
        auto report = office.drain(3s);
        test::run_until(office.context, 500ms);
        auto sooner = office.drain(1s);
        office.run();
        CHECK(office.now() == 500ms);
        CHECK(is(report.value(), 1, 0, 0, 1));
        CHECK(b.value().unfinished);
    }
    SECTION("but not if it has been granted the slot") {
        sluice::testing::VirtualTime::of(office.context).advance();  // a ends
        poll_until_none_waits(office.context, endpoint);
        endpoint.pause(2s);
        auto report = office.drain(1s);
        office.run();
        CHECK(is(report.value(), 2, 0, 0, 0));
    }
    SECTION("but not if the pause ends within the grace, however often that is shortened") {
        endpoint.pause(2s);
        auto report = office.drain(4s);
        test::run_until(office.context, 500ms);
        auto sooner = office.drain(3s);
        office.run();
        CHECK(office.now() == 2115ms);
        CHECK(is(report.value(), 2, 0, 0, 0));
    }
    SECTION("but not if it is paused for another pipeline alone") {
        test::DeadLetters sink;
        Office::Pipeline other(timed(office.context.get_executor()), office.route, sink, 9);
        endpoint.pause(2s);
        Task<Report> report(office.context.get_executor(), [&] { return other.drain(1s); });
        office.run();
        CHECK(b.value().completed);
    }
    CHECK(endpoint.active() == 0);
    CHECK(endpoint.waiting() == 0);
}

TEST_CASE("drain: whoever begins to wait for a slot in a drain gives up when the endpoint is paused", "[drain]") {
    // b is in its first step as the drain begins, and waits for the second when that is paused.
    Office office(9);
    office.first.latency = 10ms;
    sluice::Endpoint<VirtualTimer> endpoint = office.route.second.endpoint();
    endpoint.set_limit(1);
    auto a = office.one("a");
    test::run_until(office.context, 5ms);
    auto b = office.one("b");
    auto report = office.drain(1s);
    test::run_until(office.context, 20ms);
    CHECK(endpoint.waiting() == 1);
    const bool outlasts = GENERATE(true, false);
    endpoint.pause(outlasts ? 985001us : 500ms);
    office.run();
    CHECK(office.now() == (outlasts ? 110ms : 620ms));
    CHECK(is(report.value(), outlasts ? 1 : 2, 0, 0, outlasts ? 1 : 0));
    CHECK(b.value().unfinished == outlasts);
    CHECK(b.value().record.first == "first(b)");
}

TEST_CASE("drain: who has given up is unfinished, even if it is cancelled then, but not if its endpoint is closed",
          "[drain][cancellation]") {
    const bool in_place = GENERATE(true, false);
    Office office(9, in_place ? StageOptions{} : StageOptions{.timeout = 1h});
    sluice::Endpoint<VirtualTimer> endpoint = office.route.first.endpoint();
    endpoint.set_limit(1);
    auto a = office.one("a");
    auto b = office.one("b");
    test::run_until(office.context, 5ms);
    endpoint.pause(2s);
    auto report = office.drain(1s);
    poll_until_none_waits(office.context, endpoint);
    REQUIRE_FALSE(b.done());
    const bool closes = GENERATE(false, true);
    if (closes) {
        endpoint.close();
    } else {
        b.cancel();
    }
    office.run();
    CHECK(b.value().unfinished == !closes);
    CHECK((b.value().failure() != nullptr) == closes);
    CHECK(is(report.value(), 1, closes, 0, !closes));
    CHECK(endpoint.active() == 0);
}

TEST_CASE("drain: a step that could run in place does not wait for a pause that outlasts the grace", "[drain]") {
    asio::io_context context(1);
    test::DeadLetters sink;
    const auto model = [](const std::string& text) -> asio::awaitable<std::string> { co_return text; };
    sluice::Stage stage(timed(context.get_executor()), "first", 1, model);
    const auto route = [&](NoteRun& run) -> asio::awaitable<void> {
        co_await run.step(&Note::first, stage, run.query().text);
    };
    sluice::Pipeline pipeline(timed(context.get_executor()), route, sink, 1);
    stage.endpoint().pause(2s);
    const Query query("a", "a");
    Task<NoteResult> a(context.get_executor(), [&] { return pipeline.process_one(query); });
    test::run_until(context, 0s);
    Task<Report> report(context.get_executor(), [&] { return pipeline.drain(1s); });
    CHECK(sluice::testing::run(context) == 0s);
    CHECK(is(report.value(), 0, 0, 0, 1));
    CHECK(a.value().unfinished);
}

TEST_CASE("drain: if a step has failed before the drain cuts another short, the query is a dead letter",
          "[drain][all]") {
    Office office(2, StageOptions{.retry = test::retries(1, 1s)});
    const bool fails_first = GENERATE(true, false);
    office.first.latency = fails_first ? 5ms : 20ms;
    office.second.latency = 10ms;
    office.first.failures["a"] = 2;
    office.second.failures["a"] = 1;
    const NoteStage once(timed(office.context.get_executor()), "once", 9, NoteModel{&office.first});
    test::DeadLetters sink;
    sluice::Pipeline pipeline(
        timed(office.context.get_executor()),
        [&](NoteRun& run) -> asio::awaitable<void> {
            co_await run.all(run.step(&Note::first, once, run.query().text),
                             run.step(&Note::second, office.route.second, run.query().text));
        },
        sink, 1);
    Task<NoteResult> a(office.context.get_executor(), [&] { return pipeline.process_one(Query("a", "a")); });
    test::run_until(office.context, 15ms);
    Task<Report> report(office.context.get_executor(), [&] { return pipeline.drain(100ms); });
    office.run();
    CHECK(is(report.value(), 0, fails_first, 0, !fails_first));
    CHECK(sink.letters.size() == (fails_first ? 1U : 0U));
    CHECK(a.value().unfinished == !fails_first);
    CHECK((a.value().failure() != nullptr) == fails_first);
}

TEST_CASE("drain: beside a backoff that gives up, those that end within the grace go on", "[drain][all]") {
    Model first{"first", 10ms};
    Model second{"second", 10ms};
    first.failures["t0"] = second.failures["t0"] = 1;
    test::DeadLetters sink;
    asio::io_context context(1);
    const auto executor = timed(context.get_executor());
    const NoteStage patient(executor, "first", 9, NoteModel{&first}, StageOptions{.retry = test::retries(1, 1h)});
    const NoteStage hasty(executor, "second", 9, NoteModel{&second}, StageOptions{.retry = test::retries(1, 50ms)});
    const auto route = [=](NoteRun& run) -> asio::awaitable<void> {
        co_await run.all(run.step(&Note::first, patient, run.query().text),
                         run.step(&Note::second, hasty, run.query().text));
    };
    sluice::Pipeline pipeline(executor, route, sink, 2);
    Task<std::vector<NoteResult>> batch(context.get_executor(),
                                        [&] { return pipeline.process_batch(test::make_queries(1)); });
    const bool is_in_backoff = GENERATE(true, false);
    if (!is_in_backoff) {
        second.latency = 20ms;  // its backoff begins when the other has given up
    }
    test::run_until(context, 15ms);
    CHECK(first.failed.size() == 1);
    CHECK(second.failed.size() == (is_in_backoff ? 1U : 0U));
    Task<Report> report(context.get_executor(), [&] { return pipeline.drain(1s); });
    CHECK(sluice::testing::run(context) == (is_in_backoff ? 55ms : 75ms));
    CHECK(is(report.value(), 0, 0, 0, 1));
    REQUIRE(batch.succeeded());
    CHECK(batch.value()[0].unfinished);
    CHECK_FALSE(batch.value()[0].record.first);
    CHECK(batch.value()[0].record.second == "second(t0)");
    CHECK(first.calls() == 1);
}

TEST_CASE("drain: a backoff that the route has cut short before does not give up", "[drain]") {
    test::for_every_step([](test::Steps& steps) {
        Office office(2, StageOptions{.retry = test::retries(1, 1h)});
        office.first.failures["a"] = 1;
        sluice::TaskGroup* around_step = nullptr;
        const auto route = [&](NoteRun& run) -> asio::awaitable<void> {
            const auto body = [&](sluice::TaskGroup& group) -> asio::awaitable<void> {
                around_step = &group;
                co_await run.step(&Note::first, office.route.first, run.query().text);
            };
            try {
                co_await sluice::with_task_group(body);
            } catch (const boost::system::system_error&) {
            }
            around_step = nullptr;
        };
        sluice::Pipeline pipeline(timed(office.context.get_executor()), route, office.sink, 2);
        Task<NoteResult> one(office.context.get_executor(), [&] { return pipeline.process_one(Query("a", "a")); });
        test::run_until(office.context, 15ms);
        REQUIRE(around_step);
        Task<Report> report(office.context.get_executor(), [&] { return pipeline.drain(1s); });
        steps.take(office.context);
        bool drains = false;
        try {
            static_cast<void>(pipeline.process_stream(test::make_queries(1)));
        } catch (const sluice::Draining&) {
            drains = true;
        }
        if (around_step) {
            around_step->cancel();
        }
        office.run();
        CHECK(one.value().completed == !drains);
        CHECK(one.value().unfinished == drains);
    });
}

TEST_CASE("drain: what was cancelled before the end of the grace is cancelled, even if it ends later",
          "[drain][cancellation]") {
    Office office(2);
    office.first.clean_up = 50ms;
    auto one = office.one("a");
    Task<std::vector<NoteResult>> batch(office.context.get_executor(),
                                        [&] { return office.pipeline.process_batch(test::make_queries(2)); });
    auto stream = office.pipeline.process_stream(test::make_queries(2));
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream.next(); });
    test::run_until(office.context, 5ms);
    const bool drained_first = GENERATE(true, false);
    std::optional<Task<Report>> report;
    if (drained_first) {
        report = office.drain(20ms);
        test::poll(office.context);
    }
    one.cancel();
    batch.cancel();
    Task<> closed(office.context.get_executor(), [&] { return stream.close(); });
    test::run_until(office.context, 6ms);
    if (!drained_first) {
        report = office.drain(20ms);
    }
    office.run();
    CHECK(one.aborted());
    CHECK(batch.aborted());
    CHECK(closed.succeeded());
    CHECK(is(report->value(), 0, 0, 5, 0));
    CHECK(report->value().checkpoints.empty());
}

TEST_CASE("drain: again, it can only shorten the grace, and cancelling the wait does not stop it", "[drain]") {
    Office office;
    auto a = office.one("a");
    test::run_until(office.context, 5ms);
    auto first = office.drain(1h);
    test::poll(office.context);
    auto second = office.drain(30ms);
    auto third = office.drain(2h);
    test::poll(office.context);
    first.cancel();
    test::poll(office.context);
    CHECK(first.aborted());
    CHECK(office.run() == 30ms);
    CHECK(is(second.value(), 0, 0, 0, 1));
    CHECK(is(third.value(), 0, 0, 0, 1));
    CHECK(a.value().unfinished);
}

namespace {

// Delivers a query after each `delay`.
struct Arrivals {
    std::chrono::nanoseconds delay;
    std::size_t size = 3;
    std::size_t delivered = 0;

    asio::awaitable<std::optional<Query>> next() { return produce(*this); }

private:
    static asio::awaitable<std::optional<Query>> produce(Arrivals& arrivals) {
        if (arrivals.delivered == arrivals.size) {
            co_return std::nullopt;
        }
        co_await test::sleep(arrivals.delay);
        co_return test::make_query(arrivals.delivered++);
    }
};

}  // namespace

TEST_CASE("drain: the pending next() of an asynchronous source is cancelled alone", "[drain][source]") {
    Office office(2);
    Arrivals arrivals{30ms};
    Task<std::vector<NoteResult>> batch(office.context.get_executor(),
                                        [&] { return office.pipeline.process_batch(arrivals); });
    test::run_until(office.context, 35ms);  // the first runs, the second is awaited
    auto report = office.drain(1s);
    CHECK(office.run() == 105ms);
    CHECK(is(report.value(), 1, 0, 0, 0));
    REQUIRE(batch.succeeded());
    REQUIRE(batch.value().size() == 1);
    CHECK(batch.value()[0].completed);
}

TEST_CASE("drain: at every step, all that was in work is accounted for, and what a source delivered",
          "[drain][source][stress]") {
    const auto grace = GENERATE(0ms, 3ms, 40ms, 1000ms);
    const bool is_source = GENERATE(false, true);
    const bool is_stream = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Office office(2, StageOptions{.timeout = 1s, .retry = test::retries(1, 15ms)});
        office.first.failures["t1"] = 1;
        office.second.failures["t0"] = 2;
        office.second.latency = 20ms;
        Arrivals arrivals{7ms};
        std::size_t received = 0;
        Task<> consumer(office.context.get_executor(), [&] {
            return [](auto& pipeline, auto& source, bool from_source, bool streams,
                      std::size_t& count) -> asio::awaitable<void> {
                if (streams) {
                    auto stream =
                        from_source ? pipeline.process_stream(source) : pipeline.process_stream(test::make_queries(3));
                    while (co_await stream.next()) {
                        ++count;
                    }
                } else if (from_source) {
                    const auto results = co_await pipeline.process_batch(source);
                    count = results.size();
                } else {
                    const auto results = co_await pipeline.process_batch(test::make_queries(3));
                    count = results.size();
                }
            }(office.pipeline, arrivals, is_source, is_stream, received);
        });
        auto one = office.one("x");
        test::poll(office.context);
        steps.take(office.context);
        std::size_t ended_before = 0;
        Task<Report> report(office.context.get_executor(), [&] {
            ended_before = office.sink.letters.size();
            return office.pipeline.drain(grace);
        });
        office.run();
        REQUIRE(report.succeeded());
        CHECK((consumer.succeeded() || consumer.failed_with<sluice::Draining>()));
        CHECK(one.done());
        CHECK(report.value().cancelled == 0);
        CHECK(report.value().dead == office.sink.letters.size() - ended_before);
        if (consumer.succeeded()) {
            CHECK(received + report.value().checkpoints.size() == (is_source ? arrivals.delivered : 3));
        }
        CHECK(office.route.first.endpoint().active() == 0);
        CHECK(office.route.second.endpoint().active() == 0);
    });
}

TEST_CASE("drain: a grace may be without end, or none", "[drain]") {
    Office office(2, StageOptions{.retry = test::retries(1, 1h)});
    office.first.failures["a"] = 1;
    const bool endless = GENERATE(false, true);
    auto a = office.one("a");
    test::run_until(office.context, 5ms);
    auto report = office.drain(endless ? std::chrono::nanoseconds::max() : -1h);
    CHECK(office.run() == (endless ? 1h + 115ms : 0ms));
    CHECK(is(report.value(), endless ? 1 : 0, 0, 0, endless ? 0 : 1));
    CHECK(a.value().unfinished == !endless);
}

TEST_CASE("drain: of one stream, which leaves the rest of its pipeline alone", "[drain][stream]") {
    Office office(2);
    auto stream = office.pipeline.process_stream(test::make_queries(5));
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream.next(); });
    auto one = office.one("a");
    test::run_until(office.context, 115ms);  // two have ended, and one has begun, since one result was not taken
    REQUIRE(item.succeeded());
    Task<Report> report(office.context.get_executor(), [&] { return stream.drain(20ms); });
    sluice::testing::run_until_stalled(office.context);
    REQUIRE(report.succeeded());
    CHECK(is(report.value(), 0, 0, 0, 1));
    std::vector<std::string> rest;
    for (const auto& checkpoint : report.value().checkpoints) {
        rest.push_back(checkpoint.query.id.str() + (checkpoint.record.first ? " begun" : ""));
    }
    CHECK(rest == std::vector<std::string>{"q2 begun", "q3", "q4"});

    Task<std::optional<sluice::StreamItem<NoteResult>>> second(office.context.get_executor(),
                                                               [&] { return stream.next(); });
    Task<std::optional<sluice::StreamItem<NoteResult>>> end(office.context.get_executor(),
                                                            [&] { return stream.next(); });
    auto later = office.one("b");
    office.run();
    CHECK(second.value()->result.completed);
    CHECK_FALSE(end.value());
    CHECK(one.value().completed);
    CHECK(later.value().completed);

    auto pipelines = office.drain(0ms);
    office.run();
    CHECK(is(pipelines.value(), 0, 0, 0, 0));
    CHECK(pipelines.value().checkpoints.empty());
}

TEST_CASE("drain: of a stream that has not begun, it takes nothing and reports what it owns", "[drain][stream]") {
    Office office(2);
    const bool owned = GENERATE(false, true);
    const auto kept = test::make_queries(3);
    auto stream = owned ? office.pipeline.process_stream(test::make_queries(3)) : office.pipeline.process_stream(kept);
    Task<Report> report(office.context.get_executor(), [&] { return stream.drain(1s); });
    CHECK(office.run() == 0ms);
    CHECK(is(report.value(), 0, 0, 0, 0));
    CHECK(report.value().checkpoints.size() == (owned ? 3U : 0U));
    CHECK(office.first.calls() == 0);
}

TEST_CASE("drain: the pipeline drains its streams, and can only shorten the grace of one", "[drain][stream]") {
    Office office(2);
    auto stream = office.pipeline.process_stream(test::make_queries(2));
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream.next(); });
    test::run_until(office.context, 5ms);
    Task<Report> of_stream(office.context.get_executor(), [&] { return stream.drain(30ms); });
    test::poll(office.context);
    const bool shorter = GENERATE(false, true);
    auto of_pipeline = office.drain(shorter ? 10ms : 1h);
    CHECK(office.run() == (shorter ? 10ms : 30ms));
    CHECK(is(of_stream.value(), 0, 0, 0, 2));
    CHECK(is(of_pipeline.value(), 0, 0, 0, 2));
    CHECK(of_stream.value().checkpoints.size() + of_pipeline.value().checkpoints.size() == 2);
    CHECK_FALSE(item.value());
}

TEST_CASE("drain: whatever is destroyed first, at every step", "[drain][stress]") {
    enum class First { context, pipeline, pipeline_and_context };
    const First first = GENERATE(First::context, First::pipeline, First::pipeline_and_context);
    const auto grace = GENERATE(0ms, 20ms, 1000ms);
    const bool drains = GENERATE(false, true);
    const bool paused = GENERATE(false, true);
    const bool in_place = GENERATE(true, false);
    test::for_every_step([&](test::Steps& steps) {
        Model slow{"slow", 10ms};
        slow.failures["t1"] = 1;
        test::DeadLetters sink;
        auto context = std::make_unique<asio::io_context>(1);
        const auto executor = timed(context->get_executor());
        sluice::Endpoint endpoint(executor, "slow", sluice::EndpointOptions{.limit = paused ? 1 : 9});
        auto pipeline = std::make_unique<Office::Pipeline>([&] {
            StageOptions options{.retry = test::retries(1, 15ms)};
            if (!in_place) {
                options.timeout = 1h;
            }
            const NoteStage stage(endpoint, "slow", NoteModel{&slow}, options);
            return Office::Pipeline(executor, NoteRoute{stage, stage}, sink, 2);
        }());
        auto stream = std::make_unique<Office::Pipeline::Stream>(pipeline->process_stream(test::make_queries(3)));
        Task<std::vector<NoteResult>> batch(context->get_executor(),
                                            [&] { return pipeline->process_batch(test::make_queries(3)); });
        Task<NoteResult> one(context->get_executor(), [&] { return pipeline->process_one(Query("t1", "t1")); });
        Task<std::optional<sluice::StreamItem<NoteResult>>> item(context->get_executor(),
                                                                 [&] { return stream->next(); });
        test::poll(*context);
        if (paused) {
            endpoint.pause(500ms);  // others wait for its slot
        }
        std::optional<Task<Report>> report;
        if (drains) {
            report.emplace(context->get_executor(),
                           [drain = pipeline->drain(grace)]() mutable { return std::move(drain); });
        }
        steps.take(*context);
        if (first == First::context) {
            context.reset();
            stream.reset();
            pipeline.reset();
            return;
        }
        stream.reset();
        pipeline.reset();
        if (first == First::pipeline) {
            sluice::testing::run(*context);
            CHECK(batch.succeeded());
            CHECK(one.succeeded());
            CHECK((!report || report->succeeded()));
        }
        context.reset();
    });
}

TEST_CASE("drain: of a batch that is cancelled too, the report has what nobody receives", "[drain][cancellation]") {
    bool both = false;  // drained and cancelled
    test::for_every_step([&](test::Steps& steps) {
        Office office(2);
        Task<std::vector<NoteResult>> batch(office.context.get_executor(),
                                            [&] { return office.pipeline.process_batch(test::make_queries(2)); });
        test::run_until(office.context, 15ms);
        auto report = office.drain(0ms);
        steps.take(office.context);
        batch.cancel();
        office.run();
        REQUIRE(report.succeeded());
        CHECK(report.value().cancelled + report.value().unfinished == 2);
        CHECK(report.value().checkpoints.size() == (batch.succeeded() ? 0 : report.value().unfinished));
        for (const auto& checkpoint : report.value().checkpoints) {
            CHECK(checkpoint.record.first == "first(" + checkpoint.query.text + ")");
            both = true;
        }
    });
    CHECK(both);
}

TEST_CASE("drain: the report has what a stream owns that has not begun", "[drain]") {
    Office office;
    auto stream = office.pipeline.process_stream(test::make_queries(3));
    auto begin = [&] {
        return Task<std::optional<sluice::StreamItem<NoteResult>>>(office.context.get_executor(),
                                                                   [&] { return stream.next(); });
    };
    SECTION("nobody has asked for a result") {
        auto report = office.drain(1h);
        office.run();
        CHECK(is(report.value(), 0, 0, 0, 0));
        REQUIRE(report.value().checkpoints.size() == 3);
        CHECK(report.value().checkpoints[0].query.id == "q0");
        auto item = begin();
        office.run();
        CHECK_FALSE(item.value());
    }
    SECTION("somebody has, and no work has begun") {
        auto item = begin();
        test::steps(office.context, 1);
        auto report = office.drain(0ms);
        office.run();
        CHECK(report.value().checkpoints.size() == 3);
        CHECK_FALSE(item.value());
    }
}

TEST_CASE("drain: a projection may destroy the stream whose rest it takes", "[drain][stream][shutdown]") {
    Office office;
    std::optional<Office::Pipeline::Stream> stream;
    const auto projection = [&](Query query) {
        stream.reset();
        return query;
    };
    stream.emplace(office.pipeline.process_stream(test::make_queries(3), projection));
    auto report = office.drain(0ms);
    office.run();
    CHECK(report.value().checkpoints.size() == 3);
}

TEST_CASE("drain: no timer outlasts it, even if its executor never begins anything at once", "[drain]") {
    Model first{"first", 10ms};
    test::DeadLetters sink;
    sluice::testing::InterleavingContext context([](std::size_t) { return std::size_t{0}; });
    const auto executor = timed(context.get_executor());
    const NoteStage stage(executor, "first", 2, NoteModel{&first});
    Office::Pipeline pipeline(executor, NoteRoute{stage, stage}, sink, 2);
    std::optional<Task<NoteResult>> one;
    const bool idle = GENERATE(true, false);
    if (!idle) {
        first.latency = 1s;
        one.emplace(context.get_executor(), [&] { return pipeline.process_one(Query("a", "a")); });
    }
    Task<Report> patient(context.get_executor(), [&] { return pipeline.drain(1h); });
    Task<Report> impatient(context.get_executor(), [&] { return pipeline.drain(20ms); });
    CHECK(context.run() == (idle ? 0ms : 20ms));
    CHECK(is(patient.value(), 0, 0, 0, idle ? 0 : 1));
    CHECK(impatient.succeeded());
}

namespace {

// Delivers its second query after a second, whether it is cancelled or not.
struct LateArrival {
    std::size_t delivered = 0;

    asio::awaitable<std::optional<Query>> next() { return produce(*this); }

private:
    static asio::awaitable<std::optional<Query>> produce(LateArrival& arrival) {
        if (arrival.delivered == 1) {
            VirtualTimer timer(co_await asio::this_coro::executor, 1s);
            co_await timer.async_wait(asio::bind_cancellation_slot(asio::cancellation_slot(), asio::deferred));
        }
        co_return test::make_query(arrival.delivered++);
    }
};

}  // namespace

TEST_CASE("drain: what a source hands over after the grace, while no place is free, is in the report",
          "[drain][source][stream]") {
    Office office(1, StageOptions{.retry = test::retries(1, 100ms)});
    office.first.failures["t0"] = 1;
    LateArrival source;
    auto stream = office.pipeline.process_stream(source);
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream.next(); });
    test::run_until(office.context, 50ms);  // the first query is in a backoff, and the second is awaited
    item.cancel();
    test::run_until(office.context, 500ms);  // nobody has taken the result of the first, which keeps its place
    auto report = office.drain(100ms);
    office.run();
    CHECK(is(report.value(), 0, 0, 0, 1));
    REQUIRE(report.value().checkpoints.size() == 1);
    CHECK(report.value().checkpoints[0].query.id == "q1");
}

TEST_CASE("drain: what a source hands over within the grace does not begin", "[drain][source]") {
    Office office;
    LateArrival source;
    Task<std::vector<NoteResult>> batch(office.context.get_executor(),
                                        [&] { return office.pipeline.process_batch(source); });
    test::run_until(office.context, 500ms);  // the first query has completed, and the second is awaited
    auto report = office.drain(1h);
    CHECK(office.run() == 500ms);
    REQUIRE(batch.succeeded());
    REQUIRE(batch.value().size() == 2);
    CHECK(batch.value()[0].completed);
    CHECK(batch.value()[1].unfinished);
    CHECK(office.first.calls() == 1);
    CHECK(is(report.value(), 0, 0, 0, 1));
}

TEST_CASE("drain: it does not wait for a consumer whose results hold the places", "[drain][stream]") {
    Office office(1, StageOptions{.retry = test::retries(1, 50ms)});
    office.first.failures["t0"] = 1;
    office.second.latency = 10ms;
    auto stream = office.pipeline.process_stream(test::make_queries(2));
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream.next(); });
    test::poll(office.context);
    item.cancel();
    test::run_until(office.context, 100ms);  // the second result holds the place, for which the first query waits
    CHECK(office.first.calls() == 2);
    auto report = office.drain(25s);
    test::run_until(office.context, 200ms);
    REQUIRE(report.succeeded());
    CHECK(is(report.value(), 1, 0, 0, 0));
    CHECK(report.value().checkpoints.empty());
}

TEST_CASE("drain: of a batch that was cancelled before, or a stream that was closed, nothing is left",
          "[drain][cancellation]") {
    const bool streams = GENERATE(false, true);
    Office office;
    office.first.clean_up = 10ms;
    auto stream = office.pipeline.process_stream(test::make_queries(6));
    Task<> work(office.context.get_executor(), [&]() -> asio::awaitable<void> {
        if (streams) {
            co_await stream.next();
        } else {
            std::vector<Query> queries = test::make_queries(6);
            co_await office.pipeline.process_batch(std::move(queries));
        }
    });
    test::run_until(office.context, 5ms);
    Task<> closed(office.context.get_executor(), [&] { return stream.close(); });
    if (!streams) {
        work.cancel();
    }
    test::run_until(office.context, 6ms);  // what ran is being cleaned up
    auto report = office.drain(1h);
    CHECK(office.run() == 9ms);
    CHECK(is(report.value(), 0, 0, 2, 0));
    CHECK(report.value().checkpoints.empty());
}

TEST_CASE("drain: of a batch that is cancelled too, the report has the rest of what it owned",
          "[drain][cancellation]") {
    Office office(2);
    Task<std::vector<NoteResult>> batch(office.context.get_executor(),
                                        [&] { return office.pipeline.process_batch(test::make_queries(5)); });
    test::run_until(office.context, 15ms);
    auto report = office.drain(1h);
    test::poll(office.context);
    batch.cancel();
    office.run();
    CHECK(batch.aborted());
    CHECK(is(report.value(), 0, 0, 2, 0));
    std::vector<std::string> rest;
    for (const auto& checkpoint : report.value().checkpoints) {
        rest.push_back(checkpoint.query.id.str());
    }
    CHECK(rest == std::vector<std::string>{"q2", "q3", "q4"});
}

TEST_CASE("drain: a stream that was closed before is not read", "[drain][stream]") {
    Office office(2);
    int read = 0;
    const auto counts = [&read](const Query& query) {
        ++read;
        return query;
    };
    auto stream = office.pipeline.process_stream(test::make_queries(5), counts);
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream.next(); });
    test::run_until(office.context, 15ms);
    Task<> closed(office.context.get_executor(), [&] { return stream.close(); });
    auto report = office.drain(1h);
    office.run();
    CHECK(closed.succeeded());
    CHECK(is(report.value(), 0, 0, 2, 0));
    CHECK(report.value().checkpoints.empty());
    CHECK(read == 2);
}

TEST_CASE("drain: a projection may begin the stream whose rest it hands over", "[drain][stream]") {
    Office office(2);
    std::optional<Office::Pipeline::Stream> stream;
    std::optional<Task<std::optional<sluice::StreamItem<NoteResult>>>> item;
    const auto begins = [&](const Query& query) {
        if (!item) {
            item.emplace(office.context.get_executor(), [&] { return stream->next(); });
        }
        return query;
    };
    stream.emplace(office.pipeline.process_stream(test::make_queries(3), begins));
    auto report = office.drain(1h);
    CHECK(office.run() == 0ms);
    REQUIRE(item);
    CHECK(item->succeeded());
    CHECK(is(report.value(), 0, 0, 0, 0));
    CHECK(report.value().checkpoints.size() == 3);
}

TEST_CASE("drain: of a stream that is closed or destroyed meanwhile, the report has the rest of what it owned",
          "[drain][stream]") {
    enum class Drained { pipeline, stream };
    const Drained drained = GENERATE(Drained::pipeline, Drained::stream);
    const bool closes = GENERATE(false, true);
    Office office(2);
    std::optional stream = office.pipeline.process_stream(test::make_queries(5));
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream->next(); });
    test::run_until(office.context, 15ms);
    Task<Report> report(office.context.get_executor(),
                        [&] { return drained == Drained::pipeline ? office.pipeline.drain(1h) : stream->drain(1h); });
    test::poll(office.context);
    std::optional<Task<>> closed;
    if (closes) {
        closed.emplace(office.context.get_executor(), [&] { return stream->close(); });
    } else {
        stream.reset();
    }
    CHECK(office.run() == 0ms);
    CHECK((!closed || closed->succeeded()));
    CHECK(is(report.value(), 0, 0, 2, 0));
    std::vector<std::string> rest;
    for (const auto& checkpoint : report.value().checkpoints) {
        rest.push_back(checkpoint.query.id.str());
    }
    CHECK(rest == std::vector<std::string>{"q2", "q3", "q4"});
}

TEST_CASE("drain: the checkpoints of a stream whose report nobody has received are in that of its pipeline",
          "[drain][stream]") {
    Office office(2);
    std::optional stream = office.pipeline.process_stream(test::make_queries(3));
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream->next(); });
    test::run_until(office.context, 15ms);
    Task<Report> of_stream(office.context.get_executor(), [&] { return stream->drain(0ms); });
    test::step(office.context);
    of_stream.cancel();
    office.run();
    CHECK(of_stream.aborted());
    stream.reset();
    auto of_pipeline = office.drain(0ms);
    office.run();
    CHECK(of_pipeline.value().checkpoints.size() == 3);
}

TEST_CASE("drain: of a stream or its pipeline, a range that was passed by reference stays where it stands",
          "[drain][stream]") {
    Office office(2);
    const bool whole_pipeline = GENERATE(false, true);
    const auto queries = test::make_queries(5);
    int read = 0;
    const auto counts = [&read](const Query& query) {
        ++read;
        return query;
    };
    auto stream = office.pipeline.process_stream(queries, counts);
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream.next(); });
    test::run_until(office.context, 115ms);  // two have ended, and the third has begun
    REQUIRE(item.succeeded());
    Task<Report> report(office.context.get_executor(),
                        [&] { return whole_pipeline ? office.pipeline.drain(20ms) : stream.drain(20ms); });
    office.run();
    CHECK(is(report.value(), 0, 0, 0, 1));
    REQUIRE(report.value().checkpoints.size() == 1);
    CHECK(report.value().checkpoints[0].query.id == "q2");
    CHECK(report.value().checkpoints[0].record.first == "first(t2)");
    CHECK(read == 3);
}

TEST_CASE("drain: of a stream again, it has the same numbers and can only shorten the grace", "[drain][stream]") {
    Office office(2);
    auto stream = office.pipeline.process_stream(test::make_queries(3));
    const auto drain = [&](std::chrono::nanoseconds grace) {
        return Task<Report>(office.context.get_executor(), [&stream, grace] { return stream.drain(grace); });
    };
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream.next(); });
    test::run_until(office.context, 5ms);
    auto first = drain(50ms);
    test::poll(office.context);
    SECTION("with a shorter grace") {
        auto shorter = drain(20ms);
        CHECK(office.run() == 20ms);
        CHECK(shorter.value().checkpoints.empty());
    }
    SECTION("with a longer one") {
        auto longer = drain(1h);
        CHECK(office.run() == 50ms);
        CHECK(longer.value().checkpoints.empty());
    }
    SECTION("after its end") { CHECK(office.run() == 50ms); }
    CHECK(is(first.value(), 0, 0, 0, 2));
    CHECK(first.value().checkpoints.size() == 3);
    auto again = drain(1h);
    CHECK(office.run() == 0ms);
    CHECK(is(again.value(), 0, 0, 0, 2));
    CHECK(again.value().checkpoints.empty());
}

TEST_CASE("drain: cancelling the wait for that of a stream stops neither the drain nor its grace",
          "[drain][stream][cancellation]") {
    Office office(2);
    auto stream = office.pipeline.process_stream(test::make_queries(3));
    Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                             [&] { return stream.next(); });
    test::run_until(office.context, 5ms);
    Task<Report> first(office.context.get_executor(), [&] { return stream.drain(50ms); });
    test::poll(office.context);
    first.cancel();
    test::poll(office.context);
    CHECK(first.aborted());
    CHECK(office.first.running == 2);  // the grace goes on
    CHECK(office.run() == 50ms);
    CHECK_FALSE(item.value());
    Task<Report> second(office.context.get_executor(), [&] { return stream.drain(1h); });
    CHECK(office.run() == 0ms);
    CHECK(is(second.value(), 0, 0, 0, 2));
    CHECK(second.value().checkpoints.size() == 3);
}

TEST_CASE("drain: of one of two pipelines that share an endpoint and stages, the other completes its queries",
          "[drain]") {
    Model first{"first", 10ms};
    Model second{"second", 10ms};
    test::DeadLetters sink;
    asio::io_context context(1);
    const auto executor = timed(context.get_executor());
    const sluice::Endpoint shared(executor, "shared", sluice::EndpointOptions{.limit = 1});
    const StageOptions options{.retry = test::retries(1, 15ms)};
    const NoteRoute route{NoteStage(shared, "first", NoteModel{&first}, options),
                          NoteStage(shared, "second", NoteModel{&second}, options)};
    const auto grace = GENERATE(0ms, 5ms, 35ms);
    test::for_every_step([&](test::Steps& steps) {
        first.failures["a"] = first.failures["t0"] = 1;
        Office::Pipeline drained(executor, route, sink, 9);
        Office::Pipeline other(executor, route, sink, 9);
        Task<NoteResult> a(context.get_executor(), [&] { return drained.process_one(Query("a", "a")); });
        Task<std::vector<NoteResult>> others(context.get_executor(),
                                             [&] { return other.process_batch(test::make_queries(2)); });
        Task<NoteResult> b(context.get_executor(), [&] { return drained.process_one(Query("b", "b")); });
        test::poll(context);
        steps.take(context);
        std::size_t in_work = 2;
        Task<Report> report(context.get_executor(), [&] {
            in_work -= static_cast<std::size_t>(a.done()) + static_cast<std::size_t>(b.done());
            return drained.drain(grace);
        });
        sluice::testing::run(context);
        REQUIRE(report.succeeded());
        CHECK(report.value().completed + report.value().unfinished == in_work);
        CHECK(a.value().completed + a.value().unfinished == 1);
        CHECK(b.value().completed + b.value().unfinished == 1);
        REQUIRE(others.succeeded());
        CHECK(std::ranges::all_of(others.value(), [](const auto& result) { return result.completed; }));
        CHECK(shared.active() == 0);
        CHECK(shared.waiting() == 0);
    });
    CHECK(sink.letters.empty());
}

TEST_CASE("drain: while a stream is being closed, and when a consumer is gone, all that was in work is accounted for",
          "[drain][stream][stress]") {
    enum class Leaves { closes, destroys, waits_no_more };
    const Leaves leaves = GENERATE(Leaves::closes, Leaves::destroys, Leaves::waits_no_more);
    const bool drained_first = GENERATE(false, true);
    const auto grace = GENERATE(0ms, 15ms, 1000ms);
    test::for_every_step([&](test::Steps& steps) {
        Office office(2);
        office.second.latency = 20ms;
        office.first.clean_up = office.second.clean_up = 5ms;
        std::optional stream = office.pipeline.process_stream(test::make_queries(5));
        Task<std::optional<sluice::StreamItem<NoteResult>>> item(office.context.get_executor(),
                                                                 [&] { return stream->next(); });
        test::poll(office.context);
        std::optional<Task<>> closed;
        std::optional<Task<Report>> report;
        std::size_t in_work = 0;
        bool draining = false;
        bool left_first = false;
        bool left_meanwhile = false;
        const auto leave = [&] {
            left_first = !draining;
            left_meanwhile = draining || leaves == Leaves::closes;  // which begins later
            if (leaves == Leaves::closes) {
                closed.emplace(office.context.get_executor(), [&] { return stream->close(); });
            } else if (leaves == Leaves::destroys) {
                stream.reset();
            } else {
                item.cancel();
            }
        };
        const auto drain = [&] {
            report.emplace(office.context.get_executor(), [&] {
                draining = true;
                in_work = static_cast<std::size_t>(office.first.running + office.second.running);
                return office.pipeline.drain(grace);
            });
        };
        test::run_until(office.context, 5ms);
        drained_first ? drain() : leave();
        steps.take(office.context);
        drained_first ? leave() : drain();
        sluice::testing::run_until_stalled(office.context);
        REQUIRE(report->succeeded());
        const Report& found = report->value();
        CHECK((!closed || closed->succeeded()));
        CHECK(found.completed + found.dead + found.cancelled + found.unfinished == in_work);
        CHECK(found.dead == 0);
        if (leaves == Leaves::waits_no_more) {
            CHECK(found.cancelled == 0);
            CHECK(office.second.finished.size() + found.checkpoints.size() == 5);
        } else if (drained_first && left_meanwhile) {
            CHECK(office.second.finished.size() + found.cancelled + found.checkpoints.size() == 5);
        } else {  // what was cancelled before the end of the grace is cancelled, even if it ends later
            CHECK(found.cancelled == (left_first || grace != 0ms ? in_work : 0));
            CHECK(found.checkpoints.size() == found.unfinished);  // the rest of the input went with the stream
        }
        CHECK(office.route.first.endpoint().active() + office.route.second.endpoint().active() == 0);
    });
}
