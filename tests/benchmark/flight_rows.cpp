// SPDX-License-Identifier: BSL-1.0
// The memory and the time of a query when many are in flight, all asleep in their first model at the same time, or all
// but one waiting for a slot.
#include "allocation_gauge.hpp"
#include "pipelines.hpp"
#include "rows.hpp"

#include <boost/asio/deferred.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>
#include <cstddef>
#include <initializer_list>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

namespace {

/// Sleeps in the first stage, long enough for every query to arrive there.
class SleepingModels {
public:
    using Executor = TypedExecutor;

    explicit SleepingModels(FailurePlan&) {}

    static inline std::chrono::nanoseconds latency{};

    static asio::awaitable<int, Executor> classify(const std::string&) {
        Timer<Executor> timer(co_await asio::this_coro::executor, latency);
        co_await timer.async_wait(asio::deferred);
        co_return 1;
    }
    static asio::awaitable<int, Executor> extract(const std::string&) { co_return 2; }
    static asio::awaitable<int, Executor> generate(int intent, int entities, const std::string&) {
        co_return intent + entities;
    }
};

/// The first query sleeps in the first stage, long enough for every other to arrive there.
class WaitedForModels : public SleepingModels {
public:
    using SleepingModels::SleepingModels;

    static inline bool first = true;

    static asio::awaitable<int, Executor> classify(const std::string& text) {
        if (std::exchange(first, false)) {
            co_return co_await SleepingModels::classify(text);
        }
        co_return 1;
    }
};

Job all_at_once(std::size_t queries) {
    Job job = make_job(queries);
    const auto all = static_cast<std::ptrdiff_t>(queries);
    job.limits = {all, all, all};
    job.window = all;
    return job;
}

void set_latency(const Job& job) {
    SleepingModels::latency = std::chrono::milliseconds(20) + std::chrono::microseconds(6) * job.queries->size();
}

template <class Models>
double bytes_per_query(typename Ways<Models, AllocationGauge>::Way way, const Job& job) {
    set_latency(job);
    WaitedForModels::first = true;
    AllocationGauge gauge;
    run<Models>(way, job, gauge);
    return static_cast<double>(gauge.peak_bytes()) / static_cast<double>(job.queries->size());
}

double time_per_query(Ways<SleepingModels, StopWatch>::Way way, const Job& job) {
    set_latency(job);
    StopWatch watch;
    run<SleepingModels>(way, job, watch);
    return watch.per(job.queries->size());
}

/// Of fewer, what a batch needs once counts too much.
Bound most_bytes(const Job& job, double most) { return at_most(job.queries->size() < 1000 ? 2 * most : most); }

Row bytes(const std::string& size, const Job& job) {
    using W = Ways<SleepingModels, AllocationGauge>;
    return {
        "bytes of a query in flight, " + size + " asleep",
        "bytes",
        {"process_batch", [=] { return bytes_per_query<SleepingModels>(W::batch<>, job); }},
        {{"floor: co_spawn per query, no limits",
          [=] { return bytes_per_query<SleepingModels>(W::co_spawn_per_query, job); }},
         {"process_stream", [=] { return bytes_per_query<SleepingModels>(W::stream, job); }}},
        {{"process_batch itself", [](const Costs& costs) { return costs.at("process_batch"); }, most_bytes(job, 2200)}},
        Row::Kind::count};
}

Row bytes_of_waiting(const std::string& size, Job job) {
    using W = Ways<WaitedForModels, AllocationGauge>;
    job.limits[0] = 1;
    return {
        "bytes of a query in flight, " + size + " waiting for a slot",
        "bytes",
        {"process_batch", [=] { return bytes_per_query<WaitedForModels>(W::batch<>, job); }},
        {{"process_stream", [=] { return bytes_per_query<WaitedForModels>(W::stream, job); }}},
        {{"process_batch itself", [](const Costs& costs) { return costs.at("process_batch"); }, most_bytes(job, 1700)}},
        Row::Kind::count};
}

Row time(const std::string& size, const Job& job) {
    using W = Ways<SleepingModels, StopWatch>;
    return {"time of a query in flight, " + size + " asleep",
            "ns/query",
            {"process_batch", [=] { return time_per_query(W::batch<>, job); }},
            {{"floor: co_spawn per query, no limits", [=] { return time_per_query(W::co_spawn_per_query, job); }},
             {"process_stream", [=] { return time_per_query(W::stream, job); }}}};
}

}  // namespace

std::vector<Row> flight_rows(const Settings& settings) {
    std::vector<Row> rows;
    for (const std::size_t queries : std::initializer_list<std::size_t>{10, 1000, 100'000, 300'000}) {
        const Job job = all_at_once(queries <= 1000 ? queries : settings.size(queries));
        const std::string size = std::to_string(queries);
        rows.push_back(bytes(size, job));
        rows.push_back(bytes_of_waiting(size, job));
        rows.push_back(time(size, job));
    }
    return rows;
}

}  // namespace benchmark
