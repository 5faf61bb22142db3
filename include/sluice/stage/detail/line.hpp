// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/shared_string.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/detail/breaker_permit.hpp>
#include <sluice/stage/detail/breaker_state.hpp>
#include <sluice/stage/detail/call_times.hpp>
#include <sluice/stage/detail/rate_meter.hpp>
#include <sluice/stage/detail/retry_budget_state.hpp>
#include <sluice/stage/endpoint_observer.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/detail/semaphore_state.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>

namespace sluice::detail {

class Line;

// An attempt in the line of its endpoint. If it is destroyed without Line::end(), its call was cancelled.
struct LineEntry : Waiter {
    LineEntry() noexcept { is_line_entry = true; }
    ~LineEntry();

    LineEntry(const LineEntry&) = delete;
    LineEntry& operator=(const LineEntry&) = delete;

    // Before it enters: what it costs, by estimate, and what it does while the breaker is open.
    Cost cost;
    WhileOpen while_open = WhileOpen::hold_unless_exhausted;
    bool failed_probe = false;  // an attempt before did
    std::uint16_t steps = 0;    // which its query has completed

    // When it will be late, on the clock of the line.
    std::chrono::nanoseconds expires = std::chrono::nanoseconds::max();

    // When it has been granted a slot: when, and what was taken for it at that instant.
    std::chrono::nanoseconds granted{0};
    boost::intrusive_ptr<Line> line;
    Charge charge;
    BreakerPermit<BreakerState*> call;

    // Otherwise, if it was refused, why.
    enum class Refusal : std::uint8_t { none, too_costly, breaker_open, late, too_late_to_begin, full, waited };
    Refusal refusal = Refusal::none;

    // Whether it was refused for its time.
    bool is_late() const noexcept { return refusal == Refusal::late || refusal == Refusal::too_late_to_begin; }
};

// The line of an endpoint: a semaphore whose slot, rates, pause and breaker are granted together, to the head of the
// line, and debited at that instant. So a waiter holds no slot while it waits for a rate, and whoever leaves the line
// has taken nothing.
//
//     due = max(rates, end of the pause, breaker)
//     while something waits and a slot is free: if the head is due, grant; otherwise arm the timer for when it is
//     (and if the head could not be done in time any more, refuse it, and go on with the next)
//
// This is done again whenever one of these may have changed: a waiter enters or is cancelled, a slot comes back, the
// timer expires, a limit, a rate or the pause changes, a call is settled or reported to the breaker.
//
// As long as there are no rates, no breaker and no pause, the line is *open*, and does nothing that a semaphore does
// not; others than LineEntries may wait in it then. If a rate comes while they wait, each pays one request, even if it
// is cancelled between its grant and its resumption.
//
// An attempt that the provider has refused may return to its old place, which its ticket says.
//
// If those that have completed more steps go first, whoever comes is placed ahead of all that have completed fewer. So
// the head is the first to be granted here too.
//
// The observer is called last in each operation, since it may begin any other, and drop the last reference to the line.
//
// `now()` counts from an origin, and never decreases.
class Line : public SemaphoreState {
public:
    using Time = std::chrono::nanoseconds;

    // `options` are valid, and `name` is that of the endpoint.
    explicit Line(const EndpointOptions& options, SharedString name = {})
        : SemaphoreState(options.limit),
          name_(std::move(name)),
          observer_(options.observer),
          meter_(options.requests, options.input_tokens, options.output_tokens) {
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
        max_wait_ = options.max_wait;
        furthest_first_ = options.order == LineOrder::furthest_first;
        check_policies();
        set_gated(is_limited_);
    }

    // Whether an attempt must be a LineEntry, since it may cost more than one request, is reported to the breaker, or
    // may be refused a place in the line or have one ahead of others; or its stage run a BudgetedRun, since there is a
    // retry budget.
    bool needs_entries() const noexcept { return has_policies_ || gated(); }

    // Begins the wait of an entry. Returns whether its outcome is decided: granted, closed or refused. Otherwise it
    // must enter now.
    bool decide(LineEntry& entry) noexcept {
        if (closed()) {
            entry.outcome = WaitOutcome::closed;
            return true;
        }
        if (!gated()) {
            if (!try_take()) {
                return false;
            }
        } else {
            const Time time = now();
            if (refuses(entry, time)) {
                entry.outcome = WaitOutcome::refused;
                return true;
            }
            if (waiting() != 0 || active() >= limit() || due(entry.cost, time) > time) {
                return false;
            }
            if (is_too_late(entry, time)) {
                entry.outcome = WaitOutcome::refused;
                return true;
            }
            debit(entry, time);  // nobody waits who might have to be refused now
        }
        entry.outcome = WaitOutcome::granted;
        if (!entry.returns) {
            entry.ticket = ++last_ticket_;
        }
        tell_of_breaker();
        return true;
    }

