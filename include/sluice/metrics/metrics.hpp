// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/metrics/detail/retried_runs.hpp>
#include <sluice/metrics/detail/stage_table.hpp>
#include <sluice/metrics/detail/watch_list.hpp>
#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/observer.hpp>
#include <sluice/pipeline/detail/pipeline_numbers.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/assert.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <map>
#include <memory>
#include <stdexcept>
#include <utility>

namespace sluice {

namespace detail {

template <class Pipeline>
concept Watchable = requires(const Pipeline& pipeline) {
    { state_of(pipeline) } -> std::convertible_to<std::shared_ptr<PipelineNumbers>>;
};

}  // namespace detail

/// Counts what stages, endpoints and pipelines do. As an Observer, it counts the events of the stages and pipelines
/// whose option `observer` has its address; what is no event it reads from what watch() was called with. See
/// prometheus() for a text that Prometheus reads.
///
/// @code
/// sluice::Metrics metrics;
/// sluice::Pipeline support(executor, route, dead_letters, 64, sluice::PipelineOptions{.observer = &metrics});
/// metrics.watch(support, "support");
/// metrics.watch(gpt);
/// @endcode
///
/// Stages are told apart by their names alone, and so are endpoints and pipelines: those of one name share their
/// numbers, as if they were one. So names should be few; do not make them of the ids of users or queries.
///
/// The times are those of the stage results, so no event reads a clock. Numbers never fall, except those of what is the
/// case *now*.
///
/// @par Complexity
/// An event is O(1), that of a dead letter O(log stages), and takes about 10 ns. It allocates if it is the first of a
/// Stage, or of a dead letter's stage; or if there are more stage runs at once that have been retried than ever before.
/// If there is no memory for that, `std::terminate` is called. snapshot() is O(n) in the stages, and in the endpoints,
/// batches and streams that are watched.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. A Metrics belongs to the thread or strand of the stages, endpoints
/// and pipelines whose events it gets and that it watches. So a snapshot is of one instant: take it on that strand, and
/// format it anywhere. If there are several strands, each needs a Metrics of its own.
///
/// @par Lifetime
/// As an observer, it must outlive the coroutines that run the stages and pipelines that have its address. What it
/// watches it does not keep alive: either may be destroyed first, and so may the execution context. An endpoint or
/// pipeline is watched, through whichever handle, until it is destroyed: the last handle is gone, and nothing runs in
/// it.
class Metrics final : public Observer {
public:
    Metrics() = default;

    Metrics(const Metrics&) = delete;
    Metrics& operator=(const Metrics&) = delete;

    /// From now on, snapshots have the numbers of this endpoint. Watching it again has no effect.
    template <Timer T>
    void watch(const Endpoint<T>& endpoint) {
        endpoints_.add(state_of(endpoint));
    }

    /// From now on, snapshots have the numbers of this pipeline. Watching it again by the same name has no effect.
    /// @param pipeline A Pipeline or an InferencePipeline, which has not been moved from; it may be moved later.
    /// @param name Stands for the pipeline in snapshots.
    /// @throws std::invalid_argument if `name` is empty.
    template <detail::Watchable Pipeline>
    void watch(const Pipeline& pipeline, const SharedString& name) {
        BOOST_ASSERT_MSG(state_of(pipeline), "sluice::Metrics: a pipeline that was moved from cannot be watched");
        if (name.empty()) {
            throw std::invalid_argument("Metrics: the name of a pipeline must not be empty");
        }
        pipelines_[name].add(state_of(pipeline));
    }

    /// Returns all numbers as they are now.
    MetricsSnapshot snapshot() const {
        MetricsSnapshot result;
        for (const auto& [name, stage] : stages_.by_name()) {
            result.stages.push_back(stage);
        }
        for (const auto& [name, stage] : dead_letters_) {
            result.dead_letters.push_back(stage);
        }
        result.endpoints = endpoints_.read();
        for (const auto& [name, pipelines] : pipelines_) {
            result.pipelines.push_back(pipelines.read(name));
        }
        return result;
    }

    void on_queued(const StageResult<>& stage_run) noexcept override {
        StageMetrics& stage = stages_[stage_run.stage];
        if (stage_run.attempts == 0) {
            ++stage.entered;
        } else {
            --stage.in_backoff;
        }
        ++stage.queued;
    }

    void on_started(const StageResult<>& stage_run) noexcept override {
        StageMetrics& stage = stages_[stage_run.stage];
        --stage.queued;
        end_wait(stage, stage_run, stage_run.attempts - 1);
        ++stage.running;
        ++stage.attempts;
    }

    void on_attempt_failed(const StageResult<>& stage_run, const StageError&) noexcept override {
        StageMetrics& stage = stages_[stage_run.stage];
        end_attempt(stage, stage_run);
        ++stage.failed_attempts;
        ++stage.in_backoff;
    }

    void on_retry(const StageResult<>& stage_run, const Verdict& verdict, std::chrono::nanoseconds) noexcept override {
        BOOST_ASSERT(to_string(verdict.kind) != "unknown");
        ++stages_[stage_run.stage].retries[static_cast<std::size_t>(verdict.kind)];
        retried_.keep(stage_run);
    }

    void on_finished(const StageResult<>& stage_run, Outcome outcome, Event last) noexcept override {
        StageMetrics& stage = stages_[stage_run.stage];
        if (last == Event::queued) {
            --stage.queued;
            end_wait(stage, stage_run, stage_run.attempts);
        } else if (last == Event::started) {
            end_attempt(stage, stage_run);
        } else {
            --stage.in_backoff;
        }
        ++(outcome == Outcome::succeeded ? stage.succeeded
           : outcome == Outcome::failed  ? stage.failed
                                         : stage.cancelled);
        if (stage_run.attempts > 1 || last != Event::started) {
            retried_.forget(stage_run);
        }
    }

    void on_skipped(const SharedString&, const SharedString& stage, Reason) noexcept override {
        ++stages_[stage].skipped;
    }

    void on_dead_letter(const Query&, const StageResult<>& stage_run, const StageError& sink_error) noexcept override {
        const auto [at, is_new] = dead_letters_.try_emplace(stage_run.stage);
        DeadLetterMetrics& stage = at->second;
        if (is_new) {
            stage.stage = stage_run.stage;
        }
        ++stage.dead_letters[static_cast<std::size_t>(stage_run.reason)];
        stage.lost += static_cast<bool>(sink_error);
    }

private:
    // The wait after `attempts` attempts has ended.
    void end_wait(StageMetrics& stage, const StageResult<>& stage_run, int attempts) noexcept {
        const auto before = attempts > 0 ? retried_.of(stage_run).queue_time : std::chrono::nanoseconds(0);
        stage.queue_time.add(stage_run.queue_time - before);
    }

    void end_attempt(StageMetrics& stage, const StageResult<>& stage_run) noexcept {
        const auto before = stage_run.attempts > 1 ? retried_.of(stage_run).latency : std::chrono::nanoseconds(0);
        stage.latency.add(stage_run.latency - before);
        --stage.running;
    }

    detail::StageTable stages_;
    detail::RetriedRuns retried_;
    std::map<SharedString, DeadLetterMetrics> dead_letters_;
    detail::EndpointWatchList endpoints_;
    std::map<SharedString, detail::PipelineWatchList> pipelines_;
};

}  // namespace sluice
