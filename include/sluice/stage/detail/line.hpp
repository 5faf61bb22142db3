// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/shared_string.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/detail/breaker_state.hpp>
#include <sluice/stage/detail/drain_scope.hpp>
#include <sluice/stage/detail/line_entry.hpp>
#include <sluice/stage/detail/line_policies.hpp>
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
#include <optional>
#include <utility>

namespace sluice::detail {

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
// An attempt that the provider has refused may return to its old place, which its ticket says. Until it has entered
// again, the next one is the head.
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
        : SemaphoreState(options.limit), policies_(options), name_(std::move(name)), observer_(options.observer) {
        set_gated(policies_.any_limit());
    }

    // Whether an attempt must be a LineEntry, since it may cost more than one request, is reported to the breaker, or
    // may be refused a place in the line or have one ahead of others; or its stage run a BudgetedRun, since there is a
    // retry budget.
    bool needs_entries() const noexcept { return policies_.any() || gated(); }

    // Begins the wait of an entry. Returns whether its outcome is decided: granted, closed or refused. Otherwise it
    // must enter now.
    bool decide(LineEntry& entry) noexcept {
        some_expire_ = some_expire_ || entry.expires != Time::max();
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
            if (policies_.refuses(entry, time)) {
                entry.outcome = WaitOutcome::refused;
                return true;
            }
            if (waiting() != 0 || active() >= limit() || policies_.due(entry.cost, time) > time) {
                return false;
            }
            if (policies_.is_too_late(entry, time)) {
                entry.outcome = WaitOutcome::refused;
                return true;
            }
            grant(entry, time);  // nobody waits who might have to be refused now
        }
        entry.outcome = WaitOutcome::granted;
        if (!entry.returns) {
            entry.ticket = ++last_ticket_;
        }
        tell_of_breaker();
        return true;
    }

    // `expires` of one that waits, or is about to enter, has been set to an earlier time.
    void refuse_if_late(LineWaiter& waiter) noexcept {
        some_expire_ = true;
        if (waiter.is_linked() && waiter.outcome == WaitOutcome::waiting && gated()) {
            if (policies_.refuses(waiter, now())) {
                wake(waiter, WaitOutcome::refused);
            }
            hand_over();
        }
    }

    // The call of an entry that was granted a slot has ended. Nothing for `usage` if the provider reported none. The
    // observer is told later, by tell_of_breaker().
    BreakerReport end(LineEntry& entry, const std::optional<Cost>& usage, BreakerResult result) noexcept {
        if (!std::exchange(entry.line, nullptr)) {  // it was granted in an open line
            return {};
        }
        const BreakerReport report = policies_.end(entry, usage, result, now());
        if (report.opened || report.tripped) {
            refuse_waiting();
        }
        serve_line();
        return report;
    }

    // Tells the observer what the breaker has become since the last time. To be called when the slot of a call that has
    // ended has been returned.
    void tell_of_breaker() noexcept {
        if (!observer_ || !breaker() || breaker()->generation() == told_generation_) [[likely]] {
            return;
        }
        const boost::intrusive_ptr<Line> kept(this);
        const BreakerStatus after = breaker()->status(breaker()->since());
        told_generation_ = after.generation;
        observer_->on_breaker(name_, std::exchange(told_state_, after.state), after);
    }

    // The call of an entry that was granted a slot was cancelled: after it began, unless `begun` is false.
    void cancel_call(LineEntry& entry, bool begun) noexcept {
        if (entry.line) {
            give_up(entry, begun);
            hand_over();
        }
    }

    void set_rate(Rate::Dimension dimension, const Rate& rate) noexcept {
        policies_.set_rate(dimension, rate, now());
        set_gated(true);
        refuse_waiting();
        hand_over();
    }

    // Lets no call begin before `duration` has passed.
    void pause(Time duration) noexcept {
        const boost::intrusive_ptr<Line> kept(this);
        const Time time = now();
        const Time before = pause_left(time);
        policies_.pause(duration, time);
        const Time remaining = pause_left(time);
        set_gated(true);
        if (some_expire_) {
            refuse_waiting();
        }
        hand_over();
        if (observer_ && remaining > before) {
            observer_->on_paused(name_, remaining, before);
        }
    }

    // The same because the provider asks for it. Whatever it asks for, it is asked again after two minutes.
    static constexpr Time longest_pause_asked = std::chrono::minutes(2);
    void pause_as_asked(Time duration) noexcept { pause(std::min(duration, longest_pause_asked)); }

    // Calls a member function of the breaker, which there is.
    void change_breaker(void (BreakerState::*change)(Time) noexcept) noexcept {
        policies_.change_breaker(change, now());
        refuse_waiting();
        hand_over();
    }

    // How long an attempt waits at least, unless somebody opens the line before.
    Time closed_for(WhileOpen while_open) noexcept { return policies_.closed_for(while_open, now()); }

    // Why an attempt that entered now would not wait, or would wait until it is late; it is that in `left`.
    LineEntry::Refusal refusal(WhileOpen while_open, Time left) noexcept {
        if (closed() || !gated()) {
            return LineEntry::Refusal::none;
        }
        const Time time = now();
        return policies_.refusal(while_open, LinePolicies::after(time, left), time);
    }

    // See LinePolicies.
    const RateMeter& meter() const noexcept { return policies_.meter(); }
    const std::optional<BreakerState>& breaker() const noexcept { return policies_.breaker(); }
    RetryBudgetState* retry_budget() noexcept { return policies_.retry_budget(); }
    std::size_t max_waiting() const noexcept { return policies_.max_waiting(); }
    const std::optional<Time>& max_wait() const noexcept { return policies_.max_wait(); }
    Time call_time() const noexcept { return policies_.call_time(); }
    Time pause_left(Time time) const noexcept { return policies_.pause_left(time); }
    bool holds(WhileOpen while_open) const noexcept { return policies_.holds(while_open); }
    std::uint64_t closings() const noexcept { return policies_.closings(); }

    // The ticket of one that enters without a LineEntry.
    std::uint32_t take_ticket() noexcept { return ++last_ticket_; }

    virtual Time now() noexcept = 0;

    // The first time, on this clock, that is after the grace of a drain.
    Time after_grace(DrainScope& drain) { return now() + drain.left(context()) + Time(1); }

