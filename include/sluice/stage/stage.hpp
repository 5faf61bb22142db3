// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/stage_coroutine.hpp>
#include <sluice/stage/detail/stage_state.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/model_function.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/timed_by.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <concepts>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

namespace sluice {

/// A model function behind the limit of an Endpoint, a retry policy and a timeout.
///
/// The function is a ModelFunction: any callable that returns an `asio::awaitable<T>`. It is called with the arguments
/// of run(), as lvalues, since an attempt may have to be repeated. It may work on a thread pool through run_on(), which
/// can be timed out and cancelled there and resumes on the coroutine's executor. It must not leave
/// `this_coro::reset_cancellation_state` or `this_coro::throw_if_cancelled` changed: they belong to the coroutine that
/// runs the query.
///
/// A model function that blocks its thread stops everything on that thread, including timeouts. If it waits inside, for
/// a slot of another semaphore for example, the wait counts as latency and towards the timeout. If it runs a stage of
/// the same endpoint, it waits for a slot while it holds one; if every slot is held in this way, it waits forever.
///
/// An argument is converted to the function's parameter where the stage makes the call. A wrapper that converts it
/// again inside (a `std::function` with another signature, `std::bind_front`) must not pass a reference to the result
/// to a coroutine: the result is gone when the coroutine begins.
///
/// The function may have a member `cost(args...)` that returns a Cost. It estimates what a call takes of the rates of
/// the endpoint, if that has any; without it, a call costs one request. If it throws, or the Cost is out of range, the
/// stage run fails. A field that is empty when the query enters the line costs one request.
///
/// The function may take an Attempt& after these arguments, if it cannot be called without it.
///
/// Copies are handles to the same stage. It lives until the last copy is gone and no query runs in it.
///
/// @tparam T The timer with which the stage waits and measures time, deduced from the executor or endpoint; see
/// timed_by().
///
/// @par Thread safety
/// Distinct stages: safe. Copies of one stage: unsafe. A stage, its endpoint and the coroutines that run it belong to
/// one thread or strand, that of the executor.
///
/// @par Lifetime
/// The observer must outlive the coroutines that run the stage. The execution context may be destroyed before or after
/// the stage.
template <class Function, Timer T = boost::asio::steady_timer>
class Stage {
public:
    using timer_type = T;

    /// A stage that shares an endpoint with other stages.
    /// @param endpoint Its limit applies to the attempts of all its stages together.
    /// @param name Appears in results and messages.
    /// @param function The model function.
    /// @param options Retries, timeout and observer.
    /// @throws std::invalid_argument if `name` or `function` is empty; or naming the stage, the option and its value
    /// if one is out of range.
    Stage(const Endpoint<T>& endpoint, SharedString name, Function function, const StageOptions& options = {})
        : state_(std::make_shared<State>(std::move(name), endpoint.state_, std::move(function), options)) {}

    /// A stage with an endpoint of its own, of the same name.
    /// @param executor Resumes the queries that wait for a slot.
    /// @param name Appears in results and messages.
    /// @param limit How many attempts may run at once; at least 1.
    /// @param function The model function.
    /// @param options Retries, timeout and observer.
    /// @throws std::invalid_argument as above, or if `executor` is empty or `limit` is less than 1.
    template <class Executor>
        requires boost::asio::execution::is_executor<Executor>::value
    Stage(Executor executor, const SharedString& name, std::ptrdiff_t limit, Function function,
          const StageOptions& options = {})
        : state_(std::make_shared<State>(
              name, detail::EndpointState::make<T>("Stage", std::move(executor), name, EndpointOptions{.limit = limit}),
              std::move(function), options)) {}
    template <class Executor>
    Stage(const TimedExecutor<T, Executor>& executor, const SharedString& name, std::ptrdiff_t limit, Function function,
          const StageOptions& options = {})
        : Stage(executor.executor(), name, limit, std::move(function), options) {}

