// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/stage_error.hpp>

#include <chrono>
#include <vector>

namespace support {

/// Passes every event on to several observers.
class Observers final : public sluice::Observer {
public:
    void add(sluice::Observer& observer) { all_.push_back(&observer); }
    bool empty() const noexcept { return all_.empty(); }

    void on_queued(const sluice::StageResult<>& run) noexcept override {
        for (auto* each : all_) each->on_queued(run);
    }
    void on_started(const sluice::StageResult<>& run) noexcept override {
        for (auto* each : all_) each->on_started(run);
    }
    void on_attempt_failed(const sluice::StageResult<>& run, const sluice::StageError& error) noexcept override {
        for (auto* each : all_) each->on_attempt_failed(run, error);
    }
    void on_retry(const sluice::StageResult<>& run, const sluice::Verdict& verdict,
                  std::chrono::nanoseconds delay) noexcept override {
        for (auto* each : all_) each->on_retry(run, verdict, delay);
    }
    void on_finished(const sluice::StageResult<>& run, Outcome outcome, Event last) noexcept override {
        for (auto* each : all_) each->on_finished(run, outcome, last);
    }
    void on_skipped(const sluice::SharedString& query_id, const sluice::SharedString& stage,
                    sluice::Reason reason) noexcept override {
        for (auto* each : all_) each->on_skipped(query_id, stage, reason);
    }
    void on_dead_letter(const sluice::Query& query, const sluice::StageResult<>& run,
                        const sluice::StageError& sink_error) noexcept override {
        for (auto* each : all_) each->on_dead_letter(query, run, sink_error);
    }

private:
    std::vector<Observer*> all_;
};

}  // namespace support
