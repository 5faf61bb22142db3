// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/detail/argument.hpp>
#include <sluice/stage/detail/attempt_failure.hpp>
#include <sluice/stage/detail/attempt_of.hpp>
#include <sluice/stage/detail/backoff_wait.hpp>
#include <sluice/stage/detail/deadline.hpp>
#include <sluice/stage/detail/drained_wait.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/line_wait.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/retry_budget_state.hpp>
#include <sluice/stage/detail/retry_decision.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/callee.hpp>
#include <sluice/sync/detail/context_bound.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <concepts>
#include <cstdint>
#include <exception>
#include <optional>
#include <utility>

namespace sluice::detail {

// The coroutine that runs one query through a stage.
//
// A `Target` says where its clock, its result and its value are: query(), result(), which is a reference, or an object
// that this frame holds, and data(result); what is to be done when the run has ended, or an exception leaves it:
// ended(result) and aborted(result); and what is returned: returned(result). A step may skip the run, and saves the
// record after it. The run of a member of a Fallback is told what stands behind it, and its value may be refused; see
// MemberTarget. The arguments lie in this frame too; an `Arg` is a reference or not. (A class, since g++ objects to
// the frame of a function template with an argument of an unnamed namespace.)
template <class State, class Target, class... Args>
class StageCoroutine {
    using Timer = typename State::Timer;

public:
    using Returned = typename Target::Returned;
    using Executor = typename State::template RunExecutor<Args...>;

