// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/concepts.hpp>
#include <sluice/detail/awaitable_traits.hpp>
#include <sluice/detail/callee.hpp>
#include <sluice/detail/frame_pool.hpp>
#include <sluice/detail/is_empty.hpp>
#include <sluice/detail/watched.hpp>
#include <sluice/observer.hpp>
#include <sluice/query.hpp>
#include <sluice/retry.hpp>
#include <sluice/stage_options.hpp>
#include <sluice/stage_semaphore.hpp>
#include <sluice/task_group.hpp>
#include <sluice/timeout.hpp>
#include <sluice/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/assert.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <boost/system/system_error.hpp>

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

/// One model function behind a limit, a retry policy and a timeout.
///
/// The model function is a ModelFunction: any callable that gives an `asio::awaitable<T>`. The arguments it takes are
/// those of run(), as lvalues, since an attempt may have to be repeated. It may do its work on a thread pool by
/// run_on(), which can be timed out and cancelled there and comes back to the coroutine's executor. It must not call
/// `this_coro::reset_cancellation_state` or `this_coro::throw_if_cancelled` and leave them changed: they belong to the
/// coroutine that runs the query.
///
/// A model function that blocks its thread stops everything on that thread, timeouts included. One that waits for
/// something itself, for a slot of another semaphore say, does so within its attempt: the wait counts as latency and
/// against the timeout. One that runs its own stage again waits for a slot while it holds one, and if every slot is
/// held in this way, for ever.
///
/// An argument is converted to the parameter of the model function where the stage calls it. A wrapper that converts it
/// further inside (a `std::function` of another signature, `std::bind_front`) must not hand a reference to the result
/// to a coroutine: that is gone when the coroutine begins.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. A stage and the coroutines that run it belong to one thread or
/// strand, that of the executor.
///
/// @par Lifetime
/// A stage, and its observer, must outlive the coroutines that run it. The execution context may be destroyed before or
/// after it.
template <class Function, Timer TimerType = boost::asio::steady_timer>
class Stage {
public:
    /// @throws std::invalid_argument naming the stage and the value, if `name`, `executor` or `function` is empty,
    /// `limit` is less than 1, or the timeout is not positive.
    template <class Executor>
    Stage(Executor executor, SharedString name, std::ptrdiff_t limit, Function function,
          BasicStageOptions<TimerType> options = {})
        : name_(std::move(name)),
          semaphore_(checked_executor(std::move(executor)), checked_limit(limit)),
          function_(std::move(function)),
          options_(std::move(options)) {
        if (name_.empty()) {
            throw std::invalid_argument("Stage: the name must not be empty");
        }
        if (detail::is_empty(function_)) {
            throw std::invalid_argument(describe() + "the model function must not be empty");
        }
        if (options_.timeout && options_.timeout->count() <= 0) {
            throw std::invalid_argument(describe() + "timeout must be positive, got " +
                                        std::to_string(options_.timeout->count()) + " ns");
        }
        // A run on virtual time is reproducible, and so is its jitter.
        options_.retry = options_.retry.with_default_seed(
            detail::HasNow<TimerType> ? std::hash<std::string>()(name_.str()) : RetryPolicy::random_seed());
    }

    Stage(const Stage&) = delete;  // running queries hold its address
    Stage& operator=(const Stage&) = delete;

    /// Runs one query through the stage: waits for a slot, calls `function(args...)` and awaits what it gives, within
    /// the timeout; on failure gives the slot back, waits out the backoff, queues again, and makes another attempt, for
    /// as long as the retry policy has it. A slot is held only while an attempt runs.
    ///
    /// Arguments given as lvalues are referred to and must live until the end. Rvalues are kept, and the model function
    /// gets them as const lvalues, since a retry must find them unchanged. If an argument has to be converted to the
    /// parameter of the model function, that is done for each attempt, and the converted value lives as long.
    ///
    /// Gives a `StageResult<T>`. Whatever the model function throws, of any type and also before it returns an
    /// awaitable, ends in its `error`; so does a semaphore that was closed.
    ///
    /// @par Cancellation
    /// As the model function, the semaphore and the timer provide. A cancelled run gives its slot back and throws
    /// `boost::system::system_error` with `operation_aborted`, whatever its attempt threw. `operation_aborted` thrown
    /// by a model function that was not cancelled is a failure like any other.
    template <class... Args>
    [[nodiscard]] auto run(SharedString query_id, Args&&... args) {
        constexpr bool callable = std::invocable<Function&, Argument<Args>&...>;
        static_assert(callable,
                      "sluice::Stage: the model function cannot be called with the arguments of run(); it gets those "
                      "given as lvalues as they are, and the others as const lvalues");
        static_assert(
            !callable || ModelFunction<Function, Argument<Args>&...>,
            "sluice::ModelFunction: the model function of a Stage must give an asio::awaitable of a value: not "
            "void, no reference, nothing that may throw when it is moved");
        if constexpr (ModelFunction<Function, Argument<Args>&...>) {
            return run_query<Args...>(detail::Pooled(), detail::SemaphoreAccess::state(semaphore_), *this,
                                      std::move(query_id), std::forward<Args>(args)...);
        }
    }

    const SharedString& name() const noexcept { return name_; }

    /// The stage's limit, to look at or to change.
    StageSemaphore& semaphore() noexcept { return semaphore_; }
    const StageSemaphore& semaphore() const noexcept { return semaphore_; }

private:
    template <class, class, class, class, class, class, class>
    friend class detail::PipelineState;