    /// When awaited, runs one query through the stage and returns a `StageResult<Value>`. It waits for a slot, calls
    /// `function(args...)`, and awaits the result within the timeout. If the attempt fails, the slot is returned; if
    /// the retry policy and the retry budget of the endpoint allow, the query waits for the backoff and joins the line
    /// again. A slot is held only while an attempt runs.
    ///
    /// Lvalue arguments are stored by reference and must live until the end. Rvalues are moved in, and the model
    /// function gets them as const lvalues, since a retry must see them unchanged. An argument is converted to the
    /// function's parameter in each attempt, and the converted value lives as long as the attempt.
    ///
    /// An exception of any type that the model function throws, even before it returns its awaitable, is captured in
    /// the result's `error`; so is the closing of the endpoint. The result's `reason` tells them apart.
    ///
    /// @throws boost::system::system_error with `operation_aborted` if the run was cancelled.
    ///
    /// @par Cancellation
    /// The types that the model function, the line and the timer support. A cancelled run returns its slot and
    /// throws `operation_aborted`, whatever its attempt threw; if the attempt returned a value, that is returned
    /// instead. If a model function throws `operation_aborted` without having been cancelled, that is a failure like
    /// any other. (So it is in a coroutine that was cancelled before and goes on with `throw_if_cancelled(false)`,
    /// where a stage without a timeout cannot tell the second cancellation from the first.)
    template <class... Args>
    [[nodiscard]] auto run(SharedString query_id, Args&&... args) const {
        constexpr bool callable = detail::CallableModel<Function, detail::call_argument_t<Args>...>;
        static_assert(callable,
                      "sluice::Stage: the model function cannot be called with the arguments of run(); lvalues are "
                      "passed as they are, and rvalues as const lvalues");
        static_assert(
            !callable || ModelFunction<Function, detail::call_argument_t<Args>...>,
            "sluice::ModelFunction: the model function of a Stage must return an asio::awaitable of a value: not "
            "void, no reference, nothing that may throw when it is moved");
        if constexpr (ModelFunction<Function, detail::call_argument_t<Args>...>) {
            using Value = typename State::template Value<Args...>;
            return detail::StageCoroutine<State, Target<Value>, Args...>::run(
                detail::Pooled(), *state_, Target<Value>(state_, std::move(query_id)), nullptr,
                std::forward<Args>(args)...);
        }
    }

    const SharedString& name() const noexcept { return state_->name; }

    /// The endpoint: to inspect, to change its limit, to close, or to make other stages of.
    Endpoint<T> endpoint() const noexcept { return Endpoint<T>(state_->endpoint); }

private:
    using State = detail::StageState<Function, T>;

    // For pipelines, which run their queries through the state.
    friend const std::shared_ptr<State>& state_of(const Stage& stage) noexcept { return stage.state_; }

    // A run alone returns its result. Keeps the stage alive.
    template <class Value>
    struct Target {
        using Returned = StageResult<Value>;
        using Data = Value;
        static constexpr bool is_step = false;
        static constexpr bool is_member = false;

        detail::QueryRun<T>& query() noexcept { return run; }
        Returned result() { return Returned(std::move(query_id), stage->name); }
        static std::optional<Value>& data(Returned& result) noexcept { return result.data; }
        static void aborted(Returned&) noexcept {}
        static void ended(Returned&) noexcept {}
        static Returned&& returned(Returned& result) noexcept { return std::move(result); }

        std::shared_ptr<State> stage;
        SharedString query_id;
        detail::QueryRun<T> run{nullptr};
    };

    std::shared_ptr<State> state_;
};

template <class T, class Function>
Stage(Endpoint<T>, SharedString, Function) -> Stage<Function, T>;
template <class T, class Function>
Stage(Endpoint<T>, SharedString, Function, StageOptions) -> Stage<Function, T>;
template <class Executor, class Function>
Stage(Executor, SharedString, std::ptrdiff_t, Function) -> Stage<Function>;
template <class Executor, class Function>
Stage(Executor, SharedString, std::ptrdiff_t, Function, StageOptions) -> Stage<Function>;
template <class T, class Executor, class Function>
Stage(TimedExecutor<T, Executor>, SharedString, std::ptrdiff_t, Function) -> Stage<Function, T>;
template <class T, class Executor, class Function>
Stage(TimedExecutor<T, Executor>, SharedString, std::ptrdiff_t, Function, StageOptions) -> Stage<Function, T>;

}  // namespace sluice
