// SPDX-License-Identifier: BSL-1.0
#include "peers.hpp"
#include "pipelines.hpp"
#include "rows.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

namespace {

template <class Models>
using TimedWays = Ways<Models, StopWatch>;

/// Nanoseconds per query, over a number of runs.
template <class Models>
double time_per_query(typename TimedWays<Models>::Way way, const Job& job, std::size_t runs = 1) {
    StopWatch watch;
    for (std::size_t i = 0; i < runs; ++i) {
        run<Models>(way, job, watch);
    }
    return watch.per(runs * job.queries->size());
}

template <class Models>
Variant variant(std::string name, typename TimedWays<Models>::Way way, const Job& job,
                std::optional<Bound> bound = {}) {
    return {std::move(name), [=] { return time_per_query<Models>(way, job); }, bound};
}

template <class Executor, Suspends suspends>
Row batch(const std::string& name, const Job& job) {
    using M = Models<Executor, suspends>;
    using W = TimedWays<M>;
    return {"process_batch: " + name,
            "ns/query",
            variant<M>("sluice", W::template batch<>, job),
            {variant<M>("floor: one coroutine, no limits", W::one_coroutine, job),
             variant<M>("channel + co_spawn per query", W::channel_and_co_spawn, job)}};
}

template <Suspends suspends>
Row stream(const std::string& name, const Job& job) {
    using M = Models<TypedExecutor, suspends>;
    using W = TimedWays<M>;
    return {"process_stream: " + name,
            "ns/query",
            variant<M>("sluice", W::stream, job),
            {variant<M>("process_batch", W::template batch<>, job, at_most(1.12))}};
}

void add(Row& row, std::optional<Variant> peer) {
    if (peer) {
        row.others.push_back(*std::move(peer));
    }
}

/// The cost per query at three sizes, less the cost of writing the results alone.
template <Suspends suspends>
Row scaling(const std::string& name, const Settings& settings) {
    using M = Models<TypedExecutor, suspends>;
    using W = TimedWays<M>;
    const std::vector<std::string> sizes{"1,000", "100,000", "1,000,000"};
    const std::vector<std::size_t> counts{1000, settings.size(100'000), settings.size(1'000'000)};
    const auto at = [](const std::string& size) { return "process_batch of " + size; };
    const auto writing = [](const std::string& size) { return "writing " + size + " results alone"; };

    Row row{"cost per query by size: " + name, "ns/query", {}, {}};
    for (std::size_t i = sizes.size(); i-- != 0;) {
        const Job job = make_job(counts[i]);
        const std::size_t runs =
            std::max<std::size_t>(1, counts[1] / counts[i]);  // so that none is too short to be timed
        Variant batch{at(sizes[i]), [=] { return time_per_query<M>(W::template batch<>, job, runs); }};
        if (row.ours.name.empty()) {
            row.ours = std::move(batch);
        } else {
            row.others.push_back(std::move(batch));
        }
        row.others.push_back({writing(sizes[i]), [=] { return time_per_query<M>(W::only_write, job, runs); }});
    }
    row.derived.push_back({"greatest / least, writing taken off",
                           [=](const Costs& costs) {
                               std::vector<double> net;
                               for (const std::string& size : sizes) {
                                   net.push_back(costs.at(at(size)) - costs.at(writing(size)));
                               }
                               return std::ranges::max(net) / std::ranges::min(net);
                           },
                           at_most(1.25)});
    row.ratios = false;
    return row;
}

}  // namespace

std::vector<Row> pipeline_rows(const Settings& settings) {
    const Job all_well = make_job(settings.size(100'000));
    Job failing = all_well;
    failing.failures = Failures::a_tenth;

    Row at_once = batch<TypedExecutor, Suspends::never>("functions return at once", all_well);
    at_once.others[0].bound = at_most(1.2);
    add(at_once, tbb_flow_graph(all_well.queries->size()));
    add(at_once, asyncio(Suspends::never, all_well.queries->size(), times_faster(60)));

    Row yielding = batch<TypedExecutor, Suspends::once>("functions yield once", all_well);
    yielding.others[0].bound = at_most(1.35);
    yielding.others[1].bound = times_faster(2.5);
    add(yielding, asyncio(Suspends::once, all_well.queries->size(), times_faster(30)));

    Row retrying = batch<TypedExecutor, Suspends::once>("yield once, 10 % fail, one retry", failing);
    retrying.others[0].bound = at_most(1.3);

    return {at_once,
            yielding,
            retrying,
            batch<TypedExecutor, Suspends::never>("return at once, 10 % fail, one retry", failing),
            batch<AnyExecutor, Suspends::never>("return at once, any executor", all_well),
            batch<AnyExecutor, Suspends::once>("yield once, any executor", all_well),
            stream<Suspends::never>("functions return at once", all_well),
            stream<Suspends::once>("functions yield once", all_well)};
}

std::vector<Row> timeout_rows(const Settings& settings) {
    Job without = make_job(settings.size(100'000));
    without.arms_a_timer = true;
    Job with = without;
    with.timeout = std::chrono::seconds(1);
    const auto row = [&]<class M>(const std::string& name) -> Row {
        using W = TimedWays<M>;
        return {"a timeout on each of three stages: " + name,
                "ns/query",
                variant<M>("sluice", W::template batch<>, with),
                {variant<M>("without timeouts", W::template batch<>, without, at_most(1.5))}};
    };
    return {row.operator()<Models<TypedExecutor, Suspends::never>>("functions return at once"),
            row.operator()<Models<TypedExecutor, Suspends::once>>("functions yield once"),
            row.operator()<Models<AnyExecutor, Suspends::once>>("yield once, any executor")};
}

std::vector<Row> scaling_rows(const Settings& settings) {
    return {scaling<Suspends::never>("functions return at once", settings),
            scaling<Suspends::once>("functions yield once", settings)};
}

}  // namespace benchmark
