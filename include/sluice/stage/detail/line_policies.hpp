// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/breaker_permit.hpp>
#include <sluice/stage/detail/breaker_state.hpp>
#include <sluice/stage/detail/call_times.hpp>
#include <sluice/stage/detail/line_entry.hpp>
#include <sluice/stage/detail/rate_meter.hpp>
#include <sluice/stage/detail/retry_budget_state.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>

namespace sluice::detail {

// The policies of an endpoint, except its limit. They decide when an attempt may begin and whether it is refused, debit
// it when it begins, and account for it when it ends. Nothing waits here: after a change, ask again on behalf of all
// that wait.
//
// Times are those of the line, and do not decrease.
class LinePolicies {
public:
    using Time = std::chrono::nanoseconds;

    // `options` are valid.
    explicit LinePolicies(const EndpointOptions& options)
        : meter_(options.requests, options.input_tokens, options.output_tokens),
          max_wait_(options.max_wait),
          furthest_first_(options.order == LineOrder::furthest_first) {
        if (options.breaker) {
            breaker_.emplace(*options.breaker);
        }
        if (options.retry_budget) {
            retry_budget_.emplace(*options.retry_budget);
        }
        if (options.shed_late) {
            call_times_.emplace();
        }
        if (options.max_waiting) {
            max_waiting_ = static_cast<std::size_t>(*options.max_waiting);
        }
        check();
    }

    // Whether there are rates, a breaker, or refusals by the time that calls take: an attempt may not begin although a
    // slot is free.
    bool any_limit() const noexcept { return any_limit_; }

    // Whether there is any policy but a pause.
    bool any() const noexcept { return any_; }

    const RateMeter& meter() const noexcept { return meter_; }
    const std::optional<BreakerState>& breaker() const noexcept { return breaker_; }

    // Null if there is none.
    RetryBudgetState* retry_budget() noexcept { return retry_budget_ ? &*retry_budget_ : nullptr; }

    // How many may wait, and for how long.
    std::size_t max_waiting() const noexcept { return max_waiting_; }
    const std::optional<Time>& max_wait() const noexcept { return max_wait_; }

    // Whether those that have completed more steps go first.
    bool furthest_first() const noexcept { return furthest_first_; }

    // The time that a call takes, as far as it is known and asked for; 0 otherwise.
    Time call_time() const noexcept { return call_times_ ? call_times_->median() : Time(0); }

    // How often probes, or a person, have closed the breaker.
    std::uint64_t closings() const noexcept { return closings_; }

    void set_rate(Rate::Dimension dimension, const Rate& rate, Time now) noexcept {
        meter_.set_rate(dimension, rate, now);
        check();
    }

    // Lets no call begin before `duration` has passed.
    void pause(Time duration, Time now) noexcept { meter_.pause(after(now, duration), now); }

    // The time until the pause ends; zero if there is none.
    Time pause_left(Time now) const noexcept { return std::max(meter_.paused_until(), now) - now; }

    // Calls a member function of the breaker, which there is.
    void change_breaker(void (BreakerState::*change)(Time) noexcept, Time now) noexcept {
        (*breaker_.*change)(now);
        if (breaker_->closed()) {
            ++closings_;
        }
    }

    // When an attempt of this cost may begin if nothing else happens: `now`, later, or `Time::max()` if that is never.
    Time due(const Cost& cost, Time now) const noexcept {
        const Time at = meter_.due(cost, now);
        return breaker_ ? std::max(at, breaker_->earliest(now)) : at;
    }

    // The time before which no attempt can begin, whatever calls that run may give back.
    Time closed_until(Time now) const noexcept {
        const Time until = meter_.paused_until();
        if (breaker_) {
            const Time at = breaker_->earliest(now);
            return at == Time::max() ? until : std::max(until, at);  // nobody knows when probes end, or a person acts
        }
        return until;
    }

    // How long an attempt waits at least, unless somebody opens the line before.
    Time closed_for(WhileOpen while_open, Time now) const noexcept {
        const Time until = breaker_ && !holds(while_open) ? meter_.paused_until() : closed_until(now);
        return until > now ? until - now : Time(0);
    }

    // Whether an attempt waits for the breaker, which there is.
    bool holds(WhileOpen while_open) const noexcept {
        return while_open == WhileOpen::hold ||
               (while_open == WhileOpen::hold_unless_exhausted && !breaker_->tripped());
    }

