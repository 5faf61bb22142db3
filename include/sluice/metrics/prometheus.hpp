// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/metrics/detail/endpoint_text.hpp>
#include <sluice/metrics/detail/prometheus_text.hpp>
#include <sluice/metrics/histogram.hpp>
#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/reason.hpp>
#include <sluice/stage/verdict.hpp>

#include <cstddef>
#include <string>

namespace sluice {

/// Returns a snapshot in the text format of Prometheus, version 0.0.4, for an HTTP response with the content type
/// `text/plain; version=0.0.4; charset=utf-8`.
///
/// @code
/// const std::string text = sluice::prometheus(metrics.snapshot());
/// @endcode
///
/// The families, by their labels:
/// @li `stage`: the gauges `sluice_stage_queued`, `sluice_stage_running` and `sluice_stage_in_backoff`; the counters
/// `sluice_stage_entered_total`, `sluice_stage_finished_total` (also by `outcome`), `sluice_stage_skipped_total`,
/// `sluice_stage_attempts_total`, `sluice_stage_failed_attempts_total` and `sluice_stage_retries_total` (also by
/// `verdict`); the histograms `sluice_stage_queue_seconds` and `sluice_stage_latency_seconds`, with the boundaries
/// 10 ms, 20 ms, 40 ms, ... 81.92 s
/// @li `stage`: the counters `sluice_dead_letters_total` (also by `reason`) and `sluice_dead_letters_lost_total`
/// @li `endpoint`: the gauges `sluice_endpoint_limit`, `sluice_endpoint_active`, `sluice_endpoint_waiting` and
/// `sluice_endpoint_pause_left_seconds`
/// @li `endpoint`, of those that have a breaker: the gauge `sluice_endpoint_breaker_state` (also by `state`: 1 for the
/// state that it is in, 0 for the others); the counter `sluice_endpoint_breaker_openings_total`
/// @li `endpoint`, of those that have the rate, for `UNIT` = `requests`, `input_tokens` and `output_tokens`: the gauges
/// `sluice_endpoint_UNIT_left` and `sluice_endpoint_UNIT_burst` (also by `period_seconds`), and
/// `sluice_endpoint_UNIT_outstanding`; the counters `sluice_endpoint_UNIT_granted_total` and
/// `sluice_endpoint_UNIT_settled_total`
/// @li `pipeline`: the gauges `sluice_pipeline_window`, `sluice_pipeline_windows`, `sluice_pipeline_window_in_use` and
/// `sluice_pipeline_in_work`; the counter `sluice_pipeline_queries_total` (also by `outcome`)
///
/// A family without a sample is left out. Names may contain any characters, in UTF-8.
///
/// The format: https://prometheus.io/docs/instrumenting/exposition_formats
inline std::string prometheus(const MetricsSnapshot& snapshot) {
    detail::PrometheusText text;
    const auto stages = [&](const char* name, const char* type, const char* help, auto value) {
        text.family(name, type, help, snapshot.stages,
                    [&](const StageMetrics& stage) { text.sample({{"stage", stage.stage}}, value(stage)); });
    };
    stages("sluice_stage_queued", "gauge", "Stage runs that wait for a slot.",
           [](auto& stage) { return stage.queued; });
    stages("sluice_stage_running", "gauge", "Stage runs that have a slot.", [](auto& stage) { return stage.running; });
    stages("sluice_stage_in_backoff", "gauge", "Stage runs between a failed attempt and the next one.",
           [](auto& stage) { return stage.in_backoff; });
    stages("sluice_stage_entered_total", "counter", "Stage runs that have begun.",
           [](auto& stage) { return stage.entered; });
    text.family("sluice_stage_finished_total", "counter", "Stage runs that have ended, by outcome.", snapshot.stages,
                [&](const StageMetrics& stage) {
                    text.sample({{"stage", stage.stage}, {"outcome", "succeeded"}}, stage.succeeded);
                    text.sample({{"stage", stage.stage}, {"outcome", "failed"}}, stage.failed);
                    text.sample({{"stage", stage.stage}, {"outcome", "cancelled"}}, stage.cancelled);
                });
    stages("sluice_stage_skipped_total", "counter", "Queries for which a fallback has skipped the stage.",
           [](auto& stage) { return stage.skipped; });
    stages("sluice_stage_attempts_total", "counter", "Attempts that have begun.",
           [](auto& stage) { return stage.attempts; });
    stages("sluice_stage_failed_attempts_total", "counter", "Attempts that have failed, timeouts included.",
           [](auto& stage) { return stage.failed_attempts; });
    text.family("sluice_stage_retries_total", "counter",
                "Retries that were decided, by the verdict on the error of the attempt before.", snapshot.stages,
                [&](const StageMetrics& stage) {
                    for (std::size_t kind = 0; kind != stage.retries.size(); ++kind) {
                        text.sample({{"stage", stage.stage}, {"verdict", to_string(Verdict::Kind(kind))}},
                                    stage.retries[kind]);
                    }
                });
    text.family("sluice_stage_queue_seconds", "histogram", "The time of each wait for a slot.", snapshot.stages,
                [&](const StageMetrics& stage) { text.histogram("stage", stage.stage, stage.queue_time); });
    text.family("sluice_stage_latency_seconds", "histogram", "The time of each attempt.", snapshot.stages,
                [&](const StageMetrics& stage) { text.histogram("stage", stage.stage, stage.latency); });

    text.family("sluice_dead_letters_total", "counter",
                "Queries that went to the dead-letter sink, by stage and reason.", snapshot.dead_letters,
                [&](const DeadLetterMetrics& stage) {
                    for (std::size_t reason = 1; reason != stage.dead_letters.size(); ++reason) {
                        text.sample({{"stage", stage.stage}, {"reason", to_string(Reason(reason))}},
                                    stage.dead_letters[reason]);
                    }
                });
    text.family("sluice_dead_letters_lost_total", "counter", "Dead letters for which the sink has thrown.",
                snapshot.dead_letters,
                [&](const DeadLetterMetrics& stage) { text.sample({{"stage", stage.stage}}, stage.lost); });

    detail::write_endpoints(text, snapshot.endpoints);

    const auto pipelines = [&](const char* name, const char* help, auto value) {
        text.family(name, "gauge", help, snapshot.pipelines, [&](const PipelineMetrics& pipeline) {
            text.sample({{"pipeline", pipeline.pipeline}}, value(pipeline));
        });
    };
    pipelines("sluice_pipeline_window", "Queries that a batch or a stream may run at once.",
              [](auto& pipeline) { return pipeline.window; });
    pipelines("sluice_pipeline_windows", "Batches and streams that run.",
              [](auto& pipeline) { return pipeline.windows; });
    pipelines("sluice_pipeline_window_in_use", "Queries that have a place in the window of a batch or a stream.",
              [](auto& pipeline) { return pipeline.window_in_use; });
    pipelines("sluice_pipeline_in_work", "Queries that have been taken in and have not ended.",
              [](auto& pipeline) { return pipeline.in_work; });
    text.family("sluice_pipeline_queries_total", "counter", "Queries that have ended, by outcome.", snapshot.pipelines,
                [&](const PipelineMetrics& pipeline) {
                    text.sample({{"pipeline", pipeline.pipeline}, {"outcome", "completed"}}, pipeline.completed);
                    text.sample({{"pipeline", pipeline.pipeline}, {"outcome", "dead_letter"}}, pipeline.dead_letters);
                    text.sample({{"pipeline", pipeline.pipeline}, {"outcome", "cancelled"}}, pipeline.cancelled);
                    text.sample({{"pipeline", pipeline.pipeline}, {"outcome", "unfinished"}}, pipeline.unfinished);
                });
    return text.take();
}

}  // namespace sluice
