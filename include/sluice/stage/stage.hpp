// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/model_function.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/callee.hpp>
#include <sluice/sync/detail/cancelled_by.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/detail/semaphore_state.hpp>
#include <sluice/sync/detail/timeouts.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/assert.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>

namespace sluice {

namespace detail {
template <class, class, class, class, class, class, class>
class PipelineState;
}

/// A model function behind a limit, a retry policy and a timeout.
///
/// The function is a ModelFunction: any callable that returns an `asio::awaitable<T>`. It is called with the arguments
/// of run(), as lvalues, since an attempt may have to be repeated. It may work on a thread pool through run_on(), which
/// can be timed out and cancelled there and resumes on the coroutine's executor. It must not leave
/// `this_coro::reset_cancellation_state` or `this_coro::throw_if_cancelled` changed: they belong to the coroutine that
/// runs the query.
///
/// A model function that blocks its thread stops everything on that thread, including timeouts. If it waits inside, for
/// a slot of another semaphore for example, the wait counts as latency and towards the timeout. If it runs its own
/// stage, it waits for a slot while it holds one; if every slot is held in this way, it waits forever.
///
/// An argument is converted to the function's parameter where the stage makes the call. A wrapper that converts it
/// again inside (a `std::function` with another signature, `std::bind_front`) must not pass a reference to the result
/// to a coroutine: the result is gone when the coroutine begins.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. A stage and the coroutines that run it belong to one thread or
/// strand, that of the executor.
///
/// @par Lifetime
/// A stage and its observer must outlive the coroutines that run it. The execution context may be destroyed before or
/// after the stage.
template <class Function, Timer TimerType = boost::asio::steady_timer>
class Stage {
public:
    /// @param executor Resumes the queries that wait for a slot.
    /// @param name Appears in results and messages.
    /// @param limit How many attempts may run at once; at least 1.
    /// @param function The model function.
    /// @param options Retries, timeout and observer.
    /// @throws std::invalid_argument naming the stage and the value if `executor`, `name` or `function` is empty,
    /// `limit` is less than 1, or the timeout is not positive.
    template <class Executor>
    Stage(Executor executor, SharedString name, std::ptrdiff_t limit, Function function,
          BasicStageOptions<TimerType> options = {})
        : name_(std::move(name)),
          semaphore_(detail::require_executor(who(), std::move(executor)),
                     detail::require(limit >= 1, who(), "limit must be at least 1", limit)),
          function_(std::move(function)),
          options_(std::move(options)) {
        if (name_.empty()) {
            throw std::invalid_argument("Stage: the name must not be empty");
        }
        if (detail::is_empty(function_)) {
            throw std::invalid_argument(who() + ": the model function must not be empty");
        }
        if (options_.timeout) {
            detail::require(options_.timeout->count() > 0, who(), "timeout must be positive", options_.timeout->count(),
                            " ns");
            timeouts_.reset(new Timeouts(*options_.timeout, detail::WhenIdle::cancel_later));
        }
        // On virtual time everything is reproducible, including the jitter.
        options_.retry = options_.retry.with_default_seed(
            detail::HasNow<TimerType> ? std::hash<std::string>()(name_.str()) : RetryPolicy::random_seed());
    }

    Stage(const Stage&) = delete;  // running queries hold its address
    Stage& operator=(const Stage&) = delete;

