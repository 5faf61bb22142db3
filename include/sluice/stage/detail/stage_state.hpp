// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/deadline_error.hpp>
#include <sluice/stage/detail/argument.hpp>
#include <sluice/stage/detail/attempt_of.hpp>
#include <sluice/stage/detail/backoff_wait.hpp>
#include <sluice/stage/detail/breaker_permit.hpp>
#include <sluice/stage/detail/breaker_state.hpp>
#include <sluice/stage/detail/deadline.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/rate_options.hpp>
#include <sluice/stage/detail/retry_budget_state.hpp>
#include <sluice/stage/detail/retry_decision.hpp>
#include <sluice/stage/model_function.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/callee.hpp>
#include <sluice/sync/detail/cancelled_by.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/context_bound.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/detail/timeouts.hpp>
#include <sluice/sync/timeout.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <variant>

namespace sluice::detail {

// What the handles to one Stage share, and the parts of a StageRun, which runs a query through it: whoever awaits one
// keeps this alive. Retries, backoff and timeouts have coroutines of their own, which exist only while they are needed.
template <class Function, class T>
class StageState {
public:
    using Timer = T;

    using Callee = std::remove_reference_t<decltype(callee(std::declval<Function&>()))>;
    template <class... Args>
    using Value = model_value_t<Function&, call_argument_t<Args>...>;
    template <class... Args>
    using RunExecutor = model_executor_t<Function&, call_argument_t<Args>...>;

    // Of a model function that takes none there is none.
    template <class... Args>
    using AttemptFor =
        std::conditional_t<takes_attempt<Function&, call_argument_t<Args>...>, std::optional<AttemptOf<T>>, NoAttempt>;

    StageState(SharedString stage_name, std::shared_ptr<EndpointState> stage_endpoint, Function function,
               const StageOptions& options)
        : name(std::move(stage_name)),
          endpoint(std::move(stage_endpoint)),
          function_(std::move(function)),
          options_(options) {
        if (name.empty()) {
            throw std::invalid_argument("Stage: the name must not be empty");
        }
        const std::string who = "Stage '" + name.str() + "'";
        if (is_empty(function_)) {
            throw std::invalid_argument(who + ": the model function must not be empty");
        }
        if (options.timeout) {
            require(options.timeout->count() > 0, who, "timeout must be positive", options.timeout->count(), " ns");
        }
        require_valid(who, options.retry);
        if (!options.retry.backoff.seed) {  // on virtual time everything is reproducible, including the jitter
            options_.retry.backoff.seed = HasNow<T> ? std::hash<std::string>()(name.str()) : random_seed();
        }
    }

    StageState(const StageState&) = delete;
    StageState& operator=(const StageState&) = delete;

    WhileOpen while_open() const noexcept { return options_.while_open; }

    const SharedString name;
    const std::shared_ptr<EndpointState> endpoint;

private:
    template <class, class, class...>
    friend class StageRun;
    template <class, class, class...>
    friend class StageCoroutine;

    // How an attempt failed, or the wait for a slot before it.
    struct Failure {
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

        // Whether the next attempt has the place in line of this one: the provider has not served it.
        bool returns() const noexcept { return spared || is_throttled(verdict); }

        Observer::Event last_event() const noexcept {
            return attempted ? Observer::Event::started : Observer::Event::queued;
        }
    };

    static Failure failure_of(InPlaceRun& run) noexcept {
        Failure failure;
        failure.error = std::exchange(run.error, nullptr);
        failure.attempted = true;
        failure.is_plain = run.error_is_plain;
        return failure;
    }

    void notify(QueryRun<T>& query, auto event, const auto&... args) const noexcept {
        if (Observer* const observer = options_.observer ? options_.observer : query.observer) {
            (observer->*event)(args...);
            query.expire_reading();
        }
    }

    void finish_cancelled(QueryRun<T>& query, StageResult<>& result, std::exception_ptr error,
                          Observer::Event last) const noexcept {
        result.error = std::move(error);
        notify(query, &Observer::on_finished, result, Observer::Outcome::cancelled, last);
    }

