// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/stage.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/stage_bench.hpp"
#include "support/task.hpp"

#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <deque>
#include <memory>
#include <string>
#include <utility>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using test::Endpoint;
using test::Model;
using test::retries;
using test::run_until;
using test::StageOptions;
using test::VirtualTimer;
using Bench = test::StageBench;
using Run = test::StageRun;

TEST_CASE("stage: closing the endpoint fails runs that wait for a slot, and not those that hold one",
          "[stage][shutdown]") {
    Bench bench(1, StageOptions{.retry = retries(3, 1ms)});
    Run a = bench.start("a");
    Run b = bench.start("b");
    run_until(bench.context, 3ms);
    bench.stage.endpoint().close();
    bench.run();
    CHECK(a.value().success);
    REQUIRE(b.succeeded());
    CHECK_FALSE(b.value().success);
    CHECK(b.value().attempts == 0);
    CHECK(b.value().queue_time == 3ms);
    CHECK(b.value().latency == 0ms);
    CHECK(b.value().error.type() == "boost::system::system_error");
    CHECK(b.value().error.message().starts_with("the endpoint was closed"));

    Run c = bench.start("c");
    bench.run();
    REQUIRE(c.succeeded());
    CHECK_FALSE(c.value().success);
    CHECK(c.value().attempts == 0);
    CHECK(c.value().error);
    CHECK(bench.model.calls() == 1);
    CHECK(bench.idle());
}

TEST_CASE("stage: a cancellation in a backoff is reported even if the handle to the stage is gone",
          "[stage][shutdown]") {
    struct : sluice::Observer {
        int cancelled = 0;
        void on_finished(const sluice::StageResult<>&, Outcome outcome, Event) noexcept override {
            cancelled += outcome == Outcome::cancelled;
        }
    } observer;
    asio::io_context context;
    Model model{"model", 1ms};
    model.failures["a"] = 9;
    StageOptions options{.retry = retries(3, 10ms)};
    options.observer = &observer;
    auto stage = std::make_unique<sluice::Stage<Endpoint, VirtualTimer>>(test::timed(context.get_executor()), "s", 1,
                                                                         Endpoint{&model}, options);
    const std::string text = "a";
    test::Task<sluice::StageResult<std::string>> query(context.get_executor(), [&] { return stage->run("q", text); });
    run_until(context, 5ms);
    stage.reset();
    query.cancel();
    sluice::testing::run(context);
    CHECK(query.aborted());
    CHECK(observer.cancelled == 1);
}

TEST_CASE("stage: closing the endpoint during a backoff ends the retries", "[stage][shutdown]") {
    Bench bench(1, StageOptions{.retry = retries(3, 10ms)});
    bench.model.failures["a"] = 9;
    Run a = bench.start("a");
    run_until(bench.context, 15ms);
    bench.stage.endpoint().close();
    CHECK(bench.run() == 5ms);
    REQUIRE(a.succeeded());
    CHECK_FALSE(a.value().success);
    CHECK(a.value().attempts == 1);
    CHECK(a.value().error);
}

TEST_CASE("stage: the context may be destroyed at any step, before or after the stage", "[stage][shutdown][stress]") {
    using Stage = sluice::Stage<Endpoint, VirtualTimer>;
    const bool context_first = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Model model("answer", 5ms);
        model.failures["1"] = 1;
        auto context = std::make_unique<asio::io_context>(1);
        auto stage =
            std::make_unique<Stage>(test::timed(context->get_executor()), "answer", 2, Endpoint{&model},
                                    StageOptions{.timeout = 4ms + 2ms * (steps.count() % 2), .retry = retries(2, 3ms)});
        std::deque<Run> runs;
        for (int i = 0; i != 4; ++i) {
            runs.emplace_back(context->get_executor(), [&s = *stage, i] { return s.run("q", std::to_string(i)); });
        }
        steps.take(*context);
        if (context_first) {
            context.reset();
            CHECK(stage->endpoint().active() == 0);
            CHECK(stage->endpoint().waiting() == 0);
        } else {
            stage.reset();
            context.reset();
        }
        CHECK(model.running == 0);
    });
}