    // `expires` of an entry, which may wait, has been set to an earlier time.
    void refuse_if_late(LineEntry& entry) noexcept {
        if (entry.outcome == WaitOutcome::waiting && gated()) {
            if (refuses(entry, now())) {
                wake(entry, WaitOutcome::refused);
            }
            hand_over();
        }
    }

    // The call of an entry that was granted a slot has ended. Nothing for `usage` if the provider reported none.
    BreakerReport end(LineEntry& entry, const std::optional<Cost>& usage, BreakerResult result) noexcept {
        if (!std::exchange(entry.line, nullptr)) {  // it was granted in an open line
            return {};
        }
        const Time time = now();
        meter_.settle(entry.charge, usage.value_or(entry.charge.granted), time);
        if (call_times_ && result == BreakerResult::success) {
            call_times_->add(time - entry.granted);
        }
        BreakerReport report;
        if (entry.call) {
            report = entry.call.report(result, time);
        }
        if (report.opened) {
            refuse_waiting();
        }
        closings_ += report.closed ? 1 : 0;
        hand_over();
        return report;
    }

    // The call of an entry that was granted a slot was cancelled: after it began, unless `begun` is false.
    void cancel_call(LineEntry& entry, bool begun) noexcept {
        if (entry.line) {
            give_up(entry, begun);
            hand_over();
        }
    }

    void set_rate(Rate::Dimension dimension, const Rate& rate) noexcept {
        meter_.set_rate(dimension, rate, now());
        check_policies();
        set_gated(true);
        refuse_waiting();
        hand_over();
    }

    // Lets no call begin before `duration` has passed.
    void pause(Time duration) noexcept {
        const boost::intrusive_ptr<Line> kept(this);
        const Time time = now();
        const Time before = pause_left(time);
        meter_.pause(duration < Time::max() - time ? time + duration : Time::max(), time);
        const Time remaining = pause_left(time);
        set_gated(true);
        refuse_waiting();
        hand_over();
        if (observer_ && remaining > before) {
            observer_->on_paused(name_, remaining, before);
        }
    }

    // The same because the provider asks for it. Whatever it asks for, it is asked again after two minutes.
    void pause_as_asked(Time duration) noexcept { pause(std::min<Time>(duration, std::chrono::minutes(2))); }

    // The time until the pause ends; zero if there is none.
    Time pause_left(Time time) const noexcept { return std::max(meter_.paused_until(), time) - time; }

    const std::optional<BreakerState>& breaker() const noexcept { return breaker_; }

    // Calls a member function of the breaker, which there is.
    void change_breaker(void (BreakerState::*change)(Time) noexcept) noexcept {
        (*breaker_.*change)(now());
        refuse_waiting();
        hand_over();
    }

    // Whether an attempt waits for the breaker, which there is.
    bool holds(WhileOpen while_open) const noexcept {
        return while_open == WhileOpen::hold ||
               (while_open == WhileOpen::hold_unless_exhausted && !breaker_->tripped());
    }

    // How long an attempt waits at least, unless somebody opens the line before.
    Time closed_for(WhileOpen while_open) noexcept {
        const Time time = now();
        const Time until = breaker_ && !holds(while_open) ? meter_.paused_until() : closed_until(time);
        return until > time ? until - time : Time(0);
    }

    // Why an attempt that entered now would not wait, or would wait until it is late; it is that in `left`.
    LineEntry::Refusal refusal(WhileOpen while_open, Time left) noexcept {
        if (closed() || !gated()) {
            return LineEntry::Refusal::none;
        }
        const Time time = now();
        return refusal(while_open, left < Time::max() - time ? time + left : Time::max(), time);
    }

    // How often probes have closed the breaker.
    std::uint64_t closings() const noexcept { return closings_; }

    const RateMeter& meter() const noexcept { return meter_; }

    // Null if there is none.
    RetryBudgetState* retry_budget() noexcept { return retry_budget_ ? &*retry_budget_ : nullptr; }

    // How many may wait, and for how long.
    std::size_t max_waiting() const noexcept { return max_waiting_; }
    const std::optional<Time>& max_wait() const noexcept { return max_wait_; }