    void finish_failed(QueryRun<T>& query, StageResult<>& result, Failure& failure) const noexcept {
        result.error = std::move(failure.error);
        result.reason = failure.reason;
        notify(query, &Observer::on_finished, result, Observer::Outcome::failed,
               failure.attempted ? Observer::Event::attempt_failed : Observer::Event::queued);
    }

    void finish_closed(QueryRun<T>& query, StageResult<>& result) const noexcept {
        result.error = std::make_exception_ptr(operation_aborted("the endpoint was closed"));
        result.reason = Reason::closed;
        notify(query, &Observer::on_finished, result, Observer::Outcome::failed, Observer::Event::queued);
    }

    void finish_missing(QueryRun<T>& query, StageResult<>& result) const noexcept {
        result.error = std::make_exception_ptr(std::logic_error("a field that the stage reads is empty"));
        result.reason = Reason::missing;
        notify(query, &Observer::on_finished, result, Observer::Outcome::failed, Observer::Event::queued);
    }

    // Whether an error may be that of a throttled call.
    bool may_be_throttled(bool is_plain) const noexcept { return !is_plain || endpoint->verdict != &verdict_of; }

    // Asks for the verdict on a failed attempt. What the provider asks for pauses its endpoint.
    void judge(Failure& failure) const noexcept {
        if (!may_be_throttled(failure.is_plain)) {
            return;
        }
        try {
            failure.verdict = endpoint->verdict(failure.error);
        } catch (...) {
            failure.verdict_error = std::current_exception();
        }
        if (asks_for_pause(failure.verdict)) {
            endpoint->policies->pause_as_asked(*failure.verdict.retry_after);
        }
    }

    // Begins the wait of an attempt in the line; see Line::decide().
    template <class... Args>
    bool enter_line(LineEntry& entry, Failure& failure, const DeadlineOf<T>* deadline, typename T::time_point now,
                    std::remove_reference_t<Args>&... args) {
        static_assert(
            EstimatesCost<Function, call_argument_t<Args>...> || !requires { &Callee::cost; },
            "sluice::Stage: cost() of the model function must take the arguments that the function takes, and "
            "return a sluice::Cost");
        if (deadline && deadline->is_over(now)) {
            leave_line(entry, deadline, deadline->due);
            return true;
        }
        if constexpr (EstimatesCost<Function, call_argument_t<Args>...>) {
            try {
                if (!(is_missing<Args>(args) || ...)) {
                    entry.cost = callee(function_).cost(read_argument<Args>(args)...);
                    require_valid("Stage '" + name.str() + "'", entry.cost);
                }
            } catch (...) {
                failure.error = std::current_exception();
                failure.refused = true;
                entry.outcome = WaitOutcome::refused;
                return true;
            }
        }
        Line& line = *endpoint->policies;
        if (deadline) {
            entry.expires = std::min(entry.expires, line.now() + deadline->left(now));
        }
        return line.decide(entry);
    }

    // Whether the wait of an attempt in the line may have to be cut short.
    bool limits_wait(const DeadlineOf<T>* deadline) const noexcept {
        return deadline || endpoint->policies->max_wait();
    }

    // Waits in the line until the query is late, or the attempt has waited for as long as it may. @pre limits_wait()
    template <class Executor>
    static boost::asio::awaitable<void, Executor> wait_in_line(Pooled, StageState& stage, LineEntry& entry,
                                                               const DeadlineOf<T>* deadline,
                                                               typename T::time_point began) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        const auto until = *earlier(deadline, stage.endpoint->policies->max_wait(), began);
        const typename Timeouts<T>::Wait wait(*stage.timeouts_, executor, until, entry);
        co_await stage.endpoint->policies->wait(entry);
        if (wait.expired() && entry.outcome == WaitOutcome::aborted) {
            leave_line(entry, deadline, until);
        }
    }

