// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/detail/argument.hpp>
#include <sluice/stage/detail/attempt_failure.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/resumption_hook.hpp>
#include <sluice/stage/detail/stage_coroutine.hpp>
#include <sluice/stage/model_function.hpp>
#include <sluice/sync/detail/bitwise_copy.hpp>
#include <sluice/sync/detail/callee.hpp>
#include <sluice/sync/detail/context_bound.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/semaphore_state.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/config.hpp>
#include <boost/version.hpp>

#include <concepts>
#include <coroutine>
#include <exception>
#include <tuple>
#include <type_traits>
#include <utility>

// The frames of coroutines are reached by way of Asio's insides, which are the same in these versions. With others, a
// stage run is a coroutine.
#if BOOST_VERSION < 108300 || BOOST_VERSION > 109200 || defined(SLUICE_PORTABLE_AWAIT)

namespace sluice::detail {

template <class State, class Target, class... Args>
auto run_in(State& stage, Target target, Args... args) {
    return StageCoroutine<State, Target, Args...>::run(Pooled(), stage, std::move(target), nullptr,
                                                       static_cast<Args&&>(args)...);
}

}  // namespace sluice::detail

#else

namespace sluice::detail {

// One query's run through a stage, awaited once, in the coroutine that awaits it: it waits for a slot, and then awaits
// the model, *in place*, without a coroutine of its own. A timeout, a retry, or a query that does something rare needs
// one; so does whoever converts this to an awaitable. See StageCoroutine.
template <class State, class Target, class... Args>
class [[nodiscard]] StageRun {
    using Coroutine = StageCoroutine<State, Target, Args...>;

public:
    using value_type = typename Coroutine::Returned;
    using executor_type = typename Coroutine::Executor;
    using Awaitable = boost::asio::awaitable<value_type, executor_type>;

    StageRun(State& stage, Target target, Args... args)
        : stage_(stage), target_(std::move(target)), args_(static_cast<Args&&>(args)...) {}

    // Before it is awaited.
    StageRun(StageRun&& other) noexcept(std::is_nothrow_move_constructible_v<std::tuple<Args...>>)
        : stage_(other.stage_), target_(std::move(other.target_)), args_(std::move(other.args_)) {}

    operator Awaitable() && { return coroutine(nullptr); }
    Awaitable operator()() { return coroutine(nullptr); }

    // Never started in this way: only declares to Asio that this is an operation.
    template <class Token>
        requires std::same_as<Token, boost::asio::detail::async_operation_probe> ||
                 std::same_as<Token, boost::asio::detail::completion_signature_probe>
    auto operator()(Token token) {
        return boost::asio::async_initiate<Token, void(std::exception_ptr)>([](auto&&...) {}, token);
    }

private:
    template <class, class, class>
    friend class boost::asio::detail::awaitable_async_op;

    using Model = boost::asio::awaitable<typename State::template Value<Args...>, executor_type>;
    using Frame = boost::asio::detail::awaitable_frame_base<executor_type>;
    template <class U>
    using FrameOf = boost::asio::detail::awaitable_frame<U, executor_type>;

    // A function that takes an Attempt has none in place, and cannot be called without it.
    // Neither has one that estimates its cost.
    static constexpr bool runs_in_place = binds_to<signature_of_t<typename State::Callee>, call_argument_t<Args>...> &&
                                          !EstimatesCost<typename State::Callee, call_argument_t<Args>...>;

    // What is awaited, or how the run ended without that.
    enum class Phase : unsigned char { skipped, coroutine, slot, model, missing };

    // Begins the run. Returns whether it has ended already, so that the awaiting coroutine need not be suspended.
    bool begin(Frame& frame) {
        if (address_.is_bitwise_copy()) [[unlikely]] {
            ConstructedAt::terminate(
                "sluice: a bitwise copy of a step, such as g++ 12 makes of `co_await (short ? run.step(...) : "
                "run.step(...))`; write the two co_awaits one by one");
        }
        if constexpr (Target::is_step) {
            if (target_.is_filled()) {
                target_.begins();
                return true;
            }
        }
        if (!may_run_in_place()) {
            phase_ = Phase::coroutine;
            coroutine_ = coroutine(nullptr);
            return false;
        }
        target_.begins();
        if constexpr (checks_context) {
            line().check_context(
                [&] { return frame.await_transform(boost::asio::this_coro::executor).await_resume(); });
        }
        InPlaceRun& run = in_place();
        target_.begin_in_place();
        run.taken = true;
        run.was_cancelled = is_cancelled(frame);
        stage_.notify(target_.query(), &Observer::on_queued, *run.result);
        target_.query().now(line().context());
        run.slot = stage_.endpoint->line.try_acquire();
        run.ticket = policies().take_ticket();
        if (!run.slot) {
            phase_ = Phase::slot;
            return line().closed() || must_throw(frame);  // the observer may close it, or cancel the query
        }
        return !attempt(frame, run);
    }

