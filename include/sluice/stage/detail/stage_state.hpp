// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/deadline_error.hpp>
#include <sluice/stage/detail/argument.hpp>
#include <sluice/stage/detail/attempt_failure.hpp>
#include <sluice/stage/detail/attempt_of.hpp>
#include <sluice/stage/detail/backoff_wait.hpp>
#include <sluice/stage/detail/deadline.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/line_wait.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/rate_options.hpp>
#include <sluice/stage/detail/retry_budget_state.hpp>
#include <sluice/stage/detail/retry_decision.hpp>
#include <sluice/stage/detail/stage_reports.hpp>
#include <sluice/stage/model_function.hpp>
#include <sluice/stage/stage_options.hpp>
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
class StageState : private StageReports {
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
        : StageReports(options.observer),
          name(std::move(stage_name)),
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
    const StageReports& reports() const noexcept { return *this; }

    const SharedString name;
    const std::shared_ptr<EndpointState> endpoint;

private:
    template <class, class, class...>
    friend class StageRun;
    template <class, class, class...>
    friend class StageCoroutine;

    // Begins the wait of an attempt in the line; see Line::decide(). The time that the estimate takes is nobody's:
    // `now` is moved to its end.
    template <class... Args>
    bool enter_line(QueryRun<T>& query, LineEntry& entry, AttemptFailure& failure, const DeadlineOf<T>* deadline,
                    typename T::time_point& now, std::remove_reference_t<Args>&... args) {
        static_assert(
            EstimatesCost<Function, call_argument_t<Args>...> || !requires { &Callee::cost; },
            "sluice::Stage: cost() of the model function must take the arguments that the function takes, and "
            "return a sluice::Cost");
        Line& line = *endpoint->policies;
        if (deadline) {
            entry.expires = std::min(entry.expires, line.now() + deadline->left(now));
            if (deadline->is_over(now)) {
                LineWait<T>::refuse(entry, deadline, deadline->due);
                return true;
            }
        }
        if constexpr (EstimatesCost<Function, call_argument_t<Args>...>) {
            try {
                entry.lacks_cost = (is_missing<Args>(args) || ...);
                if (!entry.lacks_cost) {
                    entry.cost = callee(function_).cost(read_argument<Args>(args)...);
                    require_valid("Stage '" + name.str() + "'", entry.cost);
                }
            } catch (...) {
                failure.error = std::current_exception();
                failure.refused = true;
                entry.outcome = WaitOutcome::refused;
                return true;
            }
            query.expire_reading();
            now = query.now(state_of(endpoint->line)->context());
            if (deadline && deadline->is_over(now)) {
                LineWait<T>::refuse(entry, deadline, deadline->due);
                return true;
            }
        }
        return line.decide(entry);
    }

    // When an attempt is cancelled, if it is.
    std::optional<typename T::time_point> due(const DeadlineOf<T>* deadline, typename T::time_point started) const {
        return earlier(deadline, options_.timeout, started);
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

    // Ends a stage run that was cancelled, by an exception. `cancelled` says whether its coroutine was.
    void throw_if_cancelled(QueryRun<T>& query, StageResult<>& result, AttemptFailure& failure, bool cancelled) const {
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
    // threw. A value that may be removed again comes into `data` only when nothing can run before that is decided.
    template <class Data, bool may_be_removed, class... Args>
    static boost::asio::awaitable<void, RunExecutor<Args...>> timed_attempt(
        Pooled, StageState& stage, const DeadlineOf<T>* deadline, typename T::time_point due, StageResult<>& result,
        AttemptFailure& failure, std::optional<Data>& data, std::remove_reference_t<Args>&... args) {
        using Model = boost::asio::awaitable<Value<Args...>, RunExecutor<Args...>>;
        const RunExecutor<Args...> executor = co_await boost::asio::this_coro::executor;
        typename Timeouts<T>::Call call(*stage.timeouts_, executor, due);
        try {
            if constexpr (std::is_same_v<Data, Value<Args...>> && !may_be_removed) {
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
                                                            StageResult<>& result, AttemptFailure& failure,
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
                                                               std::uint64_t number, AttemptFailure& failure) const {
        if (failure.reason == Reason::deadline && !failure.verdict_error) {
            return std::nullopt;
        }
        auto delay = decision.after(options_.retry, number, failure.error, failure.spared,
                                    !may_be_throttled(*endpoint, failure.is_plain), [&](const std::exception_ptr&) {
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