    // After a wait in the line. A slot that comes when the wait is to be cut short is returned.
    void end_wait(LineEntry& entry, const DeadlineOf<T>* deadline, typename T::time_point began,
                  typename T::time_point now) const {
        const auto until = earlier(deadline, endpoint->policies->max_wait(), began);
        if (until && now >= *until && entry.outcome == WaitOutcome::granted) {
            endpoint->policies->cancel_call(entry, false);
            granted_slot(endpoint->line).release();
            leave_line(entry, deadline, *until);
        }
    }

    // Refuses an attempt that could wait until then.
    static void leave_line(LineEntry& entry, const DeadlineOf<T>* deadline, typename T::time_point until) noexcept {
        entry.outcome = WaitOutcome::refused;
        entry.refusal = deadline && until == deadline->due ? LineEntry::Refusal::late : LineEntry::Refusal::waited;
    }

    // Returns `error` with the error of the attempt before nested in it, if there was one.
    template <class Error>
    static std::exception_ptr nest(const Error& error, const std::exception_ptr& previous) {
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

    // An attempt that was cut short for its query, and has no error of its own, has that of the attempt before.
    static void nest_if_late(Failure& failure, const DeadlineOf<T>* deadline, const std::exception_ptr& previous) {
        if (failure.reason == Reason::deadline && previous && !nested_exception(failure.error)) {
            failure.error = nest(DeadlineError(deadline->timeout), previous);
        }
    }

    // The attempt has no slot. `previous` is the error of the attempt before it, and `last` that of a query that is
    // late.
    void not_granted(const LineEntry& entry, Failure& failure, const DeadlineOf<T>* deadline,
                     const std::exception_ptr& previous, const std::exception_ptr& last) const {
        if (failure.error) {
            return;
        }
        failure.refused = entry.outcome == WaitOutcome::refused;
        if (!failure.refused) {
            failure.error = std::make_exception_ptr(operation_aborted("StageSemaphore::acquire"));
            return;
        }
        const Line& line = *endpoint->policies;
        const std::string owner = "endpoint '" + endpoint->name.str() + "'";
        switch (entry.refusal) {
            case LineEntry::Refusal::too_costly:
                failure.error = std::make_exception_ptr(std::invalid_argument(line.meter().too_costly(entry.cost)));
                failure.reason = Reason::too_costly;
                break;
            case LineEntry::Refusal::late:
                failure.error = nest(DeadlineError(deadline->timeout), last);
                failure.reason = Reason::deadline;
                break;
            case LineEntry::Refusal::too_late_to_begin:
                failure.error = nest(DeadlineError(deadline->timeout, line.call_time()), last);
                failure.reason = Reason::deadline;
                break;
            case LineEntry::Refusal::full:
                failure.error = nest(std::runtime_error("the line of " + owner +
                                                        " is full: " + format_number(line.max_waiting()) + " wait"),
                                     previous);
                failure.reason = Reason::overloaded;
                break;
            case LineEntry::Refusal::waited:
                failure.error =
                    nest(std::runtime_error("waited " + in_milliseconds(*line.max_wait()) + " in the line of " + owner),
                         previous);
                failure.reason = Reason::overloaded;
                break;
            case LineEntry::Refusal::breaker_open:
            case LineEntry::Refusal::none:
                failure.error = nest(std::runtime_error("the circuit breaker of " + owner + " is open"), previous);
                failure.reason = Reason::breaker_open;
                break;
        }
    }

    // Reports what became of a call to the rates and to the breaker.
    void report(LineEntry& entry, Failure& failure, bool cancelled, std::optional<Cost> usage) const noexcept {
        Line& line = *endpoint->policies;
        if (!entry.line) {
            return;
        }
        if (cancelled && !usage) {
            line.cancel_call(entry, true);
            return;
        }
        // Of a call that was cut short for its query, the timeout of the stage could tell whether it took too long.
        const bool cut_short = failure.reason == Reason::deadline && options_.timeout;
        const BreakerResult result = cancelled       ? BreakerResult::ignored
                                     : cut_short     ? BreakerResult::cut_short
                                     : failure.error ? call_result(failure.verdict)
                                                     : BreakerResult::success;
        if (!usage && failure.error && is_throttled(failure.verdict)) {
            usage = Cost{.requests = entry.charge.granted.requests};  // it has got no answer
        }
        const BreakerReport report = line.end(entry, usage, result);
        failure.spared = report.spares_retry() && line.holds(entry.while_open);
        failure.failed_probe = report.failed_probe;
    }

    // When an attempt is cancelled, if it is.
    std::optional<typename T::time_point> due(const DeadlineOf<T>* deadline, typename T::time_point started) const {
        return earlier(deadline, options_.timeout, started);
    }

    // The earlier of the end of a timeout that began then and that of the query's.
    static std::optional<typename T::time_point> earlier(const DeadlineOf<T>* deadline,
                                                         const std::optional<std::chrono::nanoseconds>& timeout,
                                                         typename T::time_point began) {
        if (!timeout) {
            return deadline ? std::optional(deadline->due) : std::nullopt;
        }
        const auto own = due_after<T>(began, *timeout);
        return deadline ? std::min(own, deadline->due) : own;
    }

    // After an attempt, which failed or not.
    void end_attempt(QueryRun<T>& query, StageResult<>& result, typename T::time_point started, bool failed,
                     const std::optional<typename T::time_point>& due) const {
        const auto now = query.read_clock(state_of(endpoint->line)->context());
        result.latency += now - started;
        if (!failed && due && now > *due) {
            result.late = true;  // it blocked the thread and, with it, the timer
        }
    }

    void finish_succeeded(QueryRun<T>& query, StageResult<>& result) const noexcept {
        result.success = true;
        notify(query, &Observer::on_finished, result, Observer::Outcome::succeeded, Observer::Event::started);
    }

    void finish_not_accepted(QueryRun<T>& query, StageResult<>& result, std::exception_ptr why) const noexcept {
        result.late = false;
        result.error = std::move(why);
        result.reason = Reason::not_accepted;
        notify(query, &Observer::on_finished, result, Observer::Outcome::failed, Observer::Event::started);
    }

    // Ends a stage run that was cancelled, by an exception. `cancelled` says whether its coroutine was.
    void throw_if_cancelled(QueryRun<T>& query, StageResult<>& result, Failure& failure, bool cancelled) const {
        if (cancelled || (!failure.attempted && !failure.refused && !state_of(endpoint->line)->closed())) {
            if (cancelled) {
                failure.error = std::make_exception_ptr(operation_aborted("Stage::run"));
            }
            finish_cancelled(query, result, failure.error, failure.last_event());
            std::rethrow_exception(failure.error);
        }
    }

    // A stage run on an endpoint whose context is gone. Gives other coroutines a turn, since nothing else here does.
    template <class Executor>
    static boost::asio::awaitable<void, Executor> fail_closed(Pooled, StageState& stage, QueryRun<T>& query,
                                                              StageResult<>& result) {
        co_await boost::asio::post(co_await boost::asio::this_coro::executor, boost::asio::deferred);
        stage.notify(query, &Observer::on_queued, result);
        stage.finish_closed(query, result);
    }

    // One attempt that is cancelled when it is `due`. Throws a TimeoutError or a DeadlineError if it was due before it
    // threw.
    template <class Data, class... Args>
    static boost::asio::awaitable<void, RunExecutor<Args...>> timed_attempt(
        Pooled, StageState& stage, const DeadlineOf<T>* deadline, typename T::time_point due, StageResult<>& result,
        Failure& failure, std::optional<Data>& data, std::remove_reference_t<Args>&... args) {
        using Model = boost::asio::awaitable<Value<Args...>, RunExecutor<Args...>>;
        const RunExecutor<Args...> executor = co_await boost::asio::this_coro::executor;
        typename Timeouts<T>::Call call(*stage.timeouts_, executor, due);
        try {
            if constexpr (std::is_same_v<Data, Value<Args...>>) {
                co_await cancelled_by(call, data, Model(callee(stage.function_)(read_argument<Args>(args)...)));
            } else {
                std::optional<Value<Args...>> value;
                co_await cancelled_by(call, value, Model(callee(stage.function_)(read_argument<Args>(args)...)));
                data.emplace(*std::move(value));
            }
            result.late = call.expired();
        } catch (...) {
            failure.cancelled = call.cancelled_from_outside();
            const bool is_late = deadline && due == deadline->due;
            if (call.expired()) {
                failure.reason = is_late ? Reason::deadline : Reason::timeout;
            }
            if (is_late) {
                throw_timed_out<T, DeadlineError>(call, deadline->timeout);
            }
            throw_timed_out<T>(call, *stage.options_.timeout);
        }
    }

    // After a failed attempt: ends the stage run, or waits until it is time for another attempt. Returns whether it is.
    template <class Executor>
    static boost::asio::awaitable<bool, Executor> try_again(Pooled, StageState& stage, QueryRun<T>& query,
                                                            StageResult<>& result, Failure& failure,
                                                            RetryDecision& decision, BudgetedRun& budgeted,
                                                            std::uint64_t number, bool was_cancelled) {
        stage.notify(query, &Observer::on_attempt_failed, result, StageError(failure.error));
        const int retries = decision.retries();
        auto delay = stage.delay_before_retry(query, decision, number, failure);
        if (delay && decision.retries() != retries && !budgeted.begin_retry()) {
            result.retries_withheld = true;
            delay.reset();
        }
        if (!delay) {
            stage.finish_failed(query, result, failure);
            co_return false;
        }
        stage.notify(query, &Observer::on_retry, result, failure.verdict, *delay);
        try {
            if (delay->count() > 0) {
                co_await BackoffWait<T>::template run<Executor>(Pooled(), query.place, *delay);
                if (query.place && query.place->has_left()) {
                    co_await BackoffWait<T>::template come_back<Executor>(Pooled(), *stage.timeouts_, *query.place);
                }
            } else if (result.attempts % 64 == 0) {  // an attempt may fail without suspending
                co_await boost::asio::post(co_await boost::asio::this_coro::executor, boost::asio::deferred);
            }
            // In case the cancellation came after the backoff.
            if (!was_cancelled && is_cancelled(co_await boost::asio::this_coro::cancellation_state)) {
                throw operation_aborted("Stage::run");
            }
        } catch (...) {
            stage.finish_cancelled(query, result, std::current_exception(), Observer::Event::attempt_failed);
            throw;
        }
        query.expire_reading();
        co_return true;
    }

    std::optional<std::chrono::nanoseconds> delay_before_retry(const QueryRun<T>& query, RetryDecision& decision,
                                                               std::uint64_t number, Failure& failure) const {
        if (failure.reason == Reason::deadline && !failure.verdict_error) {
            return std::nullopt;
        }
        auto delay = decision.after(options_.retry, number, failure.error, failure.spared,
                                    !may_be_throttled(failure.is_plain), [&](const std::exception_ptr&) {
                                        if (failure.verdict_error) {
                                            std::rethrow_exception(failure.verdict_error);
                                        }
                                        return failure.verdict;
                                    });
        if (delay && is_throttled(failure.verdict) && failure.verdict.retry_after == delay) {
            delay = std::chrono::nanoseconds(0);  // the pause holds the line
        }
        if (const DeadlineOf<T>* const deadline = query.deadline(); deadline && delay) {
            const auto time = now<T>(state_of(endpoint->line)->context());
            const auto closed = endpoint->policies->closed_for(failure.while_open);
            if (deadline->is_over(time) || std::max(*delay, closed) >= deadline->left(time)) {
                failure.reason = Reason::deadline;
                return std::nullopt;
            }
        }
        return delay;
    }

    Function function_;
    StageOptions options_;
    std::uint64_t runs_ = 0;  // gives each stage run its own jitter

    // Of the attempts, and of all that a query with a timeout waits for in this stage.
    const boost::intrusive_ptr<Timeouts<T>> timeouts_{new Timeouts<T>(WhenIdle::cancel_later)};
};

}  // namespace sluice::detail
