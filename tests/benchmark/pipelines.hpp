// SPDX-License-Identifier: BSL-1.0
// The ways to run a job: sluice's, the floor and the peer.
#pragma once

#include "crew.hpp"
#include "handwritten.hpp"
#include "harness.hpp"
#include "limiters.hpp"
#include "models.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <span>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

/// The work of a pipeline.
struct Job {
    std::shared_ptr<const std::vector<sluice::Query>> queries;
    Failures failures = Failures::none;

    /// The limits of the stages, and the window unless it is the default.
    std::array<std::ptrdiff_t, stages> limits = benchmark::limits;
    std::optional<std::ptrdiff_t> window{};

    std::optional<std::chrono::nanoseconds> timeout{};  // of each attempt
    bool arms_a_timer = false;  // the first timer of a context makes every post slower, with timeouts or without

    int retries() const { return failures == Failures::none ? 0 : 1; }
};

inline Job make_job(std::size_t queries, Failures failures = Failures::none) {
    return {std::make_shared<const std::vector<sluice::Query>>(make_queries(queries)), failures};
}

/// @throws std::runtime_error unless every query completed, with the number of attempts that the failures require.
void verify(const std::vector<Result>& results, const Job& job);

struct NoDeadLetters {
    void put(const sluice::Query&, const sluice::StageResult<>&) {}
};

/// The ways to run a job. Each is a coroutine that starts the gauge, fills in the results, and stops the gauge.
template <class Models, class Gauge>
struct Ways {
    using Executor = typename Models::Executor;
    using Way = asio::awaitable<void, Executor> (*)(Models&, const Job&, Gauge&, std::vector<Result>&);

    /// Only writes the results: no models, no clock.
    static asio::awaitable<void, Executor> only_write(Models&, const Job& job, Gauge& gauge,
                                                      std::vector<Result>& results) {
        const StageNames names;
        gauge.start();
        results.reserve(job.queries->size());
        for (const sluice::Query& query : *job.queries) {
            Result& result = results.emplace_back(query);
            result.stage_results.reserve(stages);
            for (std::size_t stage = 0; stage < stages; ++stage) {
                sluice::StageResult<>& record = result.stage_results.emplace_back(query.id, names[stage]);
                record.attempts = 1;
                record.success = true;
            }
            result.intent = 1;
            result.entities = 2;
            result.response = 3;
            result.completed = true;
        }
        gauge.stop();
        co_return;
    }

    /// The floor.
    static asio::awaitable<void, Executor> one_coroutine(Models& models, const Job& job, Gauge& gauge,
                                                         std::vector<Result>& results) {
        NoLimits<Executor> no_limits(co_await asio::this_coro::executor);
        const StageNames names;
        gauge.start();
        results.reserve(job.queries->size());
        Handwritten<Models, NoLimits> floor{models, no_limits, names, job.retries(), results};
        co_await floor.run(*job.queries);
        gauge.stop();
    }

    /// As many coroutines as sluice has, each with its share of the queries, and no limits.
    static asio::awaitable<void, Executor> window_of_coroutines(Models& models, const Job& job, Gauge& gauge,
                                                                std::vector<Result>& results) {
        constexpr std::size_t window = limits[0] + limits[1] + limits[2];
        return co_spawn_each<NoLimits>(models, job, gauge, results, (job.queries->size() + window - 1) / window);
    }

    /// The floor of many queries in flight.
    static asio::awaitable<void, Executor> co_spawn_per_query(Models& models, const Job& job, Gauge& gauge,
                                                              std::vector<Result>& results) {
        return co_spawn_each<NoLimits>(models, job, gauge, results, 1);
    }

    /// The peer.
    static asio::awaitable<void, Executor> channel_and_co_spawn(Models& models, const Job& job, Gauge& gauge,
                                                                std::vector<Result>& results) {
        return co_spawn_each<ChannelLimits>(models, job, gauge, results, 1);
    }

