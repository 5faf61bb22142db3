// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/query.hpp>

#include <exception>

namespace sluice::detail {

// One run, and who is told of it, if anyone.
struct Watched {
    Observer* observer;
    const StageResult<>& run;

    void queued() const noexcept {
        if (observer) {
            observer->on_queued(run);
        }
    }
    void started() const noexcept {
        if (observer) {
            observer->on_started(run);
        }
    }
    void attempt_failed(const std::exception_ptr& error) const noexcept {
        if (observer) {
            observer->on_attempt_failed(run, error);
        }
    }
    void finished(Observer::Outcome outcome, Observer::Event last) const noexcept {
        if (observer) {
            observer->on_finished(run, outcome, last);
        }
    }
};

}  // namespace sluice::detail
