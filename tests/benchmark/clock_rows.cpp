// SPDX-License-Identifier: BSL-1.0
// The number of clock reads.
#include "pipelines.hpp"
#include "rows.hpp"

#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

namespace {

/// A timer whose time is the number of its reads, so that the queue time of a query that waited is above zero.
class CountingTimer : public asio::steady_timer {
public:
    using asio::steady_timer::steady_timer;

    template <class Executor>
    static time_point now(const Executor&) noexcept {
        return time_point(duration(++reads));
    }

    static inline std::int64_t reads = 0;
};

struct NoGauge {
    void start() noexcept {}
    void stop() noexcept {}
};

struct Counts {
    std::int64_t reads = 0;
    std::int64_t attempts = 0;
    std::int64_t waits = 0;
};

Counts count(const Job& job) {
    using M = Models<TypedExecutor, Suspends::once>;
    NoGauge gauge;
    CountingTimer::reads = 0;
    Counts counts;
    for (const Result& result : run<M>(Ways<M, NoGauge>::batch<CountingTimer>, job, gauge)) {
        for (const auto& stage : result.stage_results) {
            counts.attempts += stage.attempts;
            counts.waits += stage.queue_time.count() > 0;
        }
    }
    counts.reads = CountingTimer::reads;
    return counts;
}

double reads_per_attempt(const Job& job) {
    const Counts counts = count(job);
    require(counts.waits == 0, "a slot is always free");
    return static_cast<double>(counts.reads) / static_cast<double>(counts.attempts);
}

double reads_per_wait(const Job& job) {
    const Counts counts = count(job);
    require(counts.waits > 0, "some query waits for a slot");
    const auto others = counts.attempts + static_cast<std::int64_t>(job.queries->size());
    return static_cast<double>(counts.reads - others) / static_cast<double>(counts.waits);
}

Row row(std::string name, std::function<double()> measure, double most) {
    return {std::move(name),
            "reads",
            {"sluice", std::move(measure)},
            {},
            {{"sluice itself", [](const Costs& costs) { return costs.at("sluice"); }, at_most(most)}},
            Row::Kind::count,
            false};
}

}  // namespace

std::vector<Row> clock_rows(const Settings& settings) {
    Job free = make_job(settings.size(100'000), Failures::a_tenth);
    free.window = 35;
    free.limits = {35, 35, 35};
    const Job waiting = make_job(settings.size(100'000));
    return {row(
                "clock reads per attempt, a slot being free", [=] { return reads_per_attempt(free); }, 1.5),
            row(
                "clock reads per wait, beside one per attempt and one per query",
                [=] { return reads_per_wait(waiting); }, 1)};
}

}  // namespace benchmark
