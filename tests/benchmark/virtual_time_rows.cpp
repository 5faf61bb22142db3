// SPDX-License-Identifier: BSL-1.0
// Batches whose models sleep, in virtual time and by asio::steady_timer.
#include "harness.hpp"
#include "models.hpp"
#include "pipelines.hpp"
#include "rows.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/sync/timed_by.hpp>
#include <sluice/sync/timer.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace benchmark {

namespace {

using sluice::testing::VirtualTimer;

/// Sleeps from 50 to 150 ms, the same for each call with the same text in the same stage.
template <class T>
asio::awaitable<int> sleep(std::uint64_t stage, const std::string& text) {
    const std::uint64_t mixed = (stages * number_of(text) + stage + 1) * 0x9e3779b97f4a7c15;
    co_await sluice::sleep_for<T>(std::chrono::milliseconds(50) +
                                  std::chrono::nanoseconds((mixed >> 20) % 100'000'000));
    co_return 1;
}

template <class T>
double time_per_query(const std::vector<sluice::Query>& queries, std::ptrdiff_t limit) {
    asio::io_context context(1);
    NoDeadLetters dead_letters;
    sluice::InferencePipeline pipeline(
        sluice::timed_by<T>(context.get_executor()), [](const std::string& text) { return sleep<T>(0, text); },
        [](const std::string& text) { return sleep<T>(1, text); },
        [](int, int, const std::string& text) { return sleep<T>(2, text); }, sluice::StageLimits{limit, limit, limit},
        dead_letters);
    std::size_t completed = 0;
    StopWatch watch;
    watch.start();
    asio::co_spawn(context, pipeline.process_batch(queries), [&](std::exception_ptr error, auto results) {
        rethrow(error);
        for (const auto& result : results) {
            completed += result.completed;
        }
    });
    if constexpr (std::is_same_v<T, VirtualTimer>) {
        sluice::testing::run(context);
    } else {
        context.run();
    }
    watch.stop();
    require(completed == queries.size(), "every query completes");
    return watch.per(queries.size());
}

template <class T>
Variant variant(std::string name, std::size_t queries, std::ptrdiff_t limit, std::optional<Bound> bound = {}) {
    return {std::move(name), [=] { return time_per_query<T>(make_queries(queries), limit); }, bound};
}

}  // namespace

std::vector<Row> virtual_time_rows(const Settings& settings) {
    std::vector<Row> rows;
    for (const std::ptrdiff_t limit : {10, 1'000, 100'000}) {
        const std::size_t queries = settings.size(limit == 100'000 ? 200'000 : 50'000);
        Row row{"virtual time: a query whose models sleep, " + std::to_string(limit) + " slots a stage",
                "ns/query",
                variant<VirtualTimer>("sluice", queries, limit),
                {},
                {{"sluice itself", [](const Costs& costs) { return costs.at("sluice"); }}}};
        if (limit != 10) {  // with 10 slots it would take minutes
            row.others = {variant<asio::steady_timer>("steady_timer", queries, limit, at_most(1.2))};
        }
        rows.push_back(std::move(row));
    }
    return rows;
}

}  // namespace benchmark
