// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/inference_pipeline.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/pipeline_runs.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::InferencePipeline;
using sluice::Query;
using test::Endpoint;
using test::idle;
using test::InferencePipelineOptions;
using test::is_complete;
using test::is_partial;
using test::make_queries;
using test::make_query;
using test::retries;
using test::Rig;
using test::run_until;
using test::SlowDeadLetters;
using test::Source;
using test::StageOptions;
using test::start_batch;
using test::start_one;
using test::with_window;
using Strings = std::vector<std::string>;

TEST_CASE("pipeline: operation_aborted from a model that was not cancelled is a failure", "[pipeline][cancellation]") {
    Rig<> rig;
    const auto extract = [](const std::string& text) -> asio::awaitable<std::string> {
        co_await test::yield();
        if (text == "t1") {
            throw boost::system::system_error(asio::error::operation_aborted);
        }
        co_return text;
    };
    InferencePipeline pipeline(test::timed(rig.context.get_executor()), Endpoint{&rig.classify}, extract,
                               Endpoint{&rig.generate}, {3, 3, 3}, rig.dead_letters, InferencePipelineOptions{});
    const auto queries = make_queries(3);
    auto task = start_batch(rig.context, pipeline, queries);
    rig.run();
    REQUIRE(task.succeeded());
    CHECK(task.value()[0].completed);
    CHECK(is_partial(task.value()[1], 1));
    CHECK(task.value()[2].completed);
    CHECK(test::ids(rig.dead_letters.letters) == Strings{"q1"});
}

TEST_CASE("pipeline: a query that is cancelled in a stage is no dead letter", "[pipeline][cancellation]") {
    const int stage = GENERATE(0, 1, 2);
    const auto type = test::any_cancellation();
    const bool queued = GENERATE(false, true);
    Rig<> rig;
    auto pipeline = rig.pipeline({1, 1, 1}, test::every_stage(StageOptions{.retry = retries(5)}));
    auto endpoint = stage == 0   ? pipeline.classify().endpoint()
                    : stage == 1 ? pipeline.extract().endpoint()
                                 : pipeline.generate().endpoint();
    endpoint.set_limit(queued ? 0 : 1);
    auto task = start_one(rig.context, pipeline, make_query(0));
    const std::chrono::nanoseconds when[] = {25ms, 100ms, 400ms};
    run_until(rig.context, when[stage]);
    CHECK(rig.model(stage).running == (queued ? 0 : 1));
    task.cancel(type);
    CHECK(rig.run() == 0ms);
    CHECK(task.aborted());
    CHECK(rig.running() == 0);
    CHECK(rig.dead_letters.letters.empty());
    CHECK(rig.calls() == stage + (queued ? 0 : 1));
    CHECK(idle(pipeline));
}

TEST_CASE("pipeline: a cancelled batch starts no further query and cancels those that run",
          "[pipeline][cancellation]") {
    const auto type = test::any_cancellation();
    Rig<> rig;
    rig.classify.failures["t1"] = 1;
    auto pipeline = rig.pipeline({4, 3, 2});
    Source source(test::endless);
    auto task = start_batch(rig.context, pipeline, source);
    auto other = start_one(rig.context, pipeline, Query("other", "other"));
    run_until(rig.context, 2s);
    const int calls = rig.calls() - static_cast<int>(std::ranges::count(rig.generate.begun, "other"));
    const std::size_t made = source.made;
    CHECK(rig.running() > 0);
    task.cancel(type);
    rig.run();
    CHECK(task.aborted());
    CHECK(rig.calls() - static_cast<int>(std::ranges::count(rig.generate.begun, "other")) == calls);
    CHECK(source.made == made);
    CHECK(rig.running() == 0);
    CHECK(idle(pipeline));
    CHECK(test::ids(rig.dead_letters.letters) == Strings{"q1"});  // it failed before the cancellation
    CHECK(is_complete(other.value()));                            // it belongs to another call
}

TEST_CASE("pipeline: a cancelled batch waits until its queries have cleaned up", "[pipeline][cancellation]") {
    Rig<> rig;
    rig.generate.clean_up = 30ms;
    auto pipeline = rig.pipeline();
    const auto queries = make_queries(7);
    auto task = start_batch(rig.context, pipeline, queries);
    run_until(rig.context, 300ms);
    CHECK(rig.generate.running == 5);
    task.cancel();
    run_until(rig.context, 329ms);
    CHECK_FALSE(task.done());
    CHECK(pipeline.generate().endpoint().active() == 5);
    CHECK(rig.run() == 1ms);
    CHECK(task.aborted());
    CHECK(rig.generate.calls() == 5);
    CHECK(idle(pipeline));
}

