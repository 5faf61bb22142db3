// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/result_stream.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/streams.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <iterator>
#include <memory>
#include <optional>
#include <random>
#include <string>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using test::drain;
using test::endless;
using test::first_numbers;
using test::idle;
using test::Indexes;
using test::make_queries;
using test::next;
using test::retries;
using test::Rig;
using test::run_until;
using test::SlowDeadLetters;
using test::sorted;
using test::Source;
using test::start_drain;
using test::Stream;
using test::Task;
using test::with_window;
using Strings = std::vector<std::string>;

TEST_CASE("stream: a consumer that leaves early stops the stream of an endless range", "[stream][cancellation]") {
    Rig<> rig;
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
    const auto other = Task<Rig<>::Result>(rig.context.get_executor(),
                                           [&] { return pipeline.process_one(sluice::Query("other", "other")); });
    rig.run();
    CHECK(consumer.succeeded());
    CHECK(source.made == made);
    CHECK(rig.calls() == calls);
    CHECK(rig.running() == 0);
    CHECK(idle(pipeline));
    CHECK(test::ids(rig.dead_letters.letters) == Strings{"q3"});
    CHECK(other.succeeded());  // it belongs to another call
}

TEST_CASE("stream: queries that are cancelled with their stream are no dead letters", "[stream][cancellation]") {
    Rig<> rig;
    rig.generate.clean_up = 30ms;
    auto pipeline = rig.pipeline({4, 3, 2});
    auto stream = std::make_unique<Stream>(pipeline.process_stream(make_queries(10)));
    auto task = next(rig, *stream);
    run_until(rig.context, 300ms);
    CHECK(rig.generate.running == 2);
    stream.reset();
    run_until(rig.context, 301ms);
    CHECK(pipeline.generate().endpoint().active() == 2);  // until they have cleaned up
    CHECK_FALSE(task.done());
    CHECK(rig.run() == 29ms);
    REQUIRE(task.succeeded());
    CHECK_FALSE(task.value());  // the end
    CHECK(rig.dead_letters.letters.empty());
    CHECK(rig.generate.calls() == 2);
    CHECK(idle(pipeline));
}

TEST_CASE("stream: cancelling the coroutine that owns a stream stops the stream", "[stream][cancellation]") {
    const auto type = test::any_cancellation();
    Rig<> rig;
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

TEST_CASE("stream: close() waits until nothing runs, and discards results that were not taken",
          "[stream][cancellation]") {
    Rig<> rig;
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

TEST_CASE("stream: a close() that is cancelled has still stopped the stream", "[stream][cancellation]") {
    Rig<> rig;
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

TEST_CASE("stream: cancelling next() cancels that wait alone", "[stream][cancellation]") {
    const auto type = test::any_cancellation();
    Rig<> rig;
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
    CHECK(sorted(indexes) == first_numbers(3));
}

TEST_CASE("stream: next() cancelled at any step loses no result", "[stream][cancellation][stress]") {
    const bool another_waits = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Rig<> rig;
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
        steps.take(rig.context);
        impatient.cancel();
        rig.run_until_stalled();
        REQUIRE(impatient.done());
        CHECK((impatient.succeeded() || impatient.aborted()));
        auto rest = start_drain(rig, stream, patient_indexes);
        rig.run();
        CHECK(rest.succeeded());
        CHECK((!patient || patient->succeeded()));
        std::ranges::copy(patient_indexes, std::back_inserter(indexes));
        CHECK(sorted(indexes) == first_numbers(6));
        CHECK(idle(pipeline));
    });
}

TEST_CASE("stream: a wait that is cancelled as its result arrives passes the result on to the next waiter",
          "[stream][cancellation][stress]") {
    test::for_every_step([&](test::Steps& steps) {
        Rig<> rig;
        rig.classify.latency_of = [](const std::string& text) { return text == "t0" ? 50ms : 1h; };
        auto pipeline = rig.pipeline();
        auto stream = pipeline.process_stream(make_queries(2));
        auto first = next(rig, stream);
        auto second = next(rig, stream);
        test::step(rig.context);
        test::step(rig.context);
        steps.take(rig.context);
        first.cancel();
        run_until(rig.context, 1s);
        if (first.aborted() && test::now(rig.context) == 1s) {
            REQUIRE(second.succeeded());  // now, not with the next result
            CHECK(second.value()->index == 0);
        }
        rig.run();
        CHECK(first.done());
        CHECK(second.succeeded());
    });
}

TEST_CASE("stream: a result whose consumer was cancelled as it arrived does not count in the window",
          "[stream][cancellation]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({9, 9, 9}, with_window(1));
    Source source(endless);
    auto stream = pipeline.process_stream(source);
    auto cancelled = next(rig, stream);
    while (source.made != 2) {  // since the first is as good as taken
        REQUIRE(test::step(rig.context));
    }
    REQUIRE_FALSE(cancelled.done());
    cancelled.cancel();
    rig.run_until_stalled();
    CHECK(cancelled.aborted());
    CHECK(source.made == 2);  // the second has run, and its result counts
    CHECK(rig.generate.calls() == 2);
    const auto taken = next(rig, stream);
    rig.run_until_stalled();
    CHECK(taken.succeeded());
    CHECK(source.made == 2);
}

TEST_CASE("stream: assigning to a stream stops its previous work", "[stream][cancellation]") {
    Rig<> rig;
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
    CHECK(sorted(indexes) == first_numbers(2));
}

TEST_CASE("stream: close() waits for a dead letter that is being put", "[stream][cancellation]") {
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
    test::for_every_step([&](test::Steps& steps) {
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
        steps.take(rig.context);
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
        if (how != Leave::close) {  // close() has to be reached first
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
    });
}

}  // namespace

TEST_CASE("stream: a stream left at any step starts no further query and returns every slot",
          "[stream][cancellation][stress]") {
    const auto how = GENERATE(Leave::close, Leave::destroy, Leave::cancel);
    SECTION("plain sink") { leave_at_every_step<test::DeadLetters>(how); }
    SECTION("awaitable sink") { leave_at_every_step<SlowDeadLetters>(how); }
}

TEST_CASE("stream: no result is lost when consumers come and go at random", "[stream][cancellation][stress]") {
    for (unsigned seed = 0; seed != 20; ++seed) {
        std::mt19937 random(seed);
        Rig<> rig;
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
        CHECK(sorted(indexes) == first_numbers(60));
        CHECK(idle(pipeline));
    }
}
