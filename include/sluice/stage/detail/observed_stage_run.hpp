// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/result.hpp>
#include <sluice/stage_error.hpp>

#include <exception>

namespace sluice::detail {

// A stage run and its observer, if it has one.
struct ObservedStageRun {
    Observer* observer;
    const StageResult<>& stage_run;

    void queued() const noexcept {
        if (observer) {
            observer->on_queued(stage_run);
        }
    }
    void started() const noexcept {
        if (observer) {
            observer->on_started(stage_run);
        }
    }
    void attempt_failed(const std::exception_ptr& error) const noexcept {
        if (observer) {
            observer->on_attempt_failed(stage_run, error);
        }
    }
    void finished(Observer::Outcome outcome, Observer::Event last_event) const noexcept {
        if (observer) {
            observer->on_finished(stage_run, outcome, last_event);
        }
    }
};

}  // namespace sluice::detail
