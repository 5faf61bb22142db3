// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/reason.hpp>
#include <sluice/stage/deadline_error.hpp>
#include <sluice/stage/detail/breaker_permit.hpp>
#include <sluice/stage/detail/breaker_state.hpp>
#include <sluice/stage/detail/deadline.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/rate_meter.hpp>
#include <sluice/stage/detail/rate_options.hpp>
#include <sluice/stage/detail/retry_decision.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <algorithm>
#include <chrono>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>

namespace sluice::detail {

// Returns `error` with the error of the attempt before nested in it, if there was one.
template <class Error>
std::exception_ptr nest(const Error& error, const std::exception_ptr& previous) {
    if (!previous) {
        return std::make_exception_ptr(error);
    }
    try {
        std::rethrow_exception(previous);
    } catch (...) {
        try {
            std::throw_with_nested(error);
        } catch (...) {
            return std::current_exception();
        }
    }
}

// Whether an error may be that of a throttled call. A plain one contains no ModelError.
inline bool may_be_throttled(const EndpointState& endpoint, bool is_plain) noexcept {
    return !is_plain || endpoint.verdict != &verdict_of;
}

// How an attempt failed, or the wait for a slot before it.
struct AttemptFailure {
    std::exception_ptr error;  // null as long as nothing failed
    Reason reason = Reason::model;
    bool attempted = false;
    bool cancelled = false;  // during the attempt, if the attempt could tell
    bool refused = false;    // by the line
    bool is_plain = false;   // contains no ModelError; asking later would take as long as the rest of the failure
    bool spared = false;     // uses up no retry
    bool failed_probe = false;
    WhileOpen while_open = WhileOpen::hold_unless_exhausted;  // whether the attempt waits for an open breaker
    Verdict verdict = {};
    std::exception_ptr verdict_error = nullptr;  // what the verdict function threw

    // That of an attempt in place.
    static AttemptFailure of(InPlaceRun& run) noexcept {
        AttemptFailure failure;
        failure.error = std::exchange(run.error, nullptr);
        failure.attempted = true;
        failure.is_plain = run.error_is_plain;
        return failure;
    }

    // Whether the next attempt has the place in line of this one: the provider has not served it.
    bool returns() const noexcept { return spared || is_throttled(verdict); }

    Observer::Event last_event() const noexcept {
        return attempted ? Observer::Event::started : Observer::Event::queued;
    }

    // Asks for the verdict on a failed attempt. What the provider asks for pauses its endpoint.
    void judge(const EndpointState& endpoint) noexcept {
        if (!may_be_throttled(endpoint, is_plain)) {
            return;
        }
        try {
            verdict = endpoint.verdict(error);
        } catch (...) {
            verdict_error = std::current_exception();
        }
        if (asks_for_pause(verdict)) {
            verdict.retry_after = std::min(*verdict.retry_after, Line::longest_pause_asked);  // the backoff, too
            endpoint.policies->pause(*verdict.retry_after);
        }
    }

    // An attempt that was cut short for its query, and has no error of its own, has that of the attempt before.
    void nest_if_late(const Deadline* deadline, const std::exception_ptr& previous) {
        if (reason == Reason::deadline && previous && !nested_exception(error)) {
            error = nest(DeadlineError(deadline->timeout), previous);
        }
    }

    // The attempt has no slot. `previous` is the error of the attempt before it, and `last` that of a query that is
    // late.
    void not_granted(const LineEntry& entry, const EndpointState& endpoint, const Deadline* deadline,
                     const std::exception_ptr& previous, const std::exception_ptr& last) {
        if (error) {
            return;
        }
        refused = entry.outcome == WaitOutcome::refused;
        if (!refused) {
            error = std::make_exception_ptr(operation_aborted("StageSemaphore::acquire"));
            return;
        }
        const Line& line = *endpoint.policies;
        const std::string owner = "endpoint '" + endpoint.name.str() + "'";
        switch (entry.refusal) {
            case LineEntry::Refusal::too_costly:
                error = std::make_exception_ptr(std::invalid_argument(too_costly(line.meter(), entry.cost)));
                reason = Reason::too_costly;
                break;
            case LineEntry::Refusal::late:
                error = nest(DeadlineError(deadline->timeout), last);
                reason = Reason::deadline;
                break;
            case LineEntry::Refusal::too_late_to_begin:
                error = nest(DeadlineError(deadline->timeout, line.call_time()), last);
                reason = Reason::deadline;
                break;
            case LineEntry::Refusal::full:
                error = nest(std::runtime_error("the line of " + owner + " is full: at most " +
                                                format_number(line.max_waiting()) + " may wait"),
                             previous);
                reason = Reason::overloaded;
                break;
            case LineEntry::Refusal::waited:
                error =
                    nest(std::runtime_error("waited " + in_milliseconds(*line.max_wait()) + " in the line of " + owner),
                         previous);
                reason = Reason::overloaded;
                break;
            case LineEntry::Refusal::breaker_open:
            case LineEntry::Refusal::none:
                error = nest(std::runtime_error("the circuit breaker of " + owner + " is open"), previous);
                reason = Reason::breaker_open;
                break;
        }
    }

    // Says why a call was refused as too costly, even if the rates have changed since.
    static std::string too_costly(const RateMeter& meter, const Cost& cost) {
        std::string why = meter.too_costly(cost);
        if (!why.empty()) {
            return why;
        }
        std::string text = "a call of";
        const char* separator = " ";
        for (const RateDimension& dimension : rate_dimensions) {
            text += separator + std::to_string(cost.*dimension.cost) + " " + dimension.unit;
            separator = ", ";
        }
        return text + " could not begin under a rate that the endpoint had while it waited";
    }

    // Reports what became of a call, which may have succeeded, to the rates and to the breaker. `timeout` is that of
    // its stage.
    void report(LineEntry& entry, const EndpointState& endpoint, const std::optional<std::chrono::nanoseconds>& timeout,
                bool was_cancelled, std::optional<Cost> usage) noexcept {
        Line& line = *endpoint.policies;
        if (!entry.line) {
            return;
        }
        if (was_cancelled && !usage) {
            line.cancel_call(entry, true);
            return;
        }
        // Of a call that was cut short for its query, the timeout of the stage could tell whether it took too long.
        const bool cut_short = reason == Reason::deadline && timeout;
        const BreakerResult result = was_cancelled ? BreakerResult::ignored
                                     : cut_short   ? BreakerResult::cut_short
                                     : error       ? call_result(verdict)
                                                   : BreakerResult::success;
        if (!usage && error && is_throttled(verdict)) {
            usage = Cost{.requests = entry.charge.granted.requests};  // it has got no answer
        }
        const BreakerReport told = line.end(entry, usage, result);
        spared = told.spares_retry() && line.holds(entry.while_open);
        failed_probe = told.failed_probe;
    }
};

}  // namespace sluice::detail
