// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/concepts.hpp>
#include <sluice/dead_letter.hpp>
#include <sluice/detail/awaitable_traits.hpp>
#include <sluice/detail/batch.hpp>
#include <sluice/detail/crew.hpp>
#include <sluice/detail/frame_pool.hpp>
#include <sluice/detail/input.hpp>
#include <sluice/detail/pipeline_state.hpp>
#include <sluice/detail/stream_state.hpp>
#include <sluice/pipeline_options.hpp>
#include <sluice/query.hpp>
#include <sluice/result_stream.hpp>
#include <sluice/stage.hpp>
#include <sluice/task_group.hpp>
#include <sluice/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>

#include <concepts>
#include <cstddef>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace sluice {

/// Runs queries through three models, classify, extract and generate, each behind its own limit.
///
/// The model functions are callables that give an `asio::awaitable`; the types of intent, entities and response, and
/// the executor, are deduced from them:
///
///     classify(text) -> awaitable<Intent>
///     extract(text) -> awaitable<Entities>
///     generate(intent, entities, text) -> awaitable<Response>
///
/// They are given the text as a `const std::string&`, and intent and entities as const lvalues that live until they
/// end: a retry finds them unchanged. What they give must be movable without throwing. Stage says what else they must
/// do.
///
/// Each query ends in exactly one way: it is completed, it is put into the dead letters by the stage that gave it up,
/// or it is cancelled by whoever cancelled the call that it belongs to.
///
/// All of process_one(), process_batch() and process_stream() share the limits, and may run at the same time.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. The pipeline and all that uses it belong to one thread or strand,
/// that of the executor. Model functions do work on other threads by run_on(), and coroutines that run elsewhere await
/// the pipeline by it.
///
/// @par Lifetime
/// The pipeline may be destroyed while its operations run, with the exception of run_stage(): they keep what they need
/// of it. The sink, the observer and ranges given by reference must outlive them. The execution context may be
/// destroyed before or after the pipeline. One that was moved from can only be destroyed or assigned to.
template <class Classify, class Extract, class Generate, class Sink, Timer TimerType = boost::asio::steady_timer>
class InferencePipeline {
public:
    using Executor = detail::awaiting_executor_t<Classify&, const std::string&>;
    using Intent = detail::model_value_t<Classify&, const std::string&>;
    using Entities = detail::model_value_t<Extract&, const std::string&>;
    using Response = detail::model_value_t<Generate&, const Intent&, const Entities&, const std::string&>;
    using Result = PipelineResult<Intent, Entities, Response>;
    using Stream = ResultStream<Result, Executor>;

    // If not, generate's mistakes would only be the others' again.
    static constexpr bool knows_its_input =
        ModelFunction<Classify, const std::string&> && ModelFunction<Extract, const std::string&>;

    // Not constraints, since to those compilers say "no matching function" first, and what is wrong far below.
    static_assert(std::invocable<Classify&, const std::string&>,
                  "sluice::InferencePipeline: classify cannot be called with a const std::string&");
    static_assert(std::invocable<Extract&, const std::string&>,
                  "sluice::InferencePipeline: extract cannot be called with a const std::string&");
    static_assert(!knows_its_input || std::invocable<Generate&, const Intent&, const Entities&, const std::string&>,
                  "sluice::InferencePipeline: generate cannot be called with a const Intent&, a const Entities& and a "
                  "const std::string&, Intent being what classify gives and Entities what extract gives");
    static_assert(!std::invocable<Classify&, const std::string&> || ModelFunction<Classify, const std::string&>,
                  "sluice::ModelFunction: classify(const std::string&) must give an asio::awaitable of a value: not "
                  "void, no reference, nothing that may throw when it is moved");
    static_assert(
        !std::invocable<Extract&, const std::string&> || ModelFunction<Extract, const std::string&>,
        "sluice::ModelFunction: extract(const std::string&) must give an asio::awaitable of a value: not void, "
        "no reference, nothing that may throw when it is moved");
    static_assert(
        !std::invocable<Generate&, const Intent&, const Entities&, const std::string&> ||
            ModelFunction<Generate, const Intent&, const Entities&, const std::string&>,
        "sluice::ModelFunction: generate(intent, entities, const std::string&), with what classify and extract "
        "give, must give an asio::awaitable of a value: not void, no reference, nothing that may throw when it "
        "is moved");
    static_assert(
        std::same_as<Executor, detail::awaiting_executor_t<Extract&, const std::string&>> &&
            std::same_as<Executor,
                         detail::awaiting_executor_t<Generate&, const Intent&, const Entities&, const std::string&>>,
        "sluice::InferencePipeline: the awaitables of classify, extract and generate must have the same "
        "executor type");
    static_assert(std::constructible_from<TimerType, const Executor&>,
                  "sluice::Timer: the timer must be constructible from the executor of the models' coroutines");
    static_assert(DeadLetterSink<Sink>,
                  "sluice::DeadLetterSink: the sink must have put(const sluice::Query&, const sluice::StageResult<>&)");