    // What the model function gets an lvalue of, for an argument of run() that was deduced as `Arg`.
    template <class Arg>
    using Argument = std::conditional_t<std::is_lvalue_reference_v<Arg>, std::remove_reference_t<Arg>, const Arg>;

    template <class... Args>
    using Value = detail::model_value_t<Function&, Args&...>;
    template <class... Args>
    using Executor = detail::awaiting_executor_t<Function&, Args&...>;

    std::string describe() const { return "Stage '" + name_.str() + "': "; }

    template <class E>
    E checked_executor(E executor) const {
        if (detail::is_empty_executor(executor)) {
            throw std::invalid_argument(describe() + "the executor must not be empty");
        }
        return executor;
    }

    std::ptrdiff_t checked_limit(std::ptrdiff_t limit) const {
        if (limit < 1) {
            throw std::invalid_argument(describe() + "limit must be at least 1, got " + std::to_string(limit));
        }
        return limit;
    }

    // An `Args` that is a reference is one in the coroutine's frame as well; the others live there.
    template <class... Args>
    static boost::asio::awaitable<StageResult<Value<Argument<Args>...>>, Executor<Argument<Args>...>> run_query(
        detail::Pooled, boost::intrusive_ptr<detail::SemaphoreState> line, Stage& stage, SharedString query_id,
        Args... args) {
        check_alive(*line);
        StageResult<Value<Argument<Args>...>> result(std::move(query_id), stage.name_);
        co_await fill<Argument<Args>...>(detail::Pooled(), stage, result, result.data, args...);
        co_return result;
    }

    // One attempt under a timeout.
    template <class... Args>
    static boost::asio::awaitable<void, Executor<Args...>> attempt(detail::Pooled, Stage& stage,
                                                                   std::optional<Value<Args...>>& data, Args&... args) {
        data.emplace(co_await detail::callee(stage.function_)(args...));
    }

    // Runs one query and fills in its `result` and `data`.
    template <class... Args>
    static boost::asio::awaitable<void, Executor<Args...>> fill(detail::Pooled, Stage& stage, StageResult<>& result,
                                                                std::optional<Value<Args...>>& data, Args&... args) {
        const Executor<Args...> executor = co_await boost::asio::this_coro::executor;
        const boost::intrusive_ptr<detail::SemaphoreState> line = detail::SemaphoreAccess::state(stage.semaphore_);
        line->check_context([&]() -> const auto& { return executor; });
        const std::uint64_t stream = stage.runs_++;
        // A coroutine that was cancelled before, and does not mind, is cancelled no further by that.
        const boost::asio::cancellation_state before = co_await boost::asio::this_coro::cancellation_state;
        const auto throw_if_cancelled = [minds = before.cancelled() == boost::asio::cancellation_type::none](
                                            const boost::asio::cancellation_state& now) {
            if (minds && now.cancelled() != boost::asio::cancellation_type::none) {
                throw boost::system::system_error(boost::asio::error::operation_aborted, "Stage::run");
            }
        };
        const detail::Watched run{stage.options_.observer, result};
        for (;;) {
            std::exception_ptr error;
            run.queued();
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
                run.started();
                try {
                    if (stage.options_.timeout) {
                        const auto call = [&] { return attempt<Args...>(detail::Pooled(), stage, data, args...); };
                        co_await detail::TimedRun<TimerType, decltype(call)>::run(*stage.options_.timeout, call,
                                                                                  &result.late);
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
                    result.late = true;  // it blocked the thread, and with it the timer
                }
                slot.release();
            }
            if (!error) {
                result.success = true;
                run.finished(Observer::Outcome::succeeded, Observer::Event::started);
                co_return;
            }
            auto last = attempted ? Observer::Event::started : Observer::Event::queued;
            try {
                throw_if_cancelled(co_await boost::asio::this_coro::cancellation_state);
                if (attempted) {
                    last = Observer::Event::attempt_failed;
                    run.attempt_failed(error);
                }
                if (!attempted && line->closed()) {
                    error = std::make_exception_ptr(
                        boost::system::system_error(boost::asio::error::operation_aborted, "the stage was closed"));
                }
                if (!attempted || !stage.wants_retry(result.attempts, error)) {
                    result.error = std::move(error);
                    run.finished(Observer::Outcome::failed, last);
                    co_return;
                }
                if (const auto delay = stage.options_.retry.delay(result.attempts, stream); delay.count() > 0) {
                    detail::check_clock<TimerType>(executor);
                    TimerType backoff(executor);
                    backoff.expires_after(std::chrono::duration_cast<typename TimerType::duration>(delay));
                    co_await backoff.async_wait(boost::asio::deferred);
                } else if (result.attempts % 64 == 0) {  // perhaps none of them has suspended
                    co_await boost::asio::post(executor, boost::asio::deferred);
                }
                check_alive(*line);
                throw_if_cancelled(co_await boost::asio::this_coro::cancellation_state);  // too late for the backoff
            } catch (...) {
                result.error = std::current_exception();
                run.finished(Observer::Outcome::cancelled, last);
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

    // Asks the policy; if that throws, what it threw is the error now, with the model's in it.
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
    std::uint64_t runs_ = 0;  // tells the queries' jitter apart
};

}  // namespace sluice
