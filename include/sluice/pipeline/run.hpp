// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/run_state.hpp>
#include <sluice/pipeline/detail/side_by_side.hpp>
#include <sluice/pipeline/detail/step_target.hpp>
#include <sluice/pipeline/detail/step_traits.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/detail/fallback_run.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/stage_run.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/frame_pool.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/assert.hpp>

#include <concepts>
#include <optional>
#include <type_traits>
#include <typeinfo>
#include <utility>

namespace sluice {

namespace detail {

template <class RunType, class Sink>
struct RecordJob;

}  // namespace detail

/// One query on its way through a Pipeline, as its route sees it.
///
/// @par Thread safety
/// Unsafe: a run belongs to the route, and so to the executor of its pipeline.
template <class RecordType, class ExecutorType = boost::asio::any_io_executor>
class Run {
public:
    using Record = RecordType;
    using Executor = ExecutorType;

    Run(const Run&) = delete;
    Run& operator=(const Run&) = delete;

    const Query& query() const noexcept { return state_.result.query; }

    /// The record, which the route may read and change. When step(), or all() with it, has returned without throwing,
    /// its field has a value.
    Record& operator*() const noexcept { return state_.result.record; }
    Record* operator->() const noexcept { return &state_.result.record; }

    /// When awaited, runs the query through `stage`, a Stage or a Fallback, and stores the value in `field` of the
    /// record. If the field has a value already, nothing runs.
    ///
    /// Lvalue arguments are stored by reference, and rvalues are moved in. So is the stage: an lvalue must live until
    /// the step has ended. A stage that the route captures does, since the pipeline keeps its route alive.
    ///
    /// An argument `&Record::field`, an optional, is read when an attempt begins; if it is empty then, the step fails
    /// with Reason::missing. (`*run->field` is read when the step is made, which may be before the field has a value.)
    ///
    /// Returns an operation. Await it where it is made, and once: it runs in the coroutine that awaits it. To be stored
    /// or passed on, it converts to `asio::awaitable<void, Executor>`. (With a version of Boost that sluice does not
    /// know, or if SLUICE_PORTABLE_AWAIT is defined, it is one.)
    ///
    /// @throws StepFailed if the stage run failed. Let it leave the route: the query is a dead letter then.
    /// @throws boost::system::system_error with `operation_aborted` if it was cancelled.
    ///
    /// @par Cancellation
    /// As for Stage::run(). If the query was cancelled, and a step with it, the query does not complete, whatever the
    /// route does then. If only the route has cancelled the step, such as by with_timeout(), it may go on and complete.
    ///
    /// @par Complexity
    /// O(1) beside the model, the sink's save() and the wait. Costs a coroutine frame only if the step was converted,
    /// the stage has a timeout or is a Fallback, an attempt has failed and is repeated, its endpoint has more than a
    /// limit or is paused, the query has a timeout, the sink saves, another step of the query is running, or the model
    /// function has a cost() or not one signature, in which each parameter is a reference that binds to its argument or
    /// a trivially copyable object.
    template <class Field, class Class, class StageType, class... Args>
    [[nodiscard]] auto step(Field Class::* field, StageType&& stage, Args&&... args) {
        return make_step<true>(field, std::forward<StageType>(stage), std::forward<Args>(args)...);
    }

    /// The same, but when awaited, returns the error of its stage instead of throwing it; empty if there is none. Such
    /// a failure does not make the query a dead letter. Converts to `asio::awaitable<StageError, Executor>`.
    template <class Field, class Class, class StageType, class... Args>
    [[nodiscard]] auto step_or_error(Field Class::* field, StageType&& stage, Args&&... args) {
        return make_step<false>(field, std::forward<StageType>(stage), std::forward<Args>(args)...);
    }

    /// When awaited, runs several steps, or other coroutines of the route, side by side, and waits for all of them. If
    /// some fail, the others finish, since their calls are paid for and their values stay in the record; then the first
    /// failure is thrown. The results of the query have all of them. (What a step_or_error() returns here is dropped:
    /// the field tells whether it succeeded.)
    ///
    /// This is the only way to run several steps of one query at once. Others, such as Asio's awaitable operators or a
    /// TaskGroup, would cancel the other steps when one fails; and as soon as one is in a backoff, the query would
    /// leave its place in the window, although the others run.
    ///
    /// @pre No two of them fill the same field, and none changes a field while another that reads it runs.
    ///
    /// @par Cancellation
    /// Cancels all of them, and waits until they have ended. Then `operation_aborted` is thrown, and the query does not
    /// complete, whatever the route does then; see step().
    ///
    /// @par Complexity
    /// O(n). Starts a coroutine of its own for each.
    template <class... Steps>
    [[nodiscard]] boost::asio::awaitable<void, Executor> all(Steps... steps) {
        constexpr bool are_awaitables =
            sizeof...(Steps) != 0 && ((Awaitable<Steps> || detail::AwaitableOperation<Steps>) && ...);
        static_assert(are_awaitables, "sluice::Run: all() needs awaitables, such as those that step() returns");
        if constexpr (are_awaitables) {
            ++state_.not_begun;
            return detail::SideBySide<State, Executor>::run(
                detail::Pooled(), state_,
                boost::asio::awaitable<typename Steps::value_type, Executor>(std::move(steps))...);
        } else {
            return {};
        }
    }

private:
    using State = detail::RunState<Record, Executor>;