    // The time that a call takes, as far as it is known and asked for; 0 otherwise.
    Time call_time() const noexcept { return call_times_ ? call_times_->median() : Time(0); }

    // The ticket of whoever entered last. That of one that was granted a slot of an open line without a LineEntry.
    std::uint32_t last_ticket() const noexcept { return last_ticket_; }

    virtual Time now() noexcept = 0;

protected:
    // Calls on_timer() at that time, and not at one that was asked for before. Without the memory for that, the program
    // terminates, as it does if a queue cannot post its drain.
    virtual void arm(Time time) noexcept = 0;
    virtual void disarm() noexcept = 0;

    void on_timer() noexcept { hand_over(); }

    void hand_over() noexcept override {
        if (!gated()) {
            SemaphoreState::hand_over();
            return;
        }
        grant_what_is_due();
        tell_of_breaker();
    }

    void line_up(IntrusiveList<Waiter>& waiting, Waiter& waiter) noexcept override {
        const auto comes_after = [&](const Waiter& other) { return goes_before(waiter, other); };
        if (waiter.returns) {
            waiting.insert(waiter, comes_after);
        } else {
            waiter.ticket = ++last_ticket_;
            waiting.insert_back(waiter, comes_after);
        }
        if (gated()) {
            grant_what_is_due();
        }
        if (waiter.outcome == WaitOutcome::waiting && !waiter.returns && this->waiting() > max_waiting_) {
            static_cast<LineEntry&>(waiter).refusal = LineEntry::Refusal::full;
            wake(waiter, WaitOutcome::refused);
            if (gated()) {
                grant_what_is_due();  // the timer may be that of this one
            }
        }
        tell_of_breaker();
    }

    void on_cancel(Waiter& waiter) noexcept override {
        if (waiter.outcome == WaitOutcome::granted && waiter.is_line_entry && static_cast<LineEntry&>(waiter).line) {
            give_up(static_cast<LineEntry&>(waiter), false);
        }
        SemaphoreState::on_cancel(waiter);
        if (gated()) {
            hand_over();  // another head may be due earlier
        }
    }

    void on_context_gone() noexcept override {
        disarm();
        WaitQueue::on_context_gone();
    }

private:
    void grant_what_is_due() noexcept {
        while (waiting() != 0 && active() < limit()) {
            const Time time = now();
            Waiter& head = next();
            if (head.is_line_entry && is_too_late(static_cast<LineEntry&>(head), time)) {
                wake(head, WaitOutcome::refused);
                continue;
            }
            if (Time at = due(cost_of(head), time); at > time) {
                at = std::min(at, too_late_from(head));
                at == Time::max() ? disarm() : arm(at);
                return;
            }
            debit(head, time);
            wake(head, WaitOutcome::granted);
            if (breaker_ && !breaker_->closed()) {
                refuse_waiting();  // there may be no place for a further probe
            }
        }
        disarm();
        if (!is_limited_ && meter_.paused_until() <= now()) {
            set_gated(false);
        }
    }

    // Tells the observer what the breaker has become since the last time.
    void tell_of_breaker() noexcept {
        if (!observer_ || !breaker_ || breaker_->generation() == told_generation_) [[likely]] {
            return;
        }
        const boost::intrusive_ptr<Line> kept(this);
        const BreakerStatus after = breaker_->status(breaker_->since());
        told_generation_ = after.generation;
        observer_->on_breaker(name_, std::exchange(told_state_, after.state), after);
    }

    // The one that is granted next: as a probe, not one that has failed as such before, as long as others wait. It may
    // be the cause of the failure, and would keep the breaker open for all.
    Waiter& next() noexcept {
        if (breaker_ && !breaker_->closed()) {
            if (Waiter* const other = longest_waiting([](const Waiter& waiter) {
                    return !waiter.is_line_entry || !static_cast<const LineEntry&>(waiter).failed_probe;
                })) {
                return *other;
            }
        }
        return longest_waiting();
    }

    // Whether it waits ahead of the other. Tickets may wrap around.
    bool goes_before(const Waiter& waiter, const Waiter& other) const noexcept {
        const int more = furthest_first_ ? steps_of(waiter) - steps_of(other) : 0;
        return more > 0 || (more == 0 && static_cast<std::int32_t>(other.ticket - waiter.ticket) > 0);
    }

    static int steps_of(const Waiter& waiter) noexcept {
        return waiter.is_line_entry ? static_cast<const LineEntry&>(waiter).steps : 0;
    }

