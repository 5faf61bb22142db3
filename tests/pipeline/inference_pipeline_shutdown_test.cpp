// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/inference_pipeline.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/pipeline_runs.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <cstddef>
#include <deque>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using test::idle;
using test::is_complete;
using test::make_queries;
using test::make_query;
using test::Rig;
using test::run_until;
using test::Source;
using test::start_batch;
using test::start_one;
using test::Task;
using Result = Rig<>::Result;
using Results = Rig<>::Results;
using Strings = std::vector<std::string>;

TEST_CASE("pipeline: queries that wait for a stage when it is closed, or reach it later, are dead letters",
          "[pipeline][shutdown]") {
    Rig<> rig;
    auto pipeline = rig.pipeline({2, 1, 1});
    const auto queries = make_queries(4);
    auto task = start_batch(rig.context, pipeline, queries);
    run_until(rig.context, 60ms);  // q0 is in extract, q1 waits for it
    pipeline.extract().endpoint().close();
    rig.run();
    REQUIRE(task.succeeded());
    CHECK(is_complete(task.value()[0]));
    CHECK(test::ids(rig.dead_letters.letters) == Strings{"q1", "q2", "q3"});
    CHECK(rig.dead_letters.letters[0].reason.attempts == 0);
    CHECK(idle(pipeline));
}

TEST_CASE("pipeline: it may be destroyed while its operations run, or before they begin", "[pipeline][shutdown]") {
    const bool begun = GENERATE(false, true);
    Rig<> rig;
    rig.extract.failures["t1"] = 1;
    std::optional<Rig<>::Pipeline> pipeline(rig.pipeline({2, 2, 1}));
    auto one = start_one(rig.context, *pipeline, make_query(0));
    asio::awaitable<Rig<>::Results> batch = pipeline->process_batch(make_queries(3));
    Task<Rig<>::Results> all(rig.context.get_executor(), [&] { return std::move(batch); });
    if (begun) {
        run_until(rig.context, 60ms);
    } else {
        test::steps(rig.context, 2);
    }
    pipeline.reset();
    rig.run();
    CHECK(is_complete(one.value()));
    REQUIRE(all.succeeded());
    CHECK(all.value().size() == 3);
    CHECK(rig.dead_letters.letters.size() == 1);
}

TEST_CASE("pipeline: the context may be destroyed at any step, before or after the pipeline",
          "[pipeline][shutdown][stress]") {
    const bool context_first = GENERATE(false, true);
    const bool batch = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        test::DestructibleRig rig;
        Source source(5);
        std::deque<Task<Results>> batches;
        std::deque<Task<Result>> ones;
        if (batch) {
            batches.push_back(start_batch(*rig.context, *rig.pipeline, source));
        } else {
            for (std::size_t i = 0; i != 4; ++i) {
                ones.push_back(start_one(*rig.context, *rig.pipeline, make_query(i)));
            }
        }
        steps.take(*rig.context);
        if (context_first) {
            rig.context.reset();
            CHECK(idle(*rig.pipeline));
        } else {
            rig.pipeline.reset();
            rig.context.reset();
        }
        CHECK(rig.models.running() == 0);
    });
}
