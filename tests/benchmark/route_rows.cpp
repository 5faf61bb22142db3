// SPDX-License-Identifier: BSL-1.0
// Pipelines of any shape, against the InferencePipeline and against each other.
#include "harness.hpp"
#include "models.hpp"
#include "pipelines.hpp"
#include "rows.hpp"

#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/stage/stage.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>

#include <algorithm>
#include <cstddef>
#include <iterator>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

namespace {

struct Record {
    std::optional<int> intent;
    std::optional<int> entities;
    std::optional<int> response;
};

/// The shape of the route.
enum class Shape { in_line, side_by_side };

/// The ways of a Pipeline; see Ways.
template <class Models, class Gauge>
struct RouteWays {
    using Executor = typename Models::Executor;

    template <Shape shape = Shape::in_line>
    static asio::awaitable<void, Executor> batch(Models& models, const Job& job, Gauge& gauge,
                                                 std::vector<Result>& results) {
        NoDeadLetters dead_letters;
        const Executor executor = co_await asio::this_coro::executor;
        auto pipeline = make_pipeline<shape>(executor, models, dead_letters);
        gauge.start();
        auto records = co_await pipeline.process_batch(*job.queries);
        gauge.stop();
        for (auto& record : records) {
            results.push_back(flat(std::move(record)));
        }
    }

    /// One query after another.
    static asio::awaitable<void, Executor> one_by_one(Models& models, const Job& job, Gauge& gauge,
                                                      std::vector<Result>& results) {
        NoDeadLetters dead_letters;
        const Executor executor = co_await asio::this_coro::executor;
        auto pipeline = make_pipeline<Shape::in_line>(executor, models, dead_letters);
        results.reserve(job.queries->size());
        gauge.start();
        for (const sluice::Query& query : *job.queries) {
            results.push_back(flat(co_await pipeline.process_one(query)));
        }
        gauge.stop();
    }

    /// The first two fields are filled already.
    static asio::awaitable<void, Executor> redrive(Models& models, const Job& job, Gauge& gauge,
                                                   std::vector<Result>& results) {
        NoDeadLetters dead_letters;
        const Executor executor = co_await asio::this_coro::executor;
        auto pipeline = make_pipeline<Shape::in_line>(executor, models, dead_letters);
        const auto to_checkpoint = [](const sluice::Query& query) {
            return sluice::Checkpoint<Record>(query, Record{1, 2, std::nullopt});
        };
        gauge.start();
        auto records = co_await pipeline.process_batch(*job.queries, to_checkpoint);
        gauge.stop();
        for (auto& record : records) {
            require(record.stage_results.size() == 1, "a redrive runs one stage");
            const sluice::StageResult<> only = record.stage_results.front();
            record.stage_results.assign(stages, only);
            results.push_back(flat(std::move(record)));
        }
    }

private:
    template <Shape shape>
    static auto make_pipeline(Executor executor, Models& models, NoDeadLetters& dead_letters) {
        const sluice::Stage classify(executor, "classify", limits[0],
                                     [&](const std::string& text) { return models.classify(text); });
        const sluice::Stage extract(executor, "extract", limits[1],
                                    [&](const std::string& text) { return models.extract(text); });
        const sluice::Stage generate(
            executor, "generate", limits[2],
            [&](int intent, int entities, const std::string& text) { return models.generate(intent, entities, text); });
        auto route = [=](sluice::Run<Record, Executor>& run) -> asio::awaitable<void, Executor> {
            const std::string& text = run.query().text;
            if constexpr (shape == Shape::side_by_side) {
                co_await run.all(run.step(&Record::intent, classify, text), run.step(&Record::entities, extract, text));
            } else {
                co_await run.step(&Record::intent, classify, text);
                co_await run.step(&Record::entities, extract, text);
            }
            co_await run.step(&Record::response, generate, &Record::intent, &Record::entities, text);
        };
        return sluice::Pipeline(executor, std::move(route), dead_letters, limits[0] + limits[1] + limits[2]);
    }

    static Result flat(sluice::RecordResult<Record> record) {
        Result result;
        static_cast<sluice::QueryResult&>(result) = std::move(record);
        result.intent = record.record.intent;
        result.entities = record.record.entities;
        result.response = record.record.response;
        return result;
    }
};

/// The InferencePipeline, one query after another.
template <class Models, class Gauge>
asio::awaitable<void, typename Models::Executor> inference_one_by_one(Models& models, const Job& job, Gauge& gauge,
                                                                      std::vector<Result>& results) {
    using Executor = typename Models::Executor;
    NoDeadLetters dead_letters;
    const Executor executor = co_await asio::this_coro::executor;
    sluice::InferencePipeline pipeline(
        executor, [&](const std::string& text) { return models.classify(text); },
        [&](const std::string& text) { return models.extract(text); },
        [&](int intent, int entities, const std::string& text) { return models.generate(intent, entities, text); },
        sluice::StageLimits{limits[0], limits[1], limits[2]}, dead_letters);
    results.reserve(job.queries->size());
    gauge.start();
    for (const sluice::Query& query : *job.queries) {
        results.push_back(co_await pipeline.process_one(query));
    }
    gauge.stop();
}

template <class Models>
Variant variant(std::string name, typename Ways<Models, StopWatch>::Way way, const Job& job,
                std::optional<Bound> bound = {}) {
    return {std::move(name),
            [=] {
                StopWatch watch;
                run<Models>(way, job, watch);
                return watch.per(job.queries->size());
            },
            bound};
}

template <Suspends suspends>
std::vector<Row> rows_with(const std::string& name, const Job& job) {
    using M = Models<TypedExecutor, suspends>;
    using Inference = Ways<M, StopWatch>;
    using Routes = RouteWays<M, StopWatch>;
    return {{"Pipeline::process_batch: " + name,
             "ns/query",
             variant<M>("sluice", Routes::template batch<>, job),
             {variant<M>("InferencePipeline", Inference::template batch<>, job, at_most(1.05))}},
            {"two of the steps side by side: " + name,
             "ns/query",
             variant<M>("sluice", Routes::template batch<Shape::side_by_side>, job),
             {variant<M>("in line", Routes::template batch<>, job)}},
            {"a redrive with two of three fields filled: " + name,
             "ns/query",
             variant<M>("sluice", Routes::redrive, job),
             {variant<M>("the whole route", Routes::template batch<>, job)}},
            {"Pipeline::process_one, which a drain can cancel: " + name,
             "ns/query",
             variant<M>("sluice", Routes::one_by_one, job),
             {variant<M>("InferencePipeline", inference_one_by_one<M, StopWatch>, job)}}};
}

}  // namespace

std::vector<Row> route_rows(const Settings& settings) {
    const Job job = make_job(settings.size(100'000));
    std::vector<Row> rows = rows_with<Suspends::never>("functions return at once", job);
    std::vector<Row> yielding = rows_with<Suspends::once>("functions yield once", job);
    std::ranges::move(yielding, std::back_inserter(rows));
    return rows;
}

}  // namespace benchmark
