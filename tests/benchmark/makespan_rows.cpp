// SPDX-License-Identifier: BSL-1.0
// The wall-clock time of 50 queries, against a simulation without overhead.
#include "../support/fifo_simulation.hpp"
#include "crew.hpp"
#include "pipelines.hpp"
#include "rows.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>
#include <vector>

namespace benchmark {

namespace {

asio::awaitable<int> sleep(test::Time time) {
    asio::steady_timer timer(co_await asio::this_coro::executor, std::chrono::nanoseconds(time));
    co_await timer.async_wait(asio::deferred);
    co_return 0;
}

double batch_nanoseconds(const test::Script& script) {
    const std::vector<sluice::Query> queries = make_queries(script.queries.size());
    const auto model = [&](std::size_t stage, const std::string& text) {
        return sleep(script.queries[number_of(text)][stage].front().duration);
    };
    asio::io_context context(1);
    NoDeadLetters dead_letters;
    sluice::InferencePipeline pipeline(
        context.get_executor(), [&](const std::string& text) { return model(0, text); },
        [&](const std::string& text) { return model(1, text); },
        [&](int, int, const std::string& text) { return model(2, text); },
        sluice::StageLimits{script.limits[0], script.limits[1], script.limits[2]}, dead_letters);
    std::size_t completed = 0;
    const auto started = std::chrono::steady_clock::now();
    asio::co_spawn(context, pipeline.process_batch(queries), [&](std::exception_ptr error, auto results) {
        rethrow(error);
        for (const auto& result : results) {
            completed += result.completed;
        }
    });
    context.run();
    const std::chrono::duration<double, std::nano> elapsed = std::chrono::steady_clock::now() - started;
    require(completed == queries.size(), "every query completes");
    return elapsed.count();
}

}  // namespace

std::vector<Row> makespan_rows(const Settings& settings) {
    // The latencies of the simulated models of support_pipeline, four times as fast.
    constexpr std::size_t queries = 50;
    test::Script script = test::random_script(7, queries, false, 0, true);
    for (auto& query : script.queries) {
        for (auto& attempts : query) {
            for (test::Attempt& attempt : attempts) {
                attempt.duration /= settings.quick ? 100 : 4;
            }
        }
    }
    // Without a window the queries run in another order, and take more or less time by chance, not by overhead.
    test::Script all_at_once = script;
    all_at_once.window = queries;
    const auto simulated = [](const test::Script& what) {
        return [=] { return static_cast<double>(test::simulate(what)) / 1e6; };
    };
    return {{"wall clock of 50 queries that take their time",
             "ms",
             {"sluice", [=] { return batch_nanoseconds(script) / 1e6; }},
             {{"FIFO simulation", simulated(script), at_most(1.02)},
              {"FIFO simulation without a window", simulated(all_at_once)}},
             {},
             Row::Kind::wall_clock}};
}

}  // namespace benchmark
