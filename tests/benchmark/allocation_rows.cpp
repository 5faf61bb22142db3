// SPDX-License-Identifier: BSL-1.0
// Allocations in steady state, and peak memory.
#include "allocation_gauge.hpp"
#include "crew.hpp"
#include "loops.hpp"
#include "pipelines.hpp"
#include "rows.hpp"

#include <malloc.h>

#include <cmath>
#include <cstddef>
#include <cstdlib>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

namespace {

struct alignas(64) Aligned {
    char bytes[64];
};

/// @throws std::runtime_error if the gauge misses a way to allocate.
void check_gauge() {
    AllocationGauge gauge;
    gauge.start();
    auto* const plain = new int(0);
    auto* const aligned = new Aligned;
    void* const c_plain = std::malloc(1);
    void* const c_aligned = std::aligned_alloc(64, 64);
    keep(*plain);
    keep(*aligned);
    keep(c_plain);
    keep(c_aligned);
    gauge.stop();
    delete plain;
    delete aligned;
    std::free(c_plain);
    std::free(c_aligned);
    require(gauge.allocations() == 4, "the gauge counts operator new, malloc() and aligned_alloc()");
}

/// Allocations per operation in steady state, to a thousandth: the number that twice as many operations add.
double in_steady_state(const std::function<std::size_t(std::size_t operations)>& allocations, std::size_t operations) {
    const auto once = static_cast<double>(allocations(operations));
    const auto twice = static_cast<double>(allocations(2 * operations));
    return std::round((twice - once) / static_cast<double>(operations) * 1000) / 1000;
}

template <class Loop>
double per_turn(std::size_t members, std::size_t limit, std::size_t turns) {
    return in_steady_state(
        [=](std::size_t operations) {
            asio::io_context context(1);
            Loop loop(context.get_executor(), limit);
            AllocationGauge gauge;
            Crew<Loop, AllocationGauge>(loop, gauge, operations / members).run(context, members);
            return gauge.allocations();
        },
        members * turns);
}

template <class Models>
using CountedWays = Ways<Models, AllocationGauge>;

/// Allocations besides those of the results, which have one for the stage results of each query.
template <class Models>
double per_query(typename CountedWays<Models>::Way way, Failures failures, std::size_t queries) {
    return in_steady_state(
               [=](std::size_t count) {
                   AllocationGauge gauge;
                   run<Models>(way, make_job(count, failures), gauge);
                   return gauge.allocations();
               },
               queries) -
           1;
}

Row row(std::string name, Variant ours, std::vector<Variant> others) {
    const std::string sluice = ours.name;
    const std::string floor = others.front().name;
    return {
        std::move(name),
        "allocs",
        std::move(ours),
        std::move(others),
        {{"sluice less the floor", [=](const Costs& costs) { return costs.at(sluice) - costs.at(floor); }, at_most(0)}},
        Row::Kind::count,
        false};
}

template <class Executor>
Row contended(const std::string& executor, const Settings& settings) {
    constexpr std::size_t crowd = 1000;
    const std::size_t turns = settings.size(200);
    return row("allocations per contended acquire, " + executor,
               {"sluice", [=] { return per_turn<SluiceLoop<Executor>>(crowd, 10, turns); }},
               {{"floor: the post alone", [=] { return per_turn<PostLoop<Executor>>(crowd, crowd, turns); }},
                {"channel, acquire() awaited",
                 [=] { return per_turn<SemaphoreLoop<ChannelSemaphore, Executor>>(crowd, 10, turns); }}});
}

template <class Executor>
Row barrier(const std::string& executor, const Settings& settings) {
    constexpr std::size_t parties = 100;
    const std::size_t phases = settings.size(1000);
    return row("allocations per barrier phase and party, " + executor,
               {"sluice", [=] { return per_turn<BarrierLoop<Executor, sluice::Barrier>>(parties, parties, phases); }},
               {{"floor: the post alone", [=] { return per_turn<PostLoop<Executor>>(parties, parties, phases); }}});
}

template <Suspends suspends>
Row query(const std::string& name, Failures failures, const Settings& settings) {
    using M = Models<TypedExecutor, suspends>;
    using W = CountedWays<M>;
    const std::size_t queries = settings.size(100'000);
    return row(
        "allocations per query beside its result, " + name,
        {"sluice", [=] { return per_query<M>(W::template batch<>, failures, queries); }},
        {{"floor: one coroutine, no limits", [=] { return per_query<M>(W::one_coroutine, failures, queries); }},
         {"35 coroutines, no limits", [=] { return per_query<M>(W::window_of_coroutines, failures, queries); }},
         {"channel + co_spawn per query", [=] { return per_query<M>(W::channel_and_co_spawn, failures, queries); }}});
}

std::size_t bytes_of(std::vector<Result>& results) {
    std::size_t bytes = malloc_usable_size(results.data());
    for (Result& result : results) {
        bytes += malloc_usable_size(result.stage_results.data());
    }
    return bytes;
}

/// The peak memory besides the results, in kilobytes.
template <Suspends suspends>
double extra_kilobytes(typename CountedWays<Models<TypedExecutor, suspends>>::Way way, std::size_t queries) {
    AllocationGauge gauge;
    std::vector<Result> results = run<Models<TypedExecutor, suspends>>(way, make_job(queries), gauge);
    return (static_cast<double>(gauge.peak_bytes()) - static_cast<double>(bytes_of(results))) / 1000;
}

template <Suspends suspends>
Row memory(const std::string& name, const Settings& settings) {
    using W = CountedWays<Models<TypedExecutor, suspends>>;
    const std::size_t million = settings.size(1'000'000);
    const std::size_t less = settings.size(100'000);
    return {"memory beside the results, 1,000,000 queries, " + name,
            "kB",
            {"sluice", [=] { return extra_kilobytes<suspends>(W::template batch<>, million); }},
            {{"floor: one coroutine, no limits", [=] { return extra_kilobytes<suspends>(W::one_coroutine, million); }},
             {"channel + co_spawn, 100,000 queries",
              [=] { return extra_kilobytes<suspends>(W::channel_and_co_spawn, less); }}},
            {{"sluice itself", [](const Costs& costs) { return costs.at("sluice"); }, at_most(1000)}},
            Row::Kind::count,
            false};
}

}  // namespace

std::vector<Row> allocation_rows(const Settings& settings) {
    check_gauge();
    return {contended<AnyExecutor>("any executor", settings),
            contended<TypedExecutor>("typed executor", settings),
            barrier<AnyExecutor>("any executor", settings),
            barrier<TypedExecutor>("typed executor", settings),
            query<Suspends::never>("return at once", Failures::none, settings),
            query<Suspends::once>("yield once", Failures::none, settings),
            query<Suspends::once>("yield once, 10 % fail", Failures::a_tenth, settings),
            memory<Suspends::never>("return at once", settings),
            memory<Suspends::once>("yield once", settings)};
}

}  // namespace benchmark