    // A parameter that needed a temporary needs a coroutine to keep it.
    bool may_run_in_place() noexcept {
        return runs_in_place && !stage_.options_.timeout && target_.may_run_in_place() && !in_place().taken &&
               !target_.query().place->deadline && !policies().needs_entries() && !line().closed();
    }

    Awaitable coroutine(InPlaceRun* begun) {
        return std::apply(
            [&](auto&... args) {
                return Coroutine::run(Pooled(), stage_, target_, begun, static_cast<Args&&>(args)...);
            },
            args_);
    }

    // Suspends `awaiting`, a coroutine with Asio's promise.
    template <class U>
    void suspend(FrameOf<U>& awaiting) {
        if (phase_ == Phase::slot) {
            in_place().awaiting = &awaiting;
            awaiting.after_suspend([](void* self) { static_cast<StageRun*>(self)->template wait<U>(); }, this);
        } else {
            await(awaiting);
        }
    }

    // `awaiting` awaits the model or the coroutine.
    template <class U>
    void await(FrameOf<U>& awaiting) {
        const auto handle = std::coroutine_handle<FrameOf<U>>::from_promise(awaiting);
        if (phase_ == Phase::model) {
            in_place().hook.attach(awaiting, *this);
            model_.await_suspend(handle);
        } else {
            coroutine_.await_suspend(handle);
        }
    }

    // The model has ended, and the coroutine is resumed, or awaits that of a further attempt.
    friend ResumptionHook;
    template <class U>
    void resumed() {
        InPlaceRun& run = in_place();
        FrameOf<U>& awaiting = run.hook.template frame<U, executor_type>();
        const std::coroutine_handle<> handle = run.hook.template detach<U, executor_type>();
        run.attempt([&] { target_.data(*run.result).emplace(model_.await_resume()); });
        if (end_attempt(awaiting, run)) {
            handle.resume();
        } else {
            await(awaiting);
        }
    }

    // Resumes the coroutine when the wait for a slot has ended: the model on top of it, if there is one now.
    template <class U>
    class Resume : boost::asio::detail::awaitable_thread<executor_type> {
        using Thread = boost::asio::detail::awaitable_thread<executor_type>;

    public:
        Resume(Thread* thread, StageRun& run) noexcept : Thread(std::move(*thread)), run_(run) {}

        void operator()() {
            FrameOf<U>& awaiting = run_.template awaiting<U>();
            awaiting.attach_thread(this);
            awaiting.clear_cancellation_slot();
            if (run_.end_wait(awaiting)) {
                run_.await(awaiting);
            }
            this->pump();
        }

    private:
        StageRun& run_;
    };

    template <class U>
    FrameOf<U>& awaiting() noexcept {
        return *static_cast<FrameOf<U>*>(in_place().awaiting);
    }

    template <class U>
    void wait() {
        auto* const thread = awaiting<U>().detach_thread();
        QueryPlace& place = *target_.query().place;
        LineWaiter& waiter = place.in_place.waiter;
        waiter.outcome = WaitOutcome::waiting;
        waiter.expires = LineWaiter::never;
        place.in_place.line = stage_.endpoint->policies;
        boost::asio::cancellation_slot cancellation = thread->get_cancellation_slot();
        if (place.canceller && place.canceller->begin(waiter, cancellation)) {
            cancellation = {};
        }
        line().enter(waiter, cancellation, Resume<U>(thread, *this));
        place.begin_wait();
    }

    // Returns whether there is something to be awaited.
    bool end_wait(Frame& frame) {
        if (WaitCanceller* const canceller = target_.query().place->canceller) {
            canceller->end();
        }
        InPlaceRun& run = in_place();
        const auto queued = target_.query().last_reading();
        run.result->queue_time += target_.query().read_clock(line().context()) - queued;
        if (target_.query().place->end_wait() != WaitOutcome::granted) {
            return false;
        }
        run.slot = granted_slot(stage_.endpoint->line);
        run.ticket = run.waiter.ticket;
        return attempt(frame, run);
    }

    // Calls the model. Returns whether there is something to be awaited.
    bool attempt(Frame& frame, InPlaceRun& run) {
        if constexpr ((is_field_argument<Args> || ...)) {
            if (std::apply([](auto&... args) { return (is_missing<Args>(args) || ...); }, args_)) {
                run.slot.release();
                phase_ = Phase::missing;
                return false;
            }
        }
        phase_ = Phase::model;
        ++run.result->attempts;
        stage_.notify(target_.query(), &Observer::on_started, *run.result);
        if constexpr (runs_in_place) {
            const bool called = run.attempt([&] {
                model_ = frame.await_transform(Model(std::apply(
                    [this](auto&... args) { return callee(stage_.function_)(read_argument<Args>(args)...); }, args_)));
            });
            return called || !end_attempt(frame, run);
        }
        return false;
    }

