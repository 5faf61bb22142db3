// SPDX-License-Identifier: BSL-1.0
// A batch takes as long, to the nanosecond, as an independent simulation of first-in-first-out stages says.
#include "support/task.hpp"

#include <sluice/inference_pipeline.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <map>
#include <queue>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using Time = std::int64_t;  // nanoseconds

struct Attempt {
    Time duration;
    bool fails;
};

// What every attempt of every query in every stage will do.
struct Script {
    std::vector<std::array<std::vector<Attempt>, 3>> queries;
    std::array<std::ptrdiff_t, 3> limits;
    std::size_t window;
    int retries;
    Time backoff;  // the same before every retry
};

Script random_script(std::uint64_t seed, std::size_t queries, bool failures, int retries, bool windowed) {
    std::mt19937_64 random(seed);
    const auto uniform = [&](Time from, Time to) { return std::uniform_int_distribution<Time>(from, to)(random); };
    Script script{{}, {20, 10, 5}, windowed ? 35 : queries, retries, 50'000'123};
    const std::array<std::pair<Time, Time>, 3> latencies{
        {{30'000'000, 80'000'000}, {100'000'000, 200'000'000}, {300'000'000, 700'000'000}}};
    for (std::size_t i = 0; i < queries; ++i) {
        auto& query = script.queries.emplace_back();
        for (std::size_t stage = 0; stage < 3; ++stage) {
            for (int attempt = 0; attempt <= retries; ++attempt) {
                query[stage].push_back(
                    {uniform(latencies[stage].first, latencies[stage].second), failures && uniform(0, 9) == 0});
            }
        }
    }
    return script;
}

// Events in order of time, and of those at the same time in order of their making.
Time simulate(const Script& script) {
    struct Event {
        Time at;
        std::uint64_t sequence;
        std::size_t query;
        bool ends_attempt;  // else: it ends a backoff
        bool operator>(const Event& other) const {
            return std::pair(at, sequence) > std::pair(other.at, other.sequence);
        }
    };
    struct Where {
        std::size_t stage = 0;
        std::size_t attempt = 0;
    };
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events;
    std::array<std::deque<std::size_t>, 3> queues;
    std::array<std::ptrdiff_t, 3> busy{};
    std::vector<Where> where(script.queries.size());
    std::uint64_t sequence = 0;
    std::size_t admitted = 0;
    Time now = 0;

    const auto serve = [&](std::size_t stage) {
        while (busy[stage] < script.limits[stage] && !queues[stage].empty()) {
            const std::size_t query = queues[stage].front();
            queues[stage].pop_front();
            ++busy[stage];
            const Attempt& attempt = script.queries[query][stage][where[query].attempt];
            events.push({now + attempt.duration, sequence++, query, true});
        }
    };
    const auto join = [&](std::size_t query) {
        queues[where[query].stage].push_back(query);
        serve(where[query].stage);
    };
    const auto admit = [&] {
        if (admitted < script.queries.size()) {
            join(admitted++);
        }
    };
    for (std::size_t i = 0; i < script.window; ++i) {
        admit();
    }
    while (!events.empty()) {
        const Event event = events.top();
        events.pop();
        now = event.at;
        Where& at = where[event.query];
        if (!event.ends_attempt) {
            join(event.query);
            continue;
        }
        const std::size_t stage = at.stage;
        const bool failed = script.queries[event.query][stage][at.attempt].fails;
        --busy[stage];
        serve(stage);
        if (failed && at.attempt < static_cast<std::size_t>(script.retries)) {
            ++at.attempt;
            events.push({now + script.backoff, sequence++, event.query, false});
        } else if (failed || stage == 2) {
            admit();
        } else {
            at = {stage + 1, 0};
            join(event.query);
        }
    }
    return now;
}

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
    sluice::BasicPipelineOptions<test::VirtualTimer> options(sluice::BasicStageOptions<test::VirtualTimer>(
        sluice::RetryPolicy(script.retries, sluice::Backoff{.initial = std::chrono::nanoseconds(script.backoff),
                                                            .multiplier = 1,
                                                            .cap = std::chrono::nanoseconds(script.backoff),
                                                            .jitter = 0})));
    options.window = static_cast<std::ptrdiff_t>(script.window);
    sluice::InferencePipeline pipeline(
        context.get_executor(), [&](const std::string& text) { return model(0, text); },
        [&](const std::string& text) { return model(1, text); },
        [&](int, int, const std::string& text) { return model(2, text); },
        sluice::StageLimits{script.limits[0], script.limits[1], script.limits[2]}, sink, std::move(options));
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

TEST_CASE("makespan: that of a simulation of first-in-first-out stages, to the nanosecond", "[pipeline][makespan]") {
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

TEST_CASE("makespan: the same seed gives the same run", "[pipeline][makespan]") {
    const Script script = random_script(7, 200, true, 2, true);
    CHECK(run(script) == run(script));
}

TEST_CASE("makespan: the default window costs next to nothing", "[pipeline][makespan]") {
    const Script all = random_script(3, 2000, true, 2, false);
    const Script windowed = random_script(3, 2000, true, 2, true);
    CHECK(run(windowed) <= run(all) + run(all) / 100);
}

}  // namespace