    // Goes on with a run whose attempt in place has failed, if `begun` is not null.
    static boost::asio::awaitable<Returned, Executor> run(Pooled, State& stage, Target target, InPlaceRun* begun,
                                                          Args... args) {
        if constexpr (Target::is_step) {
            if (!begun) {
                target.begins();
                if (target.is_filled()) {
                    co_return target.skipped();
                }
            }
        }
        if constexpr (checks_context) {
            const Executor executor = co_await boost::asio::this_coro::executor;
            state_of(stage.endpoint->line)->check_context([&]() -> const auto& { return executor; });
        }
        auto& query = target.query();
        decltype(auto) own = target.result();
        auto& result = result_of(begun, own);
        const DeadlineOf<Timer>* const deadline = query.deadline();
        try {
            if constexpr (Target::is_step || Target::is_member) {
                if (query.place && query.place->has_left()) [[unlikely]] {  // the route has cut short a step in backoff
                    co_await BackoffWait<Timer>::template come_back<Executor>(Pooled(), *stage.timeouts_, *query.place);
                }
            }
            StageSemaphore& line = stage.endpoint->line;
            const boost::intrusive_ptr<Line> policies = stage.endpoint->policies;  // it may wait there for longer
            const bool context_gone = state_of(line)->context_gone();
            if (context_gone) {
                co_await State::template fail_closed<Executor>(Pooled(), stage, query, result);
            }
            const std::uint64_t number = stage.runs_++;
            const bool was_cancelled =
                begun ? begun->was_cancelled : is_cancelled(co_await boost::asio::this_coro::cancellation_state);
            BudgetedRun budgeted(policies->retry_budget());
            RetryDecision decision;
            std::optional<std::uint32_t> ticket;  // of the place in line to which the next attempt returns
            std::optional<std::uint64_t> outage;  // in which it was spared last
            int outages = 0;                      // in which it was
            bool failed_probe = false;
            bool is_queued = false;       // the observer has been told
            std::exception_ptr previous;  // error of an attempt
            while (!context_gone) {
                AttemptFailure failure;
                LineEntry entry;
                [[maybe_unused]] typename State::template AttemptFor<Args...> attempt;
                bool cancelled = false;
                if (begun) {
                    failure = AttemptFailure::of(*begun);
                    failure.judge(*stage.endpoint);  // before its slot is handed on
                    begun->slot.release();
                    entry.ticket = std::exchange(begun, nullptr)->ticket;
                } else {
                    boost::asio::execution_context& context = state_of(line)->context();
                    if (!std::exchange(is_queued, false)) [[likely]] {
                        stage.notify(query, &Observer::on_queued, result);
                    }
                    if constexpr (Target::is_member) {
                        target.judged(Verdict());  // nothing yet
                    }
                    auto started = query.now(context);
                    entry.returns = ticket.has_value();
                    entry.ticket = ticket.value_or(0);
                    entry.failed_probe = failed_probe;
                    entry.steps = query.steps();
                    failure.while_open = entry.while_open = while_open(stage, target);
                    std::optional<DrainedWait> drained;
                    if (query.place && query.place->drain) {
                        drained.emplace(*query.place, *policies, entry);
                    }
                    if (!stage.template enter_line<Args...>(query, entry, failure, deadline, started, args...)) {
                        try {
                            if (LineWait<Timer>::is_limited(*policies, deadline)) {
                                co_await LineWait<Timer>::template run<Executor>(Pooled(), *policies, *stage.timeouts_,
                                                                                 entry, deadline, started);
                            } else {
                                co_await policies->wait(entry);
                            }
                        } catch (...) {
                            failure.error = std::current_exception();
                        }
                        const auto queued = std::exchange(started, query.read_clock(context));
                        result.queue_time += started - queued;
                        LineWait<Timer>::end(*stage.endpoint, entry, deadline, queued, started);
                    }
                    if (entry.is_late() && drained && drained->gave_up()) {
                        query.place->gave_up = true;
                        entry.outcome = WaitOutcome::aborted;
                    }
                    drained.reset();
                    Slot slot;
                    if (entry.outcome == WaitOutcome::granted) {
                        slot = granted_slot(line);
                    }
                    if (!slot) {
                        const bool ends_query = deadline && deadline->is_over(started);
                        failure.not_granted(entry, *stage.endpoint, deadline, previous,
                                            ends_query ? last_error(target, previous) : previous);
                    }
                    if constexpr ((is_field_argument<Args> || ...)) {
                        if (slot && (is_missing<Args>(args) || ...)) {
                            policies->cancel_call(entry, false);
                            slot.release();
                            stage.finish_missing(query, result);
                            break;
                        }
                        if (slot && entry.lacks_cost) {  // filled while it waited: it goes back to its place, to pay
                            policies->cancel_call(entry, false);
                            slot.release();
                            ticket = entry.ticket;
                            is_queued = true;
                            continue;
                        }
                    }
                    if (slot && entry.line && !was_cancelled &&
                        is_cancelled(co_await boost::asio::this_coro::cancellation_state) &&
                        co_await boost::asio::this_coro::throw_if_cancelled()) {  // by an observer, or by cost()
                        policies->cancel_call(entry, false);
                        slot.release();
                        failure.error = std::make_exception_ptr(operation_aborted("Stage::run"));
                    }
                    if (slot) {
                        ++result.attempts;
                        stage.notify(query, &Observer::on_started, result);
                        failure.attempted = true;
                        const auto due = stage.due(deadline, started);
                        try {
                            if constexpr (takes_attempt) {
                                attempt.emplace(result, *policies, due);
                                if (due) {
                                    co_await State::template timed_attempt<typename Target::Data, may_be_removed,
                                                                           Args..., Attempt&>(
                                        Pooled(), stage, deadline, *due, result, failure, target.data(result), args...,
                                        *attempt);
                                } else {
                                    target.data(result).emplace(
                                        co_await callee(stage.function_)(read_argument<Args>(args)..., *attempt));
                                }
                            } else if (due) {
                                co_await State::template timed_attempt<typename Target::Data, may_be_removed, Args...>(
                                    Pooled(), stage, deadline, *due, result, failure, target.data(result), args...);
                            } else {
                                target.data(result).emplace(
                                    co_await callee(stage.function_)(read_argument<Args>(args)...));
                            }
                        } catch (const ModelError&) {
                            failure.error = std::current_exception();
                        } catch (...) {
                            failure.error = std::current_exception();
                            failure.is_plain = !may_be_multiple_exceptions();
                        }
                        budgeted.end_retry();
                        stage.end_attempt(query, result, started, failure.error != nullptr, due);
                        if constexpr (Target::is_member) {
                            if (!failure.error) {
                                target.ask(result);  // before its slot is handed on, as observers expect
                            }
                        }
                        // A cancellation that predates this run is ignored.
                        cancelled =
                            failure.error &&
                            (failure.cancelled ||
                             (!was_cancelled && is_cancelled(co_await boost::asio::this_coro::cancellation_state)));
                        if (failure.error && !cancelled) {
                            failure.judge(*stage.endpoint);  // before its slot is handed on
                            failure.nest_if_late(deadline, last_error(target, previous));
                            if constexpr (Target::is_member) {
                                target.judged(failure.verdict);
                            }
                        }
                        failure.report(entry, *stage.endpoint, stage.options_.timeout, cancelled, usage_of(attempt));
                        if (failure.spared && outage != policies->closings()) {
                            // Others have succeeded between outages. After the third it may be this query that fails.
                            outage = policies->closings();
                            failure.spared = ++outages <= 3;
                        }
                        slot.release();
                        policies->tell_of_breaker();
                    }
                }
                if (!failure.error) [[likely]] {
                    if constexpr (Target::is_member) {
                        if (target.refusal) {
                            stage.finish_not_accepted(query, result, std::move(target.refusal));
                            break;
                        }
                    }
                    stage.finish_succeeded(query, result);
                    break;
                }
                stage.throw_if_cancelled(
                    query, result, failure,
                    cancelled || (!was_cancelled && is_cancelled(co_await boost::asio::this_coro::cancellation_state)));
                if (failure.refused) {
                    stage.finish_failed(query, result, failure);
                    break;
                }
                if (!failure.attempted) {
                    stage.finish_closed(query, result, previous);
                    break;
                }
                previous = failure.error;
                if (!co_await State::template try_again<Executor>(Pooled(), stage, query, result, failure, decision,
                                                                  budgeted, number, was_cancelled)) {
                    break;
                }
                failed_probe = failed_probe || failure.failed_probe;
                ticket = failure.returns() ? std::optional(entry.ticket) : std::nullopt;
            }
        } catch (...) {
            target.aborted(result);
            throw;
        }
        target.ended(result);
        if constexpr (Target::is_step) {
            if (target.saves()) {
                const bool throws = co_await boost::asio::this_coro::throw_if_cancelled();
                co_await boost::asio::this_coro::throw_if_cancelled(false);
                co_await target.save();
                co_await boost::asio::this_coro::throw_if_cancelled(throws);
            }
        }
        co_return target.returned(result);
    }

private:
    static constexpr bool may_be_removed = [] {
        if constexpr (Target::is_member) {
            return Target::may_refuse;
        } else {
            return false;
        }
    }();
    static constexpr bool takes_attempt = !std::same_as<typename State::template AttemptFor<Args...>, NoAttempt>;

    static std::optional<Cost> usage_of(const auto& attempt) noexcept {
        if constexpr (takes_attempt) {
            return attempt->usage();
        } else {
            return std::nullopt;
        }
    }

    static WhileOpen while_open(const State& stage, const Target& target) noexcept {
        if constexpr (Target::is_member) {
            return target.while_open();
        } else {
            return stage.while_open();
        }
    }

    // That of the attempt before, or of the member of a Fallback that has failed before this one.
    static std::exception_ptr last_error(const Target& target, const std::exception_ptr& previous) noexcept {
        if constexpr (Target::is_member) {
            return previous ? previous : target.earlier;
        } else {
            return previous;
        }
    }

    // That of a step in place lies with its query.
    template <class Result>
    static Result& result_of(InPlaceRun* begun, Result& own) noexcept {
        if constexpr (Target::is_step) {
            return begun ? *begun->result : own;
        } else {
            return own;
        }
    }
};

}  // namespace sluice::detail