    /// @throws std::invalid_argument naming the stage or option and the value, if a limit, the window or a timeout is
    /// out of range or a function is empty.
    InferencePipeline(const Executor& executor, Classify classify_fn, Extract extract_fn, Generate generate_fn,
                      StageLimits limits, Sink& dead_letters, const BasicPipelineOptions<TimerType>& options = {})
        : state_(std::make_shared<State>(executor, std::move(classify_fn), std::move(extract_fn),
                                         std::move(generate_fn), limits, dead_letters, options)) {}

    InferencePipeline(InferencePipeline&&) noexcept = default;
    InferencePipeline& operator=(InferencePipeline&&) noexcept = default;

    /// Runs one query through one of this pipeline's stages and does nothing else with the outcome: Stage::run().
    template <class StageType, class... Args>
    [[nodiscard]] auto run_stage(StageType& stage, const Query& query, Args&&... args) {
        return stage.run(query.id, std::forward<Args>(args)...);
    }

    /// Runs one query through all three stages in order. If one fails, no later one runs, the query is put into the
    /// dead letters, and what there is of the result comes back.
    ///
    /// @par Cancellation
    /// As the model functions provide. The slot comes back, `operation_aborted` comes out, and there is no dead letter;
    /// one that is being put already is finished, and the result comes back.
    [[nodiscard]] boost::asio::awaitable<Result, Executor> process_one(Query query) {
        return process_one(detail::Pooled(), state_, std::move(query));
    }

    /// Runs all queries of a range, at most `window` at once, and gives their results in the order of the input. A
    /// query that fails touches no other.
    ///
    /// A range given as an lvalue is referred to and its queries are copied; one that is handed over is kept and its
    /// queries are moved. Queries are taken from it as they are started. Memory beside the results is bounded by the
    /// window.
    ///
    /// @throws what the range throws; the queries that run are then cancelled.
    ///
    /// @par Cancellation
    /// Terminal, partial, total, as far as the awaiting coroutine lets them through (see StageSemaphore::acquire()).
    /// Nothing new starts, what runs is cancelled, every slot comes back, and then `operation_aborted` comes out.
    /// Queries that failed before are in the dead letters, cancelled ones are not. Results that are there already are
    /// discarded: where they must not be, use process_stream().
    ///
    /// @note Model functions that complete without suspending give nothing else a turn while they do, not even whoever
    /// would cancel the batch.
    ///
    /// @note With Boost 1.83, `co_spawn` lets the `operation_aborted` of a batch that is cancelled before it has begun
    /// escape from the event loop, and never calls its handler. So cancel it through the executor, by a
    /// `post(executor, ...)` that emits the signal: a batch that was spawned before has then begun.
    template <class Range>
    [[nodiscard]] boost::asio::awaitable<std::vector<Result>, Executor> process_batch(Range&& queries) {
        static_assert(QueryRange<Range>, "sluice::QueryRange: process_batch() needs a range of sluice::Query");
        return process_batch(state_, detail::Input<Range>(std::forward<Range>(queries)));
    }

    /// Runs the queries of a range, which may be lazy or endless, and gives their results as they complete. See
    /// ResultStream. The range is kept or referred to as by process_batch().
    template <class Range>
    Stream process_stream(Range&& queries) {
        static_assert(QueryRange<Range>, "sluice::QueryRange: process_stream() needs a range of sluice::Query");
        return Stream(std::make_shared<detail::PipelineStream<State, Range>>(
            state_, detail::Input<Range>(std::forward<Range>(queries))));
    }

    /// The stages, to look at or to change their limits.
    auto& classify() noexcept { return state_->classify; }
    auto& extract() noexcept { return state_->extract; }
    auto& generate() noexcept { return state_->generate; }

    /// How many queries a batch or a stream runs at once.
    std::ptrdiff_t window() const noexcept { return state_->window; }

private:
    using State = detail::PipelineState<Classify, Extract, Generate, Sink, TimerType, Result, Executor>;

    static boost::asio::awaitable<Result, Executor> process_one(detail::Pooled, std::shared_ptr<State> state,
                                                                Query query) {
        Result result(std::move(query));
        co_await state->process(result);
        co_return result;
    }

    template <class Range>
    static boost::asio::awaitable<std::vector<Result>, Executor> process_batch(std::shared_ptr<State> state,
                                                                               detail::Input<Range> queries) {
        detail::Batch<State, Range> batch(*state, std::move(queries));
        co_await with_task_group<Executor>(detail::Begin<detail::Batch<State, Range>>{batch});
        co_return batch.take_results();
    }

    std::shared_ptr<State> state_;
};

template <class Executor, class Classify, class Extract, class Generate, class Sink>
InferencePipeline(Executor, Classify, Extract, Generate, StageLimits, Sink&)
    -> InferencePipeline<Classify, Extract, Generate, Sink>;

template <class Executor, class Classify, class Extract, class Generate, class Sink, class TimerType>
InferencePipeline(Executor, Classify, Extract, Generate, StageLimits, Sink&, BasicPipelineOptions<TimerType>)
    -> InferencePipeline<Classify, Extract, Generate, Sink, TimerType>;

}  // namespace sluice