TEST_CASE("pipeline: a dead letter that is being put when its query is cancelled is put", "[pipeline][cancellation]") {
    const auto type = test::any_cancellation();
    test::Rig<SlowDeadLetters> rig;
    rig.classify.failures["t0"] = 1;
    SECTION("process_one returns its result") {
        auto pipeline = rig.pipeline();
        auto task = start_one(rig.context, pipeline, make_query(0));
        run_until(rig.context, 60ms);
        task.cancel(type);
        CHECK(rig.run() == 30ms);
        REQUIRE(task.succeeded());
        CHECK(is_partial(task.value(), 0));
        CHECK_FALSE(task.value().dead_letter_error);
    }
    SECTION("process_batch waits for it") {
        auto pipeline = rig.pipeline();
        const auto queries = make_queries(3);
        auto task = start_batch(rig.context, pipeline, queries);
        run_until(rig.context, 60ms);
        task.cancel(type);
        CHECK(rig.run() == 30ms);
        CHECK(task.aborted());
        CHECK(idle(pipeline));
    }
    CHECK(test::ids(rig.dead_letters.letters) == Strings{"q0"});
}

namespace {

// After a cancellation: each of the queries taken from the range ended in exactly one way.
template <class R>
void check_ends(R& rig, std::size_t taken) {
    const Strings dead = test::ids(rig.dead_letters.letters);
    CHECK(test::all_different(dead));
    CHECK(test::all_different(rig.generate.finished));
    std::size_t cancelled = taken;
    for (const std::string& text : rig.generate.finished) {
        CHECK(std::ranges::count(dead, "q" + text.substr(1)) == 0);
        --cancelled;
    }
    for (const auto& letter : rig.dead_letters.letters) {
        CHECK(letter.reason.error.type() == "std::runtime_error");
        --cancelled;
    }
    CHECK(cancelled <= taken);  // it did not wrap around
    CHECK(rig.running() == 0);
}

template <class Sink>
void cancel_batch_at_every_step() {
    test::for_every_step([&](test::Steps& steps) {
        test::Rig<Sink> rig;
        rig.classify.failures["t0"] = 9;
        rig.extract.failures["t2"] = 9;
        rig.generate.failures["t3"] = 9;
        rig.generate.failures["t4"] = 1;
        auto options = with_window(4);
        options.generate.retry = retries(1, 10ms);
        options.extract.timeout = 151ms;
        auto pipeline = rig.pipeline({2, 2, 1}, options);
        Source source(8);
        auto task = start_batch(rig.context, pipeline, source);
        test::step(rig.context);
        steps.take(rig.context);
        const int calls = rig.calls();
        const std::size_t made = source.made;
        const std::size_t letters = rig.dead_letters.letters.size();
        const bool done = task.done();
        task.cancel();
        rig.run();
        REQUIRE(task.done());
        if (task.succeeded()) {  // the cancellation came too late
            CHECK(made == 8);
            CHECK(task.value().size() == rig.generate.finished.size() + letters);
        } else {
            CHECK(task.aborted());
            CHECK_FALSE(done);
        }
        CHECK(idle(pipeline));
        CHECK(rig.calls() == calls);
        CHECK(source.made == made);
        check_ends(rig, made);
        if constexpr (requires { rig.dead_letters.begun; }) {
            CHECK(rig.dead_letters.letters.size() == static_cast<std::size_t>(rig.dead_letters.begun));
        } else {
            CHECK(rig.dead_letters.letters.size() == letters);
        }
        // The pipeline still works.
        auto again = start_one(rig.context, pipeline, make_query(7));
        rig.run();
        CHECK(is_complete(again.value()));
    });
}

template <class Sink>
void cancel_one_at_every_step(int failing) {
    test::for_every_step([&](test::Steps& steps) {
        test::Rig<Sink> rig;
        if (failing >= 0) {
            rig.model(failing).failures["t0"] = 2;
        }
        auto pipeline =
            rig.pipeline({1, 1, 1}, test::every_stage(StageOptions{.timeout = 1s, .retry = retries(1, 10ms)}));
        auto task = start_one(rig.context, pipeline, make_query(0));
        test::step(rig.context);
        steps.take(rig.context);
        task.cancel();
        rig.run();
        REQUIRE(task.done());
        CHECK(idle(pipeline));
        CHECK(rig.running() == 0);
        const std::size_t letters = rig.dead_letters.letters.size();
        if (task.succeeded()) {
            CHECK(letters == (task.value().completed ? 0 : 1));
            CHECK((failing < 0 ? is_complete(task.value()) : is_partial(task.value(), failing)));
        } else {
            CHECK(task.aborted());
            CHECK(letters == 0);
        }
    });
}

}  // namespace

TEST_CASE("pipeline: a batch cancelled at any step returns every slot, leaves no work behind and loses no query",
          "[pipeline][cancellation][stress]") {
    SECTION("plain sink") { cancel_batch_at_every_step<test::DeadLetters>(); }
    SECTION("awaitable sink") { cancel_batch_at_every_step<SlowDeadLetters>(); }
}

TEST_CASE("pipeline: a query cancelled at any step is completed, a dead letter, or cancelled",
          "[pipeline][cancellation][stress]") {
    const int failing = GENERATE(-1, 0, 1, 2);
    SECTION("plain sink") { cancel_one_at_every_step<test::DeadLetters>(failing); }
    SECTION("awaitable sink") { cancel_one_at_every_step<SlowDeadLetters>(failing); }
}