    void check_policies() noexcept {
        is_limited_ = breaker_ || call_times_ || meter_.periods(Rate::requests) != 0 ||
                      meter_.periods(Rate::input_tokens) != 0 || meter_.periods(Rate::output_tokens) != 0;
        has_policies_ = is_limited_ || retry_budget_ || max_waiting_ != any_number || max_wait_ || furthest_first_;
    }

    static Cost cost_of(const Waiter& waiter) noexcept {
        return waiter.is_line_entry ? static_cast<const LineEntry&>(waiter).cost : Cost();
    }

    Time due(const Cost& cost, Time time) const noexcept {
        const Time at = meter_.due(cost, time);
        return breaker_ ? std::max(at, breaker_->earliest(time)) : at;
    }

    // Takes a slot, and all else that an attempt costs.
    void debit(Waiter& waiter, Time time) noexcept {
        const Charge charge = meter_.debit(cost_of(waiter), time);
        if (waiter.is_line_entry) {
            auto& entry = static_cast<LineEntry&>(waiter);
            entry.granted = time;
            entry.line = this;
            entry.charge = charge;
            if (breaker_) {
                entry.call = BreakerPermit(&*breaker_, time);
            }
        } else {
            meter_.settle(charge);
        }
        take();
    }

    void give_up(LineEntry& entry, bool begun) noexcept {
        if (begun) {
            meter_.settle(entry.charge);
        } else {
            meter_.refund(entry.charge, now());
        }
        entry.call.release();
        entry.line.reset();
    }

    // The time before which no attempt can begin, whatever calls that run may give back.
    Time closed_until(Time time) const noexcept {
        const Time until = meter_.paused_until();
        if (breaker_) {
            const Time at = breaker_->earliest(time);
            return at == Time::max() ? until : std::max(until, at);  // nobody knows when probes end
        }
        return until;
    }

    // From when on an attempt could not be done in time: when less than the time that a call takes is left of the
    // timeout of its query, or of the grace of a drain.
    Time too_late_from(const Waiter& waiter) const noexcept {
        const Time expires = waiter.is_line_entry ? static_cast<const LineEntry&>(waiter).expires : Time::max();
        return call_time() == Time(0) || expires == Time::max() ? Time::max() : expires - call_time() + Time(1);
    }

    // Refuses an entry for which that is so.
    bool is_too_late(LineEntry& entry, Time time) const noexcept {
        if (time < too_late_from(entry)) {
            return false;
        }
        entry.refusal = time < entry.expires ? LineEntry::Refusal::too_late_to_begin : LineEntry::Refusal::late;
        return true;
    }

    // Refuses an entry that will never be due, or not in time, or does not wait for the breaker.
    bool refuses(LineEntry& entry, Time time) const noexcept {
        entry.refusal = meter_.is_affordable(entry.cost) ? refusal(entry.while_open, entry.expires, time)
                                                         : LineEntry::Refusal::too_costly;
        return entry.refusal != LineEntry::Refusal::none;
    }

    LineEntry::Refusal refusal(WhileOpen while_open, Time expires, Time time) const noexcept {
        if (breaker_ && breaker_->earliest(time) > time && !holds(while_open)) {
            return LineEntry::Refusal::breaker_open;
        }
        return expires != Time::max() && expires <= closed_until(time) ? LineEntry::Refusal::late
                                                                       : LineEntry::Refusal::none;
    }

    void refuse_waiting() noexcept {
        const Time time = now();
        wake_if([&](Waiter& waiter) { return waiter.is_line_entry && refuses(static_cast<LineEntry&>(waiter), time); },
                WaitOutcome::refused);
    }

    static constexpr std::size_t any_number = std::numeric_limits<std::size_t>::max();

    const SharedString name_;
    EndpointObserver* const observer_;
    RateMeter meter_;
    std::optional<BreakerState> breaker_;
    std::optional<RetryBudgetState> retry_budget_;
    std::optional<CallTimes> call_times_;  // if queries are refused that could not be done in time
    std::size_t max_waiting_ = any_number;
    std::optional<Time> max_wait_;
    std::uint64_t told_generation_ = 0;  // of the breaker
    BreakerStatus::State told_state_ = BreakerStatus::closed;
    std::uint64_t closings_ = 0;
    std::uint32_t last_ticket_ = 0;
    bool furthest_first_ = false;
    bool is_limited_ = false;  // by rates, the breaker, or the time that calls take
    bool has_policies_ = false;
};

inline LineEntry::~LineEntry() {
    if (line) {
        const boost::intrusive_ptr<Line> kept = line;
        kept->cancel_call(*this, true);
    }
}

}  // namespace sluice::detail