protected:
    // Calls on_timer() at that time, and not at one that was asked for before. Without the memory for that, the program
    // terminates, as it does if a queue cannot post its drain.
    virtual void arm(Time time) noexcept = 0;
    virtual void disarm() noexcept = 0;

    void on_timer() noexcept { hand_over(); }

    void hand_over() noexcept override {
        serve_line();
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
        if (waiter.outcome == WaitOutcome::waiting && !waiter.returns && this->waiting() > max_waiting()) {
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
    // Grants the free slots to those whose turn it is.
    void serve_line() noexcept { gated() ? grant_what_is_due() : SemaphoreState::hand_over(); }

    void grant_what_is_due() noexcept {
        while (waiting() != 0 && active() < limit()) {
            const Time time = now();
            Waiter& head = next();
            if (head.is_line_entry && policies_.is_too_late(static_cast<LineEntry&>(head), time)) {
                wake(head, WaitOutcome::refused);
                continue;
            }
            if (Time at = policies_.due(cost_of(head), time); at > time) {
                at = std::min(at, policies_.too_late_from(head));
                at == Time::max() ? disarm() : arm(at);
                return;
            }
            grant(head, time);
            wake(head, WaitOutcome::granted);
            if (breaker() && !breaker()->closed()) {
                refuse_waiting();  // there may be no place for a further probe
            }
        }
        disarm();
        if (!policies_.any_limit() && meter().paused_until() <= now()) {
            set_gated(false);
        }
    }

    // The one that is granted next: as a probe, not one that has failed as such before, as long as others wait. It may
    // be the cause of the failure, and would keep the breaker open for all.
    Waiter& next() noexcept {
        if (breaker() && !breaker()->closed()) {
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
        const int more = policies_.furthest_first() ? steps_of(waiter) - steps_of(other) : 0;
        return more > 0 || (more == 0 && static_cast<std::int32_t>(other.ticket - waiter.ticket) > 0);
    }

    // Takes a slot, and all else that an attempt costs.
    void grant(Waiter& waiter, Time time) noexcept {
        policies_.debit(waiter, time);
        if (waiter.is_line_entry) {
            static_cast<LineEntry&>(waiter).line = this;
        }
        take();
    }

    void give_up(LineEntry& entry, bool begun) noexcept {
        if (begun) {
            policies_.cancel(entry);
        } else {
            policies_.refund(entry, now());
        }
        entry.line.reset();
    }

    void refuse_waiting() noexcept {
        const Time time = now();
        wake_if([&](Waiter& waiter) { return policies_.refuses(waiter, time); }, WaitOutcome::refused);
    }

    LinePolicies policies_;
    const SharedString name_;
    EndpointObserver* const observer_;
    std::uint64_t told_generation_ = 0;  // of the breaker
    BreakerStatus::State told_state_ = BreakerStatus::closed;
    std::uint32_t last_ticket_ = 0;
    bool some_expire_ = false;  // who wait, or some have
};

inline LineEntry::LineEntry() noexcept { is_line_entry = true; }

inline LineEntry::~LineEntry() {
    if (line) {
        const boost::intrusive_ptr<Line> kept = line;
        kept->cancel_call(*this, true);
    }
}

}  // namespace sluice::detail
