// SPDX-License-Identifier: BSL-1.0
#include "crew.hpp"
#include "models.hpp"
#include "rows.hpp"
#include "unlimited.hpp"

#include <sluice/inference_pipeline.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

namespace {

using Queries = std::shared_ptr<const std::vector<sluice::Query>>;

/// What a pipeline has to do.
struct Job {
    Queries queries;
    Failures failures = Failures::none;

    int retries() const { return failures == Failures::none ? 0 : 1; }
};

/// Every query completed, and as many attempts were made as the failures make necessary.
void verify(const std::vector<Result>& results, const Job& job) {
    const std::size_t count = job.queries->size();
    require(results.size() == count, "every query has a result");
    std::size_t attempts = 0;
    for (const Result& result : results) {
        require(result.completed && result.response == 3 && result.stage_results.size() == stages,
                "every query completes");
        for (const auto& stage : result.stage_results) {
            attempts += static_cast<std::size_t>(stage.attempts);
        }
    }
    std::size_t failures = 0;
    if (job.failures != Failures::none) {
        for (std::size_t stage = 0; stage < stages; ++stage) {
            failures += (count + 9 - 3 * stage) / 10;
        }
    }
    require(attempts == stages * count + failures, "there are as many retries as failures");
}

struct NoDeadLetters {
    void put(const sluice::Query&, const sluice::StageResult<>&) {}
};

/// One way to run a job: from an executor, models and a gauge to the results.
///
/// Each runs inside a coroutine of the context, starts the gauge, and stops it when the last result is there.

template <class Models, class Gauge>
asio::awaitable<void, typename Models::Executor> run_sequential(Models& models, const Job& job, Gauge& gauge,
                                                                std::vector<Result>& results) {
    NoLimits<typename Models::Executor> no_limits;
    const StageNames names;
    gauge.start();
    results.reserve(job.queries->size());
    Unlimited<Models, NoLimits> floor{models, no_limits, names, job.retries(), results};
    co_await floor.run(*job.queries);
    gauge.stop();
}

template <class Models, class Gauge>
asio::awaitable<void, typename Models::Executor> run_channel(Models& models, const Job& job, Gauge& gauge,
                                                             std::vector<Result>& results) {
    using Executor = typename Models::Executor;
    const Executor executor = co_await asio::this_coro::executor;
    ChannelLimits<Executor> channels(executor);
    const StageNames names;
    gauge.start();
    results.reserve(job.queries->size());
    Unlimited<Models, ChannelLimits> peer{models, channels, names, job.retries(), results};
    std::size_t missing = job.queries->size();
    Timer<Executor> all_done(executor, std::chrono::steady_clock::time_point::max());
    for (const sluice::Query& query : *job.queries) {
        asio::co_spawn(executor, peer.run(std::span(&query, 1)), [&](std::exception_ptr error) {
            rethrow(error);
            if (--missing == 0) {
                all_done.cancel();
            }
        });
    }
    co_await all_done.async_wait(asio::as_tuple(asio::deferred));
    gauge.stop();
}

template <class Models>
auto make_pipeline(typename Models::Executor executor, Models& models, const Job& job, NoDeadLetters& dead_letters) {
    sluice::PipelineOptions options(sluice::StageOptions(
        sluice::RetryPolicy(job.retries(), sluice::Backoff{.initial = std::chrono::nanoseconds(0)})));
    return sluice::InferencePipeline(
        executor, [&](const std::string& text) { return models.classify(text); },
        [&](const std::string& text) { return models.extract(text); },
        [&](int intent, int entities, const std::string& text) { return models.generate(intent, entities, text); },
        sluice::StageLimits{limits[0], limits[1], limits[2]}, dead_letters, std::move(options));
}

template <class Models, class Gauge>
asio::awaitable<void, typename Models::Executor> run_batch(Models& models, const Job& job, Gauge& gauge,
                                                           std::vector<Result>& results) {
    NoDeadLetters dead_letters;
    auto pipeline = make_pipeline(co_await asio::this_coro::executor, models, job, dead_letters);
    gauge.start();
    results = co_await pipeline.process_batch(*job.queries);
    gauge.stop();
}

template <class Models, class Gauge>
asio::awaitable<void, typename Models::Executor> run_stream(Models& models, const Job& job, Gauge& gauge,
                                                            std::vector<Result>& results) {
    NoDeadLetters dead_letters;
    auto pipeline = make_pipeline(co_await asio::this_coro::executor, models, job, dead_letters);
    gauge.start();
    results.reserve(job.queries->size());
    auto stream = pipeline.process_stream(*job.queries);
    while (auto item = co_await stream.next()) {
        results.push_back(std::move(item->result));
    }
    gauge.stop();
}

template <class Executor, Suspends suspends>
using Run = asio::awaitable<void, Executor> (*)(Models<Executor, suspends>&, const Job&, StopWatch&,
                                                std::vector<Result>&);

template <class Executor, Suspends suspends>
double time_per_query(Run<Executor, suspends> run, const Job& job) {
    Script script(job.failures, job.queries->size());
    Models<Executor, suspends> models(script);
    std::vector<Result> results;
    StopWatch watch;
    asio::io_context context(1);
    asio::co_spawn(Executor(context.get_executor()), run(models, job, watch, results), rethrow);
    context.run();
    verify(results, job);
    return watch.per(job.queries->size());
}

template <class Executor, Suspends suspends>
Variant variant(std::string name, Run<Executor, suspends> run, const Job& job, std::optional<Bound> bound = {}) {
    return {std::move(name), [=] { return time_per_query(run, job); }, bound};
}

template <class Executor, Suspends suspends>
Row batch(const std::string& name, const Job& job) {
    using M = Models<Executor, suspends>;
    return {"process_batch: 100,000 queries, " + name,
            "ns/query",
            variant<Executor, suspends>("sluice", run_batch<M, StopWatch>, job),
            {variant<Executor, suspends>("floor: one coroutine, no limits", run_sequential<M, StopWatch>, job),
             variant<Executor, suspends>("channel + co_spawn per query", run_channel<M, StopWatch>, job)}};
}

template <Suspends suspends>
Row stream(const std::string& name, const Job& job) {
    using M = Models<TypedExecutor, suspends>;
    return {"process_stream: 100,000 queries, " + name,
            "ns/query",
            variant<TypedExecutor, suspends>("sluice", run_stream<M, StopWatch>, job),
            {variant<TypedExecutor, suspends>("process_batch", run_batch<M, StopWatch>, job, at_most(1.15))}};
}

}  // namespace

std::vector<Row> pipeline_rows(const Settings& settings) {
    const auto queries = std::make_shared<const std::vector<sluice::Query>>(make_queries(settings.size(100'000)));
    const Job all_well{queries};
    const Job failing{queries, Failures::a_tenth};

    Row at_once = batch<TypedExecutor, Suspends::never>("functions return at once", all_well);
    at_once.others[0].bound = at_most(1.5);

    Row yielding = batch<TypedExecutor, Suspends::once>("functions yield once", all_well);
    yielding.others[0].bound = at_most(1.25);
    yielding.others[1].bound = times_faster(3);

    Row retrying = batch<TypedExecutor, Suspends::once>("yield once, 10 % fail and retry", failing);
    retrying.others[0].bound = at_most(1.3);

    return {at_once,
            yielding,
            retrying,
            batch<TypedExecutor, Suspends::never>("return at once, 10 % fail and retry", failing),
            batch<AnyExecutor, Suspends::never>("functions return at once, any executor", all_well),
            batch<AnyExecutor, Suspends::once>("functions yield once, any executor", all_well),
            stream<Suspends::never>("functions return at once", all_well),
            stream<Suspends::once>("functions yield once", all_well)};
}

}  // namespace benchmark
