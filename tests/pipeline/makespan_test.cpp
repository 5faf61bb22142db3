// SPDX-License-Identifier: BSL-1.0
// A batch takes as long, to the nanosecond, as an independent simulation of first-in-first-out stages says.
#include "support/fifo_simulation.hpp"
#include "support/task.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <map>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using test::Attempt;
using test::random_script;
using test::Script;
using test::simulate;
using test::Time;

struct Forget {
    void put(const sluice::Query&, const sluice::StageResult<>&) {}
};

Time run(const Script& script) {
    asio::io_context context;
    std::array<std::map<std::string, std::size_t>, 3> attempts;
    const auto model = [&](std::size_t stage, std::string text) -> asio::awaitable<int> {
        const Attempt attempt = script.queries[std::stoul(text)][stage][attempts[stage][text]++];
        co_await test::sleep(std::chrono::nanoseconds(attempt.duration));
        if (attempt.fails) {
            throw std::runtime_error("scripted");
        }
        co_return 0;
    };
    Forget sink;
    const std::chrono::nanoseconds backoff(script.backoff);
    const sluice::StageOptions stage{
        .retry = {.max_retries = script.retries,
                  .backoff = {.initial = backoff, .multiplier = 1, .cap = backoff, .jitter = 0}}};
    const sluice::InferencePipelineOptions options{
        .classify = stage, .extract = stage, .generate = stage, .window = static_cast<std::ptrdiff_t>(script.window)};
    sluice::InferencePipeline pipeline(
        sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor()),
        [&](const std::string& text) { return model(0, text); },
        [&](const std::string& text) { return model(1, text); },
        [&](int, int, const std::string& text) { return model(2, text); },
        sluice::StageLimits{script.limits[0], script.limits[1], script.limits[2]}, sink, options);
    std::vector<sluice::Query> queries;
    for (std::size_t i = 0; i < script.queries.size(); ++i) {
        queries.emplace_back(std::to_string(i), std::to_string(i));
    }
    test::Task<std::size_t> task(context.get_executor(), [&]() -> asio::awaitable<std::size_t> {
        co_return (co_await pipeline.process_batch(queries)).size();
    });
    const auto makespan = sluice::testing::run(context);
    REQUIRE(task.succeeded());
    return makespan.count();
}

TEST_CASE("makespan: it equals that of a simulation of first-in-first-out stages, to the nanosecond",
          "[pipeline][makespan]") {
    const bool failures = GENERATE(false, true);
    const int retries = GENERATE(0, 2);
    const bool windowed = GENERATE(false, true);
    CAPTURE(failures, retries, windowed);
    for (std::uint64_t seed = 0; seed < 200; ++seed) {
        const Script script = random_script(seed, 50, failures, retries, windowed);
        const Time simulated = simulate(script);
        const Time measured = run(script);
        if (measured != simulated) {
            FAIL("seed " << seed << ": " << measured << " ns, simulated " << simulated << " ns");
        }
    }
    SUCCEED();
}

TEST_CASE("makespan: the same seed produces the same makespan", "[pipeline][makespan]") {
    const Script script = random_script(7, 200, true, 2, true);
    CHECK(run(script) == run(script));
}

TEST_CASE("makespan: the default window costs at most 1 %", "[pipeline][makespan]") {
    const Script all = random_script(3, 2000, true, 2, false);
    const Script windowed = random_script(3, 2000, true, 2, true);
    CHECK(run(windowed) <= run(all) + run(all) / 100);
}

}  // namespace