    template <class, class>
    friend struct detail::RecordJob;
    friend State& state_of(Run& run) noexcept { return run.state_; }

    Run(detail::QueryPlace& place, RecordResult<Record>& result) noexcept : state_(place, result) {}

    template <bool throws>
    using StepAwaitable = boost::asio::awaitable<std::conditional_t<throws, void, StageError>, Executor>;

    template <bool throws, class Field, class Class, class StageType, class... Args>
    auto make_step(Field Class::* field, StageType&& stage, Args&&... args) {
        using Traits = detail::StepTraits<Record, std::remove_cvref_t<StageType>, Args...>;
        constexpr bool is_field = detail::is_field_of<Record, Field Class::*>;
        constexpr bool is_stage = Traits::is_stage;
        constexpr bool is_fallback = Traits::is_fallback;
        constexpr bool is_callable = Traits::is_callable;
        constexpr bool is_model = Traits::is_model;
        constexpr bool fits = Traits::template fits<Field>;
        constexpr bool accepts = Traits::template accepts<Field>;
        constexpr bool same_executor = std::same_as<typename Traits::Executor, Executor>;
        static_assert(is_field,
                      "sluice::Run: the first argument of a step must point to a field of the record that is a "
                      "std::optional");
        static_assert(is_stage,
                      "sluice::Run: the second argument of a step must be a sluice::Stage or a sluice::Fallback");
        static_assert(
            !is_fallback || is_callable,
            "sluice::Fallback: the model function of each member must be callable with the other arguments of "
            "the step; lvalues are passed as they are, rvalues and the values of fields as const lvalues");
        static_assert(!is_stage || is_fallback || is_callable,
                      "sluice::Run: the model function of the stage cannot be called with the other arguments of the "
                      "step; lvalues are passed as they are, rvalues and the values of fields as const lvalues");
        static_assert(!is_callable || is_model,
                      "sluice::ModelFunction: the model function of a Stage must return an asio::awaitable of a value: "
                      "not void, no reference, nothing that may throw when it is moved");
        static_assert(fits || is_fallback,
                      "sluice::Run: the value that the model function returns does not fit the field of the step");
        static_assert(fits || !is_fallback,
                      "sluice::Fallback: the value of each member must fit the field of the step");
        static_assert(accepts,
                      "sluice::Fallback: the predicate of accept() must be callable, as const, with the value of the "
                      "field, and return a bool");
        static_assert(!is_model || same_executor,
                      "sluice::Run: the model function's awaitable must have the executor type of the Run");
        if constexpr (is_field && is_model && fits && accepts && same_executor) {
            using StageClass = std::remove_cvref_t<StageType>;
            using T = typename StageClass::timer_type;
            using Target = detail::StepTarget<State, Executor, throws, typename Field::value_type, StageType, T>;
            BOOST_ASSERT_MSG(state_.place.drain->timer == typeid(T),
                             "sluice::Run: the stage of a step must have the timer of its pipeline");
            ++state_.not_begun;
            if constexpr (is_fallback) {
                return detail::run_fallback<StageClass, Target, typename detail::StepArgument<Record, Args>::Stored...>(
                    Target{state_, state_.result.record.*field, std::forward<StageType>(stage)},
                    detail::StepArgument<Record, Args>::store(state_.result.record, args)...);
            } else {
                auto& stage_state = *state_of(stage);
                return detail::run_in<std::remove_reference_t<decltype(stage_state)>, Target,
                                      typename detail::StepArgument<Record, Args>::Stored...>(
                    stage_state, Target{state_, state_.result.record.*field, std::forward<StageType>(stage)},
                    detail::StepArgument<Record, Args>::store(state_.result.record, args)...);
            }
        } else {
            return StepAwaitable<throws>();
        }
    }

    State state_;
};

}  // namespace sluice
