// SPDX-License-Identifier: BSL-1.0
// What an event costs that a Metrics counts.
#include "allocation_gauge.hpp"
#include "harness.hpp"
#include "rows.hpp"

#include <sluice/metrics/metrics.hpp>
#include <sluice/observer.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <vector>

namespace benchmark {

namespace {

constexpr std::size_t events_per_turn = 9;

/// Turns of the events of one query that three stages run.
class Events {
public:
    Events() {
        using namespace std::chrono_literals;
        for (auto& run : runs_) {
            run.queue_time = 30us;
            run.latency = 700ms;
        }
    }

    void run(sluice::Observer& observer, std::size_t turns) {
        sluice::Observer* hidden = &observer;  // from the optimiser
        for (std::size_t i = 0; i != turns; ++i) {
            keep(hidden);
            for (auto& run : runs_) {
                run.attempts = 0;
                hidden->on_queued(run);
                run.attempts = 1;
                hidden->on_started(run);
                hidden->on_finished(run, sluice::Observer::Outcome::succeeded, sluice::Observer::Event::started);
            }
        }
    }

    /// Turns in which a fallback skips all three.
    void skip(sluice::Observer& observer, std::size_t turns) {
        sluice::Observer* hidden = &observer;
        for (std::size_t i = 0; i != turns; ++i) {
            keep(hidden);
            for (const auto& run : runs_) {
                hidden->on_skipped(run.query_id, run.stage, sluice::Reason::breaker_open);
            }
        }
    }

private:
    std::array<sluice::StageResult<>, 3> runs_{sluice::StageResult<>("q", "classify"),
                                               sluice::StageResult<>("q", "extract"),
                                               sluice::StageResult<>("q", "generate")};
};

template <class AnObserver>
double time_per_event(std::size_t turns) {
    AnObserver observer;
    Events events;
    events.run(observer, 100);
    StopWatch watch;
    watch.start();
    events.run(observer, turns);
    watch.stop();
    if constexpr (requires { observer.snapshot(); }) {
        require(observer.snapshot().stages.at(2).succeeded == turns + 100, "every stage run is counted");
    }
    return watch.per(events_per_turn * turns);
}

template <class AnObserver>
double time_per_skip(std::size_t turns) {
    AnObserver observer;
    Events events;
    events.skip(observer, 100);
    StopWatch watch;
    watch.start();
    events.skip(observer, turns);
    watch.stop();
    if constexpr (requires { observer.snapshot(); }) {
        require(observer.snapshot().stages.at(2).skipped == turns + 100, "every skip is counted");
    }
    return watch.per(3 * turns);
}

double allocations(std::size_t turns) {
    sluice::Metrics metrics;
    Events events;
    events.run(metrics, 1);
    AllocationGauge gauge;
    gauge.start();
    events.run(metrics, turns);
    gauge.stop();
    return static_cast<double>(gauge.allocations());
}

}  // namespace

std::vector<Row> metrics_rows(const Settings& settings) {
    const std::size_t turns = settings.size(1'000'000);
    const auto itself = [](const Costs& costs) { return costs.at("Metrics"); };
    return {{"an event of a stage run that is counted",
             "ns",
             {"Metrics", [=] { return time_per_event<sluice::Metrics>(turns); }},
             {{"an observer that does nothing", [=] { return time_per_event<sluice::Observer>(turns); }}},
             {{"Metrics itself", itself, at_most(30)}}},
            {"allocations of such events, after the first of each stage",
             "allocations",
             {"Metrics", [=] { return allocations(turns); }},
             {},
             {{"Metrics itself", itself, at_most(0)}},
             Row::Kind::count,
             false},
            {"a stage that a fallback skips, which is counted",
             "ns",
             {"Metrics", [=] { return time_per_skip<sluice::Metrics>(turns); }},
             {{"an observer that does nothing", [=] { return time_per_skip<sluice::Observer>(turns); }}},
             {{"Metrics itself", itself, at_most(30)}}}};
}

}  // namespace benchmark