    template <sluice::Timer TimerType = asio::steady_timer>
    static asio::awaitable<void, Executor> batch(Models& models, const Job& job, Gauge& gauge,
                                                 std::vector<Result>& results) {
        NoDeadLetters dead_letters;
        const Executor executor = co_await asio::this_coro::executor;
        auto pipeline = make_pipeline<TimerType>(executor, models, job, dead_letters);
        Timer<Executor> unrelated(executor, std::chrono::hours(1));
        if (job.arms_a_timer) {
            unrelated.async_wait([](const boost::system::error_code&) {});
        }
        gauge.start();
        results = co_await pipeline.process_batch(*job.queries);
        gauge.stop();
    }

    /// The consumer keeps the results, as a batch does.
    static asio::awaitable<void, Executor> stream(Models& models, const Job& job, Gauge& gauge,
                                                  std::vector<Result>& results) {
        NoDeadLetters dead_letters;
        auto pipeline =
            make_pipeline<asio::steady_timer>(co_await asio::this_coro::executor, models, job, dead_letters);
        gauge.start();
        results.reserve(job.queries->size());
        auto results_of = pipeline.process_stream(*job.queries);
        while (auto item = co_await results_of.next()) {
            results.push_back(std::move(item->result));
        }
        gauge.stop();
    }

private:
    /// A coroutine for every `share` queries.
    template <template <class> class Limits>
    static asio::awaitable<void, Executor> co_spawn_each(Models& models, const Job& job, Gauge& gauge,
                                                         std::vector<Result>& results, std::size_t share) {
        const Executor executor = co_await asio::this_coro::executor;
        Limits<Executor> limiter(executor);
        const StageNames names;
        gauge.start();
        results.reserve(job.queries->size());
        Handwritten<Models, Limits> handwritten{models, limiter, names, job.retries(), results};
        std::size_t running = 0;
        Timer<Executor> all_done(executor, std::chrono::steady_clock::time_point::max());
        for (std::span rest(*job.queries); !rest.empty();) {
            const std::span now = rest.first(std::min(share, rest.size()));
            rest = rest.subspan(now.size());
            ++running;
            asio::co_spawn(executor, handwritten.run(now), [&](std::exception_ptr error) {
                rethrow(error);
                if (--running == 0) {
                    all_done.cancel();
                }
            });
        }
        if (running != 0) {
            co_await all_done.async_wait(asio::as_tuple(asio::deferred));
        }
        gauge.stop();
    }

    template <sluice::Timer TimerType>
    static auto make_pipeline(Executor executor, Models& models, const Job& job, NoDeadLetters& dead_letters) {
        const sluice::StageOptions stage{
            .timeout = job.timeout,
            .retry = {.max_retries = job.retries(), .backoff = {.initial = std::chrono::nanoseconds(0)}}};
        return sluice::InferencePipeline(
            sluice::timed_by<TimerType>(executor), [&](const std::string& text) { return models.classify(text); },
            [&](const std::string& text) { return models.extract(text); },
            [&](int intent, int entities, const std::string& text) { return models.generate(intent, entities, text); },
            sluice::StageLimits{job.limits[0], job.limits[1], job.limits[2]}, dead_letters,
            sluice::InferencePipelineOptions{
                .classify = stage, .extract = stage, .generate = stage, .window = job.window});
    }
};

/// Runs a job in one of the ways, and verifies its results.
template <class Models, class Gauge>
std::vector<Result> run(typename Ways<Models, Gauge>::Way way, const Job& job, Gauge& gauge) {
    using Executor = typename Models::Executor;
    FailurePlan plan(job.failures, job.queries->size());
    Models models(plan);
    std::vector<Result> results;
    asio::io_context context(1);
    asio::co_spawn(Executor(context.get_executor()), way(models, job, gauge, results), rethrow);
    context.run();
    verify(results, job);
    return results;
}

}  // namespace benchmark