    /// When awaited, runs one query through the stage and returns a `StageResult<T>`. It waits for a slot, calls
    /// `function(args...)`, and awaits the result within the timeout. If the attempt fails, the slot is returned; if
    /// the retry policy allows, the query waits for the backoff and joins the line again. A slot is held only while an
    /// attempt runs.
    ///
    /// Lvalue arguments are stored by reference and must live until the end. Rvalues are moved in, and the model
    /// function gets them as const lvalues, since a retry must see them unchanged. An argument is converted to the
    /// function's parameter in each attempt, and the converted value lives as long as the attempt.
    ///
    /// An exception of any type that the model function throws, even before it returns its awaitable, is captured in
    /// the result's `error`; so is the closing of the semaphore.
    ///
    /// @throws boost::system::system_error with `operation_aborted` if the run was cancelled.
    ///
    /// @par Cancellation
    /// The types that the model function, the semaphore and the timer support. A cancelled run returns its slot and
    /// throws `operation_aborted`, whatever its attempt threw; if the attempt returned a value, that is returned
    /// instead. If a model function throws `operation_aborted` without having been cancelled, that is a failure like
    /// any other.
    template <class... Args>
    [[nodiscard]] auto run(SharedString query_id, Args&&... args) {
        constexpr bool callable = std::invocable<Function&, Argument<Args>&...>;
        static_assert(callable,
                      "sluice::Stage: the model function cannot be called with the arguments of run(); lvalues are "
                      "passed as they are, and rvalues as const lvalues");
        static_assert(
            !callable || ModelFunction<Function, Argument<Args>&...>,
            "sluice::ModelFunction: the model function of a Stage must return an asio::awaitable of a value: not "
            "void, no reference, nothing that may throw when it is moved");
        if constexpr (ModelFunction<Function, Argument<Args>&...>) {
            return run_query<Args...>(detail::Pooled(), state_of(semaphore_), *this, std::move(query_id),
                                      std::forward<Args>(args)...);
        }
    }

    const SharedString& name() const noexcept { return name_; }

    /// The semaphore behind the limit: to inspect, change or close.
    StageSemaphore& semaphore() noexcept { return semaphore_; }
    const StageSemaphore& semaphore() const noexcept { return semaphore_; }

private:
    template <class, class, class, class, class, class, class>
    friend class detail::PipelineState;

    // The model function gets an lvalue of this type for an argument of run() that was deduced as `Arg`.
    template <class Arg>
    using Argument = std::conditional_t<std::is_lvalue_reference_v<Arg>, std::remove_reference_t<Arg>, const Arg>;

    template <class... Args>
    using Value = detail::model_value_t<Function&, Args&...>;
    template <class... Args>
    using ModelExecutor = detail::awaitable_executor_t<Function&, Args&...>;
    template <class... Args>
    using Attempt = boost::asio::awaitable<Value<Args...>, ModelExecutor<Args...>>;
    using Timeouts = detail::Timeouts<TimerType>;

    std::string who() const { return "Stage '" + name_.str() + "'"; }

    static void notify(Observer* observer, auto event, const auto&... args) noexcept {
        if (observer) {
            (observer->*event)(args...);
        }
    }

    // The frame stores references for the `Args` that are references, and objects for the others.
    template <class... Args>
    static boost::asio::awaitable<StageResult<Value<Argument<Args>...>>, ModelExecutor<Argument<Args>...>> run_query(
        detail::Pooled, boost::intrusive_ptr<detail::SemaphoreState> line, Stage& stage, SharedString query_id,
        Args... args) {
        check_alive(*line);
        StageResult<Value<Argument<Args>...>> result(std::move(query_id), stage.name_);
        co_await fill<Argument<Args>...>(detail::Pooled(), stage, result, result.data, args...);
        co_return result;
    }

