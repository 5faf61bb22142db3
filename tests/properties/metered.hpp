// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"

#include <sluice/metrics/metrics.hpp>
#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/observer.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/stage_error.hpp>

#include <chrono>
#include <cmath>
#include <cstdint>
#include <numeric>

namespace properties {

/// An observer that a Metrics counts for, whose numbers must add up whenever they are looked at. Whoever overrides a
/// function calls the one here first.
class Metered : public sluice::Observer, public Expectations {
public:
    sluice::Metrics metrics;

    void on_queued(const sluice::StageResult<>& run) noexcept override { metrics.on_queued(run); }
    void on_started(const sluice::StageResult<>& run) noexcept override { metrics.on_started(run); }
    void on_attempt_failed(const sluice::StageResult<>& run, const sluice::StageError& error) noexcept override {
        ++failures_;
        metrics.on_attempt_failed(run, error);
    }
    void on_retry(const sluice::StageResult<>& run, const sluice::Verdict& verdict,
                  std::chrono::nanoseconds delay) noexcept override {
        expect(++retries_ <= failures_, "a retry without a failed attempt");
        metrics.on_retry(run, verdict, delay);
    }
    void on_finished(const sluice::StageResult<>& run, Outcome outcome, Event last) noexcept override {
        times_.queue_time += run.queue_time;
        times_.latency += run.latency;
        metrics.on_finished(run, outcome, last);
    }
    void on_skipped(const sluice::SharedString& query_id, const sluice::SharedString& stage,
                    sluice::Reason reason) noexcept override {
        metrics.on_skipped(query_id, stage, reason);
    }
    void on_dead_letter(const sluice::Query& query, const sluice::StageResult<>& run,
                        const sluice::StageError& sink_error) noexcept override {
        ++letters_;
        metrics.on_dead_letter(query, run, sink_error);
    }

protected:
    /// At any time while the context lives, even inside an event.
    void check_metrics() {
        const sluice::MetricsSnapshot now = metrics.snapshot();
        for (const sluice::StageMetrics& stage : now.stages) {
            expect(stage.entered == stage.queued + stage.running + stage.in_backoff + stage.succeeded + stage.failed +
                                        stage.cancelled,
                   "a metric has lost a stage run");
            expect(stage.attempts == stage.running + stage.latency.count(), "a metric has lost an attempt");
            expect(stage.queue_time.count() >= stage.attempts, "a metric has lost a wait");
            for (const sluice::EndpointMetrics& endpoint : now.endpoints) {
                if (endpoint.endpoint == stage.stage) {
                    expect(endpoint.active >= stage.running, "a metric has an attempt without a slot");
                    expect(endpoint.waiting <= stage.queued, "a metric has no stage run that waits in the line");
                }
            }
        }
        for (const sluice::PipelineMetrics& pipeline : now.pipelines) {
            expect(pipeline.in_work < 1000, "a metric has more ends than queries");
        }
    }

    /// When nothing runs any more.
    void check_metrics_at_end() {
        check_metrics();
        const sluice::MetricsSnapshot now = metrics.snapshot();
        std::uint64_t retries = 0;
        double queue_time = 0;
        double latency = 0;
        for (const sluice::StageMetrics& stage : now.stages) {
            expect(stage.queued + stage.running + stage.in_backoff == 0, "a metric has a stage run that has ended");
            retries = std::accumulate(stage.retries.begin(), stage.retries.end(), retries);
            queue_time += stage.queue_time.sum().count();
            latency += stage.latency.sum().count();
        }
        const auto is = [](double seconds, std::chrono::nanoseconds exact) {
            return std::abs(seconds * 1e9 - static_cast<double>(exact.count())) < 0.5;
        };
        expect(retries == retries_, "a metric has lost a retry");
        expect(is(queue_time, times_.queue_time) && is(latency, times_.latency), "the times are not those of the runs");
        for (const sluice::EndpointMetrics& endpoint : now.endpoints) {
            expect(endpoint.active + endpoint.waiting == 0, "a metric has a slot that was returned");
        }
        std::uint64_t dead = 0;
        for (const sluice::PipelineMetrics& pipeline : now.pipelines) {
            expect(pipeline.in_work + pipeline.window_in_use + pipeline.windows == 0,
                   "a metric has work that has ended");
            dead += pipeline.dead_letters;
        }
        std::uint64_t letters = 0;
        for (const sluice::DeadLetterMetrics& stage : now.dead_letters) {
            letters = std::accumulate(stage.dead_letters.begin(), stage.dead_letters.end(), letters);
        }
        expect(dead == letters_ && letters == letters_, "a metric has lost a dead letter");
    }

private:
    struct Times {
        std::chrono::nanoseconds queue_time{};
        std::chrono::nanoseconds latency{};
    } times_;  // of all stage runs
    std::uint64_t failures_ = 0;
    std::uint64_t retries_ = 0;
    std::uint64_t letters_ = 0;
};

}  // namespace properties
