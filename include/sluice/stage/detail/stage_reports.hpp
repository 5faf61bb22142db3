// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/detail/attempt_failure.hpp>
#include <sluice/sync/detail/exceptions.hpp>

#include <exception>
#include <stdexcept>
#include <utility>

namespace sluice::detail {

// Reports the stage runs of a stage to its observer, or else to that of the query's pipeline. `query` is a QueryRun.
//
// Each finish function completes the result of a stage run and reports its end.
class StageReports {
public:
    // `own` is the observer of the stage, or null.
    explicit StageReports(Observer* own) noexcept : own_(own) {}

    void notify(auto& query, auto event, const auto&... args) const noexcept {
        if (Observer* const observer = own_ ? own_ : query.observer) {
            (observer->*event)(args...);
            query.expire_reading();
        }
    }

    void finish_succeeded(auto& query, StageResult<>& result) const noexcept {
        result.success = true;
        notify(query, &Observer::on_finished, result, Observer::Outcome::succeeded, Observer::Event::started);
    }

    void finish_not_accepted(auto& query, StageResult<>& result, std::exception_ptr why) const noexcept {
        result.late = false;
        result.error = std::move(why);
        result.reason = Reason::not_accepted;
        notify(query, &Observer::on_finished, result, Observer::Outcome::failed, Observer::Event::started);
    }

    void finish_cancelled(auto& query, StageResult<>& result, std::exception_ptr error,
                          Observer::Event last) const noexcept {
        result.error = std::move(error);
        notify(query, &Observer::on_finished, result, Observer::Outcome::cancelled, last);
    }

    void finish_failed(auto& query, StageResult<>& result, AttemptFailure& failure) const noexcept {
        result.error = std::move(failure.error);
        result.reason = failure.reason;
        notify(query, &Observer::on_finished, result, Observer::Outcome::failed,
               failure.attempted ? Observer::Event::attempt_failed : Observer::Event::queued);
    }

    void finish_closed(auto& query, StageResult<>& result,
                       const std::exception_ptr& previous = nullptr) const noexcept {
        result.error = nest(operation_aborted("the endpoint was closed"), previous);
        result.reason = Reason::closed;
        notify(query, &Observer::on_finished, result, Observer::Outcome::failed, Observer::Event::queued);
    }

    void finish_missing(auto& query, StageResult<>& result) const noexcept {
        result.error = std::make_exception_ptr(std::logic_error("a field that the stage reads is empty"));
        result.reason = Reason::missing;
        notify(query, &Observer::on_finished, result, Observer::Outcome::failed, Observer::Event::queued);
    }

private:
    Observer* const own_;
};

}  // namespace sluice::detail