    // Returns whether the run has ended, since there will be no further attempt.
    bool end_attempt(Frame& frame, InPlaceRun& run) {
        stage_.end_attempt(target_.query(), *run.result, target_.query().last_reading(), run.error != nullptr, {});
        if (!run.error || !goes_on(frame, run)) [[likely]] {
            run.slot.release();
            return true;
        }
        return false;
    }

    // Whether it does after a failed attempt, in a coroutine, which returns its slot; not without the memory for one.
    // Not inlined, so that what succeeds stays short.
    BOOST_NOINLINE bool goes_on(Frame& frame, InPlaceRun& run) {
        if ((run.result->attempts > stage_.options_.retry.max_retries &&
             !may_be_throttled(*stage_.endpoint, run.error_is_plain)) ||
            is_cancelled(frame, run)) {
            return false;
        }
        try {
            coroutine_ = coroutine(&run);
        } catch (...) {  // no memory for it, or an argument that throws when it is moved
            return false;
        }
        phase_ = Phase::coroutine;
        goes_on_ = true;
        return true;
    }

    value_type end(Frame& frame) {
        if constexpr (Target::is_step) {
            if (phase_ == Phase::skipped) {
                return target_.skipped();
            }
        }
        InPlaceRun& run = in_place();
        if (phase_ == Phase::coroutine) {
            if (goes_on_) {
                run.taken = false;
            }
            return coroutine_.await_resume();
        }
        run.taken = false;
        if (phase_ == Phase::missing) {
            stage_.finish_missing(target_.query(), *run.result);
        } else if (phase_ == Phase::model && !run.error) {
            stage_.finish_succeeded(target_.query(), *run.result);
        } else {
            if (phase_ == Phase::slot) {
                run.error = std::make_exception_ptr(operation_aborted("StageSemaphore::acquire"));
            }
            fail(frame, run);
        }
        target_.ended(*run.result);
        return target_.returned(*run.result);
    }

    // Ends a run that was cancelled, whose attempt failed, or whose endpoint was closed.
    void fail(Frame& frame, InPlaceRun& run) {
        AttemptFailure failure = AttemptFailure::of(run);
        failure.attempted = phase_ == Phase::model;
        try {
            stage_.throw_if_cancelled(target_.query(), *run.result, failure, is_cancelled(frame, run));
        } catch (...) {
            target_.aborted(*run.result);
            throw;
        }
        if (failure.attempted) {
            stage_.notify(target_.query(), &Observer::on_attempt_failed, *run.result, StageError(failure.error));
            stage_.finish_failed(target_.query(), *run.result, failure);
        } else {
            stage_.finish_closed(target_.query(), *run.result);
        }
    }

    static bool is_cancelled(Frame& frame) {
        return detail::is_cancelled(frame.await_transform(boost::asio::this_coro::cancellation_state).await_resume());
    }

    // Since the run began.
    static bool is_cancelled(Frame& frame, const InPlaceRun& run) { return !run.was_cancelled && is_cancelled(frame); }

    // Whether a co_await throws, since the coroutine was cancelled.
    static bool must_throw(Frame& frame) {
        return is_cancelled(frame) &&
               frame.await_transform(boost::asio::this_coro::throw_if_cancelled()).await_resume();
    }

    InPlaceRun& in_place() noexcept { return target_.query().place->in_place; }
    SemaphoreState& line() const noexcept { return *state_of(stage_.endpoint->line); }
    Line& policies() const noexcept { return *stage_.endpoint->policies; }

    ConstructedAt address_;
    State& stage_;
    Target target_;
    std::tuple<Args...> args_;
    Phase phase_ = Phase::skipped;
    bool goes_on_ = false;  // the coroutine, with a run that began in place
    Awaitable coroutine_;
    Model model_;
};

// Runs a query through a stage. The `Args` are not deduced.
template <class State, class Target, class... Args>
auto run_in(State& stage, Target target, Args... args) {
    return StageRun<State, Target, Args...>(stage, std::move(target), static_cast<Args&&>(args)...);
}

}  // namespace sluice::detail

// What co_await makes of a stage run.
template <class Signature, class State, class Target, class... Args, class Executor>
class boost::asio::detail::awaitable_async_op<Signature, sluice::detail::StageRun<State, Target, Args...>, Executor> {
public:
    using Run = sluice::detail::StageRun<State, Target, Args...>;

    // Handler tracking adds an argument.
    awaitable_async_op(Run&& run, awaitable_frame_base<Executor>* frame, const auto&...) noexcept
        : run_(run), frame_(*frame) {}

    bool await_ready() { return run_.begin(frame_); }

    // `Promise` is Asio's, or derived from it.
    template <class Promise>
    void await_suspend(std::coroutine_handle<Promise> awaiting) {
        run_.suspend(awaiting.promise());
    }

    auto await_resume() { return run_.end(frame_); }

private:
    Run& run_;
    awaitable_frame_base<Executor>& frame_;
};

#endif
