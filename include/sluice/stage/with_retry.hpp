// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/retry_decision.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <exception>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace sluice {

namespace detail {

template <class T, class Function>
struct RetriedRun {
    using Value = awaited_value_t<Function&>;
    using Executor = awaitable_executor_t<Function&>;

    static boost::asio::awaitable<Value, Executor> run(RetryPolicy policy, Function function, VerdictFunction verdict) {
        const bool was_cancelled = is_cancelled(co_await boost::asio::this_coro::cancellation_state);
        RetryDecision decision;
        for (int attempts = 1;; ++attempts) {
            std::exception_ptr error;
            bool plain = false;
            try {
                co_return co_await function();
            } catch (const ModelError&) {
                error = std::current_exception();
            } catch (...) {
                error = std::current_exception();
                plain = verdict == &verdict_of && !may_be_multiple_exceptions();
            }
            // A cancellation that predates the call is ignored.
            if (!was_cancelled && is_cancelled(co_await boost::asio::this_coro::cancellation_state)) {
                std::rethrow_exception(error);
            }
            if (!policy.backoff.seed) {
                policy.backoff.seed = HasNow<T> ? 0 : random_seed();
            }
            const auto delay = decision.after(policy, 0, error, false, plain, verdict);
            if (!delay) {
                std::rethrow_exception(error);
            }
            if (delay->count() > 0) {
                co_await sleep_for<T, Executor>(*delay);
            } else if (attempts % 64 == 0) {  // an attempt may fail without suspending
                const Executor executor = co_await boost::asio::this_coro::executor;
                co_await boost::asio::post(executor, boost::asio::deferred);
            }
            // In case the cancellation came after the backoff.
            if (!was_cancelled && is_cancelled(co_await boost::asio::this_coro::cancellation_state)) {
                throw operation_aborted("with_retry");
            }
        }
    }
};

}  // namespace detail

/// When awaited, calls and awaits `function()`, and repeats this while it fails, as `policy` allows. Returns its value.
///
/// @code
/// const sluice::RetryPolicy policy{.max_retries = 3};
/// const std::string answer = co_await sluice::with_retry(policy, [&] { return ask(question); });
/// @endcode
///
/// `function` is a callable without arguments that returns an awaitable, or an operation such as the one that
/// StageSemaphore::acquire() returns. A Stage retries by itself, and gives its slot back during the backoff; this is
/// for calls that belong to no stage.
///
/// With g++ 12 a lambda written in an expression with `co_await` must capture nothing that has a destructor; see
/// with_task_group().
///
/// @tparam T The timer to wait with.
/// @param policy The number of retries, and the waits between them.
/// @param function Stored until the end.
/// @param verdict Returns the meaning of an error: one that is not retryable ends the attempts, unless
/// RetryPolicy::retry_if says otherwise; the wait is at least the Verdict's `retry_after`.
/// @throws std::invalid_argument naming the option of `policy` that is out of range and its value, when it is called.
/// Otherwise rethrows what the last attempt threw; or throws a RetryPredicateError if `verdict` or `retry_if` threw, or
/// `operation_aborted` if the backoff was cancelled.
///
/// @par Cancellation
/// The types that `function` and the timer support. A call that was cancelled is not repeated, whatever it threw.
template <class T = boost::asio::steady_timer, class Function>
[[nodiscard]] auto with_retry(const RetryPolicy& policy, Function function, VerdictFunction verdict = &verdict_of) {
    static_assert(Timer<T>, "sluice::Timer: the timer of with_retry() must have the interface of asio::steady_timer");
    static_assert(AwaitableFunction<Function>,
                  "sluice::AwaitableFunction: with_retry() needs a function that returns an asio::awaitable when it is "
                  "called without arguments");
    if (!verdict) {
        throw std::invalid_argument("with_retry: the verdict function must not be empty");
    }
    detail::require_valid("with_retry", policy);
    return detail::RetriedRun<T, Function>::run(policy, std::move(function), verdict);
}

}  // namespace sluice
