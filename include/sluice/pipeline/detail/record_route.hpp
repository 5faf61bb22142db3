// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/dead_letter.hpp>
#include <sluice/pipeline/detail/query_job.hpp>
#include <sluice/pipeline/detail/record_saver.hpp>
#include <sluice/pipeline/step_failed.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/detail/backoff_wait.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/sync/detail/callee.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/slot.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/assert.hpp>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

namespace sluice::detail {

// A query with its record, and what its route sees of it.
template <class RunType, class Sink>
struct RecordJob : QueryJob<RecordResult<typename RunType::Record>> {
    using Record = typename RunType::Record;
    using Executor = typename RunType::Executor;
    using QueryJob<RecordResult<Record>>::QueryJob;
    using QueryJob<RecordResult<Record>>::take;

    void take(Checkpoint<Record> checkpoint) {
        this->result.query = std::move(checkpoint.query);
        this->result.record = std::move(checkpoint.record);
    }

    RunType run{*this, this->result};
    std::optional<std::conditional_t<SavingSink<Sink, Record>, RecordSaver<Sink, Record, Executor>, std::monostate>>
        saver;
};

// The route of a Pipeline: a user's coroutine.
template <class RunType, class Function, class Sink>
class RecordRoute {
public:
    using Record = typename RunType::Record;
    using Executor = typename RunType::Executor;
    using Job = RecordJob<RunType, Sink>;
    static constexpr bool drains = true;

    RecordRoute(const Executor& executor, Function function)
        : context_(&context_of(executor)), function_(std::move(function)) {}

    template <class State>
    boost::asio::awaitable<void, Executor> run(State& state, Job& job) {
        job.result.stage_results.reserve(stage_runs_);
        job.observer = state.observer();
        if constexpr (SavingSink<Sink, Record>) {
            state_of(job.run).saver = &job.saver.emplace(state.sink(), job.result);
        }
        return callee(function_)(job.run);
    }

    // Marks the query completed if its route has completed it, and returns whether it has. `error` left the route.
    bool has_ended(Job& job, const std::exception_ptr& error) noexcept {
        const auto& run = state_of(job.run);
        job.result.completed = !error && !run.lacks_a_step() && run.failed_save < 0;
        stage_runs_ = std::min<std::size_t>(job.result.stage_results.size(), 16);
        return job.result.completed;
    }

    // Ends a query that its route has not completed: a dead letter, unless it was cancelled or cut short by a drain.
    template <class State>
    boost::asio::awaitable<void, Executor> end_otherwise(State& state, Job& job, std::exception_ptr error) {
        return EndOtherwise<State>::run(Pooled(), state, job, std::move(error));
    }

    void check_context(const Executor& executor) const {
        BOOST_ASSERT_MSG(&context_of(executor) == context_,
                         "sluice: a pipeline is awaited in a coroutine of another execution context than its own");
        static_cast<void>(executor);
    }

private:
    // A class, since g++ objects to the frame of a function template with an argument of an unnamed namespace.
    template <class State>
    struct EndOtherwise {
        static boost::asio::awaitable<void, Executor> run(Pooled, State& state, Job& job, std::exception_ptr error) {
            auto& result = job.result;
            auto& run_state = state_of(job.run);
            try {
                if (error) {
                    std::rethrow_exception(std::exchange(error, nullptr));
                }
            } catch (const StepFailed& failed) {
                result.failed = failed.index();
            } catch (...) {
                error = std::current_exception();
            }
            const bool failed_before = result.failed >= 0 && result.failed < run_state.first_aborted;
            const bool drained = job.gave_up || job.operation->cut_short();
            if ((run_state.lacks_a_step() || error) && !failed_before &&
                (drained || is_cancelled(co_await boost::asio::this_coro::cancellation_state))) {
                if (!drained) {
                    throw operation_aborted("Pipeline");
                }
                result.failed = -1;
                result.unfinished = true;
                co_return;
            }
            if (job.has_left()) {  // the route has cut short a step in backoff
                const bool cancelled = is_cancelled(co_await boost::asio::this_coro::cancellation_state);
                try {
                    if (cancelled) {
                        job.come_back(Slot());
                    } else {  // or until the query is late: it ends without a place then
                        co_await BackoffWait<typename State::Timer>::template come_back<Executor>(Pooled(),
                                                                                                  *state.timeouts, job);
                    }
                } catch (...) {  // cancelled, so that no other query comes for the place; or without memory to wait
                    job.come_back(Slot());
                }
            }
            if (error) {
                result.failed = run_state.add_failure("route", Reason::route, std::move(error));
            }
            if (const auto save = run_state.failed_save; save >= 0 && (result.failed < 0 || save < result.failed)) {
                result.failed = save;  // whatever the route has done then
            }
            if (result.failed < 0) {  // the route itself has cancelled or dropped a step
                result.completed = true;
                co_return;
            }
            co_await State::bury(Pooled(), state, result);
        }
    };

    const boost::asio::execution_context* context_;  // and no executor: a strand must not outlive its context
    Function function_;
    std::size_t stage_runs_ = 0;  // of the last query, as a hint for the next
};

}  // namespace sluice::detail
