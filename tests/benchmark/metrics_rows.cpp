// SPDX-License-Identifier: BSL-1.0
// What an event costs that a Metrics counts.
#include "allocation_gauge.hpp"
#include "harness.hpp"
#include "rows.hpp"

#include <sluice/metrics/metrics.hpp>
#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/observer.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/stage_error.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <stdexcept>
#include <vector>

namespace benchmark {

namespace {

constexpr std::size_t stages = 3;

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

    /// Turns in which each of them fails twice, and its query becomes a dead letter.
    void fail(sluice::Observer& observer, std::size_t turns) {
        sluice::Observer* hidden = &observer;
        for (std::size_t i = 0; i != turns; ++i) {
            keep(hidden);
            for (auto& run : runs_) {
                run.attempts = 0;
                hidden->on_queued(run);
                run.attempts = 1;
                hidden->on_started(run);
                hidden->on_attempt_failed(run, error_);
                hidden->on_retry(run, verdict_, run.latency);
                hidden->on_queued(run);
                run.attempts = 2;
                hidden->on_started(run);
                hidden->on_attempt_failed(run, error_);
                hidden->on_finished(run, sluice::Observer::Outcome::failed, sluice::Observer::Event::attempt_failed);
                hidden->on_dead_letter(query_, run, {});
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
    const sluice::StageError error_{std::make_exception_ptr(std::runtime_error("failed"))};
    const sluice::Verdict verdict_;
    const sluice::Query query_{"q", "text"};
};

using Turns = void (Events::*)(sluice::Observer&, std::size_t);

/// `counted` is the number of a stage that counts the turns.
template <class AnObserver>
double time_per_event(Turns make, std::size_t events, std::uint64_t sluice::StageMetrics::* counted,
                      std::size_t turns) {
    AnObserver observer;
    Events source;
    (source.*make)(observer, 100);
    StopWatch watch;
    watch.start();
    (source.*make)(observer, turns);
    watch.stop();
    if constexpr (requires { observer.snapshot(); }) {
        require(observer.snapshot().stages.at(2).*counted == turns + 100, "every event is counted");
    }
    return watch.per(stages * events * turns);
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
    const auto row = [&](const char* name, Turns make, std::size_t events,
                         std::uint64_t sluice::StageMetrics::* counted) {
        return Row{name,
                   "ns",
                   {"Metrics", [=] { return time_per_event<sluice::Metrics>(make, events, counted, turns); }},
                   {{"an observer that does nothing",
                     [=] { return time_per_event<sluice::Observer>(make, events, counted, turns); }}},
                   {{"Metrics itself", itself, at_most(30)}}};
    };
    return {row("an event of a stage run that is counted", &Events::run, 3, &sluice::StageMetrics::succeeded),
            row("the same of one that fails, with a retry and a dead letter", &Events::fail, 9,
                &sluice::StageMetrics::failed),
            row("a stage that a fallback skips, which is counted", &Events::skip, 1, &sluice::StageMetrics::skipped),
            {"allocations of such events, after the first of each stage",
             "allocations",
             {"Metrics", [=] { return allocations(turns); }},
             {},
             {{"Metrics itself", itself, at_most(0)}},
             Row::Kind::count,
             false}};
}

}  // namespace benchmark