    // Runs one query and fills in its `result` and `data`.
    template <class... Args>
    static boost::asio::awaitable<void, ModelExecutor<Args...>> fill(detail::Pooled, Stage& stage,
                                                                     StageResult<>& result,
                                                                     std::optional<Value<Args...>>& data,
                                                                     Args&... args) {
        const ModelExecutor<Args...> executor = co_await boost::asio::this_coro::executor;
        const boost::intrusive_ptr<detail::SemaphoreState> line = state_of(stage.semaphore_);
        line->check_context([&]() -> const auto& { return executor; });
        Observer* const observer = stage.options_.observer;  // also told if the stage is gone by then
        const std::uint64_t stage_run_number = stage.stage_runs_++;
        // Ignores a cancellation that predates this run.
        const boost::asio::cancellation_state initial = co_await boost::asio::this_coro::cancellation_state;
        const auto throw_if_cancelled = [was_cancelled = initial.cancelled() != boost::asio::cancellation_type::none](
                                            const boost::asio::cancellation_state& current) {
            if (!was_cancelled && current.cancelled() != boost::asio::cancellation_type::none) {
                throw detail::operation_aborted("Stage::run");
            }
        };
        for (;;) {
            std::exception_ptr error;
            notify(observer, &Observer::on_queued, result);
            Slot slot = stage.semaphore_.try_acquire();
            auto started = detail::now<TimerType>(executor);
            if (!slot) {
                const auto queued = started;
                try {
                    slot = co_await stage.semaphore_.acquire();
                } catch (...) {
                    error = std::current_exception();
                }
                check_alive(*line);
                started = detail::now<TimerType>(executor);
                result.queue_time += started - queued;
            }
            const bool attempted = static_cast<bool>(slot);
            if (attempted) {
                ++result.attempts;
                notify(observer, &Observer::on_started, result);
                try {
                    if (stage.options_.timeout) {
                        typename Timeouts::Call call(*stage.timeouts_, executor, started);
                        try {
                            co_await detail::cancelled_by(call, data,
                                                          Attempt<Args...>(detail::callee(stage.function_)(args...)));
                            result.late = call.expired();
                        } catch (...) {
                            detail::throw_timed_out<TimerType>(call, *stage.options_.timeout);
                        }
                    } else {
                        data.emplace(co_await detail::callee(stage.function_)(args...));
                    }
                } catch (...) {
                    error = std::current_exception();
                }
                check_alive(*line);
                const std::chrono::nanoseconds took = detail::now<TimerType>(executor) - started;
                result.latency += took;
                if (stage.options_.timeout && !error && took > *stage.options_.timeout) {
                    result.late = true;  // it blocked the thread and, with it, the timer
                }
                slot.release();
            }
            if (!error) {
                result.success = true;
                notify(observer, &Observer::on_finished, result, Observer::Outcome::succeeded,
                       Observer::Event::started);
                co_return;
            }
            auto last_event = attempted ? Observer::Event::started : Observer::Event::queued;
            try {
                throw_if_cancelled(co_await boost::asio::this_coro::cancellation_state);
                if (attempted) {
                    last_event = Observer::Event::attempt_failed;
                    notify(observer, &Observer::on_attempt_failed, result, error);
                }
                if (!attempted && line->closed()) {
                    error = std::make_exception_ptr(detail::operation_aborted("the stage was closed"));
                }
                if (!attempted || !stage.wants_retry(result.attempts, error)) {
                    result.error = std::move(error);
                    notify(observer, &Observer::on_finished, result, Observer::Outcome::failed, last_event);
                    co_return;
                }
                if (const auto delay = stage.options_.retry.delay(result.attempts, stage_run_number);
                    delay.count() > 0) {
                    detail::check_clock<TimerType>(executor);
                    TimerType backoff(executor);
                    backoff.expires_after(std::chrono::duration_cast<typename TimerType::duration>(delay));
                    co_await backoff.async_wait(boost::asio::deferred);
                } else if (result.attempts % 64 == 0) {  // an attempt may fail without suspending
                    co_await boost::asio::post(executor, boost::asio::deferred);
                }
                check_alive(*line);
                // In case the cancellation came after the backoff.
                throw_if_cancelled(co_await boost::asio::this_coro::cancellation_state);
            } catch (...) {
                result.error = std::current_exception();
                notify(observer, &Observer::on_finished, result, Observer::Outcome::cancelled, last_event);
                throw;
            }
        }
    }

    static void check_alive(const detail::SemaphoreState& line) {
        BOOST_ASSERT_MSG(
            !line.abandoned(),
            "sluice::Stage: destroyed while a query runs through it; a stage must outlive the coroutines that run it");
        static_cast<void>(line);
    }

    // Asks the policy. If that throws, `error` becomes a RetryPredicateError with the model's error nested in it.
    bool wants_retry(int attempts, std::exception_ptr& error) const {
        try {
            return options_.retry.should_retry(attempts, error);
        } catch (...) {
            const StageError thrown(std::current_exception());
            try {
                std::rethrow_exception(error);
            } catch (...) {
                error = std::make_exception_ptr(
                    RetryPredicateError("the retry predicate threw " + thrown.type() + ": " + thrown.message()));
            }
            return false;
        }
    }

    SharedString name_;
    StageSemaphore semaphore_;
    Function function_;
    BasicStageOptions<TimerType> options_;
    boost::intrusive_ptr<Timeouts> timeouts_;  // if there is a timeout
    std::uint64_t stage_runs_ = 0;             // gives each stage run its own jitter
};

}  // namespace sluice
