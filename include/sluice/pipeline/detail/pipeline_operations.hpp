// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/batch_results.hpp>
#include <sluice/pipeline/detail/drain_report.hpp>
#include <sluice/pipeline/detail/drain_state.hpp>
#include <sluice/pipeline/detail/input.hpp>
#include <sluice/pipeline/detail/pipeline_stream.hpp>
#include <sluice/pipeline/detail/query_window.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/query_source.hpp>
#include <sluice/stage/detail/drain_scope.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/cancelled_by.hpp>
#include <sluice/sync/detail/canceller.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/wait_queue.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>
#include <concepts>
#include <exception>
#include <memory>
#include <utility>
#include <vector>

namespace sluice {

template <class Result, class Executor>
class ResultStream;

}  // namespace sluice

namespace sluice::detail {

// The operations that all pipelines have. They keep the state alive.
template <class State>
struct PipelineOperations {
    using Job = typename State::Job;
    using Result = typename Job::Result;
    using Stored = typename Job::Stored;
    using Executor = typename State::Executor;
    using Stream = ResultStream<Result, Executor>;

    // `item` is what a job takes.
    template <class Item>
    static boost::asio::awaitable<Result, Executor> run_one(Pooled, std::shared_ptr<State> state, Item item) {
        if constexpr (checks_context) {
            const Executor executor = co_await boost::asio::this_coro::executor;
            state->check_context(executor);
        }
        Job job;
        job.take(std::move(item));
        if (job.result.query.timeout) [[unlikely]] {
            const Executor executor = co_await boost::asio::this_coro::executor;
            state->start_timeout(job, context_of(executor));
        }
        if constexpr (State::drains) {
            refuse_if_draining(*state);
            job.drain = &state->drain.scope;
            SingleRun run;
            job.operation = &run;
            state->drain.scope.enter(run);
            state->begin_query(state->drain);
            try {
                OptionalValue<void> done;
                co_await cancelled_by(run, done, process(Pooled(), *state, job));
            } catch (...) {
                state->end_cancelled(state->drain);
                throw;
            }
        } else {
            state->begin_query(state->drain);
            try {
                co_await process(Pooled(), *state, job);
            } catch (...) {
                state->end_cancelled(state->drain);
                throw;
            }
        }
        state->end_query(state->drain, job.result);
        co_return std::move(job.result);
    }

    // When awaited, drains the pipeline and returns the report.
    template <class Report>
    static boost::asio::awaitable<Report, Executor> drain(Pooled, std::shared_ptr<State> state,
                                                          std::chrono::nanoseconds grace) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        state->check_context(executor);
        co_await State::Drain::template run<Executor>(Pooled(), state->drain, executor, state, grace);
        co_return report_of<Report>(state->drain.counts(), std::exchange(state->unfinished, {}));
    }

    template <class Queries, class Projection>
    static auto run_batch(std::shared_ptr<State> state, Queries&& queries, Projection projection) {
        return run_batch_of(std::move(state), input_of<Queries>(std::forward<Queries>(queries), std::move(projection)));
    }

    template <class Queries, class Projection>
    static Stream make_stream(std::shared_ptr<State> state, Queries&& queries, Projection projection) {
        refuse_if_draining(*state);
        auto input = input_of<Queries>(std::forward<Queries>(queries), std::move(projection));
        return Stream(std::make_shared<PipelineStream<State, decltype(input)>>(std::move(state), std::move(input)));
    }

private:
    // Runs a query that belongs to no batch or stream.
    static boost::asio::awaitable<void, Executor> process(Pooled, State& state, Job& job) {
        std::exception_ptr error;
        try {
            co_await state.process(job);
        } catch (...) {
            error = std::current_exception();
        }
        if (!state.has_ended(job, error)) {
            const bool throws = co_await boost::asio::this_coro::throw_if_cancelled();
            co_await boost::asio::this_coro::throw_if_cancelled(false);
            try {
                co_await state.end_otherwise(job, std::exchange(error, nullptr));
            } catch (...) {
                error = std::current_exception();
            }
            co_await boost::asio::this_coro::throw_if_cancelled(throws);
            if (error) {
                std::rethrow_exception(error);
            }
        }
    }

    // Such a query, which the end of a drain's grace cancels.
    class SingleRun final : public Drainable, public Canceller {
        void on_drain() override {}
        void on_grace_over() override {
            cut_short_ = cut_short_ || !cancelled();
            cancel();
        }
    };

    static bool is_draining(const State& state) noexcept {
        if constexpr (State::drains) {
            return state.drain.scope.draining();
        } else {
            return false;
        }
    }
    static void refuse_if_draining(const State& state) {
        if (is_draining(state)) {
            throw Draining();
        }
    }

    template <class Items, class Projection>
    static Input<Items, Projection> input_of(Items&& items, Projection projection) {
        if constexpr (ItemSource<Items>) {
            static_assert(std::same_as<typename next_t<Items>::executor_type, Executor>,
                          "sluice::QuerySource: the awaitable of next() must have the executor type of the models' "
                          "awaitables");
        }
        return Input<Items, Projection>(std::forward<Items>(items), std::move(projection));
    }

    template <class From>
    static boost::asio::awaitable<std::vector<Stored>, Executor> run_batch_of(std::shared_ptr<State> state,
                                                                              From input) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        state->check_context(executor);
        if (is_draining(*state)) {
            std::exception_ptr error = std::make_exception_ptr(Draining());
            if constexpr (From::must_be_closed) {
                co_await input.template close<Executor>(error);
            }
            std::rethrow_exception(error);
        }
        BatchResults<Stored> results(input.size_hint());
        const typename State::Drain::Running running(state->drain);
        QueryWindow<State, From, BatchResults<Stored>> window(executor, *state, state->drain, std::move(input),
                                                              results);
        try {
            co_await window.run();
        } catch (...) {  // nobody receives the results
            if constexpr (State::drains) {
                for (Result& result : results.take()) {
                    if (result.unfinished) {
                        state->unfinished.push_back(std::move(result));
                    }
                }
            }
            throw;
        }
        co_return results.take();
    }
};

}  // namespace sluice::detail