    // From when on an attempt could not be done in time: when less than the time that a call takes is left of the
    // timeout of its query, or of the grace of a drain.
    Time too_late_from(const Waiter& waiter) const noexcept {
        const Time end_by = end_by_of(waiter);
        return call_time() == Time(0) || end_by == Time::max() ? Time::max() : end_by - call_time() + Time(1);
    }

    // Refuses an entry for which that is so.
    bool is_too_late(LineEntry& entry, Time now) const noexcept {
        if (now < too_late_from(entry)) {
            return false;
        }
        entry.refusal = now < entry.expires ? LineEntry::Refusal::too_late_to_begin : LineEntry::Refusal::late;
        return true;
    }

    // Refuses an entry that will never be due, or not in time, or does not wait for the breaker.
    bool refuses(LineEntry& entry, Time now) const noexcept {
        entry.refusal = meter_.is_affordable(entry.cost) ? refusal(entry.while_open, entry.expires, now)
                                                         : LineEntry::Refusal::too_costly;
        return entry.refusal != LineEntry::Refusal::none;
    }

    // The same of any waiter. One without an entry only has a time when it is late.
    bool refuses(Waiter& waiter, Time now) const noexcept {
        return waiter.is_line_entry ? refuses(static_cast<LineEntry&>(waiter), now)
                                    : refusal(WhileOpen::hold, expires_of(waiter), now) != LineEntry::Refusal::none;
    }

    // Why an attempt that entered now would not wait, or would wait until it is late.
    LineEntry::Refusal refusal(WhileOpen while_open, Time expires, Time now) const noexcept {
        if (breaker_ && breaker_->earliest(now) > now && !holds(while_open)) {
            return LineEntry::Refusal::breaker_open;
        }
        return expires != Time::max() && expires <= closed_until(now) ? LineEntry::Refusal::late
                                                                      : LineEntry::Refusal::none;
    }

    // A waiter is granted a slot: it pays its cost, and begins under the breaker. @pre due(cost_of(waiter), now) <= now
    void debit(Waiter& waiter, Time now) noexcept {
        const Charge charge = meter_.debit(cost_of(waiter), now);
        if (!waiter.is_line_entry) {
            meter_.settle(charge);
            return;
        }
        auto& entry = static_cast<LineEntry&>(waiter);
        entry.granted = now;
        entry.charge = charge;
        if (breaker_) {
            entry.call = BreakerPermit(&*breaker_, now);
        }
    }

    // The call of an entry that has paid was cancelled, before it began: it gets everything back.
    void refund(LineEntry& entry, Time now) noexcept {
        meter_.refund(entry.charge, now);
        entry.call.release();
    }

    // The same after it began: its estimate stands.
    void cancel(LineEntry& entry) noexcept {
        meter_.settle(entry.charge);
        entry.call.release();
    }

    // The call of an entry that has paid has ended. Nothing for `usage` if the provider reported none.
    BreakerReport end(LineEntry& entry, const std::optional<Cost>& usage, BreakerResult result, Time now) noexcept {
        meter_.settle(entry.charge, usage.value_or(entry.charge.granted), now);
        if (call_times_ && result == BreakerResult::success) {
            call_times_->add(now - entry.granted);
        }
        BreakerReport report;
        if (entry.call) {
            report = entry.call.report(result, now);
        }
        closings_ += report.closed ? 1 : 0;
        return report;
    }

    // The time that is `duration` after `now`; `Time::max()` if there is none.
    static constexpr Time after(Time now, Time duration) noexcept {
        return duration < Time::max() - now ? now + duration : Time::max();
    }

private:
    static constexpr std::size_t any_number = std::numeric_limits<std::size_t>::max();

    void check() noexcept {
        any_limit_ = breaker_ || call_times_ || meter_.periods(Rate::requests) != 0 ||
                     meter_.periods(Rate::input_tokens) != 0 || meter_.periods(Rate::output_tokens) != 0;
        any_ = any_limit_ || retry_budget_ || max_waiting_ != any_number || max_wait_ || furthest_first_;
    }

    RateMeter meter_;
    std::optional<BreakerState> breaker_;
    std::optional<RetryBudgetState> retry_budget_;
    std::optional<CallTimes> call_times_;  // if queries are refused that could not be done in time
    std::size_t max_waiting_ = any_number;
    std::optional<Time> max_wait_;
    std::uint64_t closings_ = 0;
    bool furthest_first_ = false;
    bool any_limit_ = false;
    bool any_ = false;
};

}  // namespace sluice::detail
