// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/dead_letter.hpp>
#include <sluice/pipeline/detail/following_state.hpp>
#include <sluice/pipeline/detail/inference_route.hpp>
#include <sluice/pipeline/detail/pipeline_operations.hpp>
#include <sluice/pipeline/inference_pipeline_options.hpp>
#include <sluice/pipeline/query_source.hpp>
#include <sluice/pipeline/result_stream.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/model_function.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/timed_by.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <concepts>
#include <cstddef>
#include <functional>
#include <memory>
#include <string>
#include <utility>
#include <vector>

namespace sluice {

/// Runs queries through three models, classify, extract and generate, each behind its own limit.
///
/// The model functions are callables that return an `asio::awaitable`. The types of intent, entities and response, and
/// the executor, are deduced from them:
///
///     classify(text) -> awaitable<Intent>
///     extract(text) -> awaitable<Entities>
///     generate(intent, entities, text) -> awaitable<Response>
///
/// The text is passed as a `const std::string&`, and intent and entities as const lvalues, which live until the call
/// ends: a retry sees them unchanged. The values that the functions return must be movable without throwing. Stage says
/// what else a model function must do.
///
/// Each query ends in exactly one way: it is completed; or a stage fails for good, and the query goes to the
/// dead-letter sink; or it is cancelled together with the call or stream it belongs to. (There is no drain here, so no
/// query is ever `unfinished`. A Pipeline has one, and any number of stages.)
///
/// process_one(), process_batch() and process_stream() share the limits and may run at the same time. To run one stage
/// alone, call `pipeline.extract().run(query.id, query.text)`; see Stage::run().
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. The pipeline and everything that uses it belong to one thread or
/// strand, that of the executor. Model functions work on other threads through run_on(), as do coroutines elsewhere
/// that await the pipeline.
///
/// @par Lifetime
/// The pipeline may be destroyed while its operations run: they keep its state alive, stages included. The sink, the
/// observer, and ranges and sources that were passed by reference must outlive the operations. The execution context
/// may be destroyed before or after the pipeline. A pipeline that was moved from can only be destroyed or assigned to.
template <class Classify, class Extract, class Generate, class Sink, Timer T = boost::asio::steady_timer>
class InferencePipeline {
public:
    using Executor = detail::model_executor_t<Classify&, const std::string&>;
    using Intent = detail::model_value_t<Classify&, const std::string&>;
    using Entities = detail::model_value_t<Extract&, const std::string&>;
    using Response = detail::model_value_t<Generate&, const Intent&, const Entities&, const std::string&>;
    using Result = PipelineResult<Intent, Entities, Response>;
    using Stream = ResultStream<Result, Executor>;

    // Otherwise an error about generate would only repeat those about the others.
    static constexpr bool knows_its_input =
        ModelFunction<Classify, const std::string&> && ModelFunction<Extract, const std::string&>;

    // Not constraints: for those, compilers report "no matching function" first and the reason far below.
    static_assert(detail::CallableModel<Classify, const std::string&>,
                  "sluice::InferencePipeline: classify cannot be called with a const std::string&");
    static_assert(detail::CallableModel<Extract, const std::string&>,
                  "sluice::InferencePipeline: extract cannot be called with a const std::string&");
    static_assert(!knows_its_input ||
                      detail::CallableModel<Generate, const Intent&, const Entities&, const std::string&>,
                  "sluice::InferencePipeline: generate cannot be called with a const Intent&, a const Entities& and a "
                  "const std::string&, where Intent is what classify returns and Entities what extract returns");
    static_assert(!detail::CallableModel<Classify, const std::string&> || ModelFunction<Classify, const std::string&>,
                  "sluice::ModelFunction: classify(const std::string&) must return an asio::awaitable of a value: not "
                  "void, no reference, nothing that may throw when it is moved");
    static_assert(
        !detail::CallableModel<Extract, const std::string&> || ModelFunction<Extract, const std::string&>,
        "sluice::ModelFunction: extract(const std::string&) must return an asio::awaitable of a value: not void, "
        "no reference, nothing that may throw when it is moved");
    static_assert(
        !detail::CallableModel<Generate, const Intent&, const Entities&, const std::string&> ||
            ModelFunction<Generate, const Intent&, const Entities&, const std::string&>,
        "sluice::ModelFunction: generate(intent, entities, const std::string&), with what classify and extract "
        "return, must return an asio::awaitable of a value: not void, no reference, nothing that may throw when it "
        "is moved");
    static_assert(
        std::same_as<Executor, detail::model_executor_t<Extract&, const std::string&>> &&
            std::same_as<Executor,
                         detail::model_executor_t<Generate&, const Intent&, const Entities&, const std::string&>>,
        "sluice::InferencePipeline: the awaitables of classify, extract and generate must have the same "
        "executor type");
    static_assert(std::constructible_from<T, const Executor&>,
                  "sluice::Timer: the timer must be constructible from the executor of the models' coroutines");
    static_assert(DeadLetterSink<Sink>,
                  "sluice::DeadLetterSink: the sink must have put(const sluice::Query&, const sluice::StageResult<>&)");

    /// @param executor The executor of the pipeline's coroutines; pass `timed_by<T>(executor)` to use another timer.
    /// @param classify_fn,extract_fn,generate_fn The model functions.
    /// @param limits How many attempts may run at once in each stage.
    /// @param dead_letters Gets the queries that failed for good; must outlive the pipeline's operations.
    /// @param options Retries, timeouts, the window and the observer.
    /// @throws std::invalid_argument naming the stage or option and its value if a limit or an option is out of
    /// range, or if a function or the executor is empty.
    InferencePipeline(const Executor& executor, Classify classify_fn, Extract extract_fn, Generate generate_fn,
                      StageLimits limits, Sink& dead_letters, const InferencePipelineOptions& options = {})
        : state_(make_state(executor, std::move(classify_fn), std::move(extract_fn), std::move(generate_fn), limits,
                            dead_letters, options)) {}
    template <std::convertible_to<Executor> AnyExecutor>
    InferencePipeline(const TimedExecutor<T, AnyExecutor>& executor, Classify classify_fn, Extract extract_fn,
                      Generate generate_fn, StageLimits limits, Sink& dead_letters,
                      const InferencePipelineOptions& options = {})
        : InferencePipeline(Executor(executor.executor()), std::move(classify_fn), std::move(extract_fn),
                            std::move(generate_fn), limits, dead_letters, options) {}

    InferencePipeline(InferencePipeline&&) noexcept = default;
    InferencePipeline& operator=(InferencePipeline&&) noexcept = default;

    /// When awaited, runs one query through all three stages in order, and returns its result. If a stage fails for
    /// good, no later one runs, and the query goes to the dead-letter sink.
    ///
    /// @par Cancellation
    /// The types that the model functions support. The slot is returned, `operation_aborted` is thrown, and the query
    /// is no dead letter. If the last stage still succeeds, or the query is already going to the dead-letter sink, that
    /// completes and the result is returned.
    [[nodiscard]] boost::asio::awaitable<Result, Executor> process_one(Query query) {
        return Operations::run_one(detail::Pooled(), state_, std::move(query));
    }

    /// When awaited, runs all queries of a range or an asynchronous source, at most `window` at once, and returns their
    /// results in the order of the input. A query that fails does not affect the others.
    ///
    /// A range or source that is passed as an lvalue is stored by reference; the queries of such a range are copied. An
    /// rvalue container is moved in and its queries are moved on; the queries of a view are copied. A query is taken
    /// when it starts. Apart from the results, memory is bounded by the window and the queries in backoff.
    ///
    /// Rethrows what the range or source throws, after cancelling the queries that run.
    ///
    /// @param queries A QueryRange or a QuerySource.
    /// @param projection Turns an item into a Query, or into an empty `std::optional<Query>` to leave it out.
    ///
    /// @par Cancellation
    /// Terminal, partial and total, as far as the awaiting coroutine lets them through; see StageSemaphore::acquire().
    /// No further query starts, those that run are cancelled, every slot is returned, and then `operation_aborted` is
    /// thrown. Queries that had already failed are dead letters; cancelled ones are not. The results so far are
    /// discarded: if you need them, use process_stream().
    ///
    /// @note While model functions complete without suspending, nothing else gets a turn, including code that would
    /// cancel the batch.
    ///
    /// @note With Boost 1.83, if a batch is cancelled before it has begun, `co_spawn` lets its `operation_aborted`
    /// escape from the event loop and never calls the completion handler. So emit the signal through the executor, by
    /// `post(executor, ...)`: a batch that was spawned before has begun by then.
    template <class Queries, class Projection = std::identity>
    [[nodiscard]] boost::asio::awaitable<std::vector<Result>, Executor> process_batch(Queries&& queries,
                                                                                      Projection projection = {}) {
        static_assert(
            is_input<Queries, Projection>,
            "sluice::QueryRange: process_batch() needs a range or an asynchronous source of sluice::Query, or of "
            "items that the projection turns into one");
        return Operations::run_batch(state_, std::forward<Queries>(queries), std::move(projection));
    }

    /// Returns a stream of the results of a range of queries, which may be lazy or endless, or of an asynchronous
    /// source, such as the stream of another pipeline. See ResultStream. Takes its arguments as process_batch() does.
    ///
    /// @code
    /// auto summaries = summarise.process_stream(answer.process_stream(questions), to_query);
    /// @endcode
    template <class Queries, class Projection = std::identity>
    Stream process_stream(Queries&& queries, Projection projection = {}) {
        static_assert(
            is_input<Queries, Projection>,
            "sluice::QueryRange: process_stream() needs a range or an asynchronous source of sluice::Query, or of "
            "items that the projection turns into one");
        return Operations::make_stream(state_, std::forward<Queries>(queries), std::move(projection));
    }

    /// The stages: to inspect their endpoints or change the limits, or to run one alone.
    Stage<Classify, T> classify() const noexcept { return state_->route.classify; }
    Stage<Extract, T> extract() const noexcept { return state_->route.extract; }
    Stage<Generate, T> generate() const noexcept { return state_->route.generate; }

    /// The maximum number of queries that a batch or a stream runs at once.
    std::ptrdiff_t window() const noexcept { return state_->window(); }

private:
    using Route = detail::InferenceRoute<Classify, Extract, Generate, T, Result, Executor>;
    using State = detail::FollowingState<Route, Sink, T>;

    using Operations = detail::PipelineOperations<State>;

    // For those that watch the pipeline.
    friend const std::shared_ptr<State>& state_of(const InferencePipeline& pipeline) noexcept {
        return pipeline.state_;
    }

    template <class Queries, class Projection>
    static constexpr bool is_input = QueryRange<Queries, Projection> || QuerySource<Queries, Projection>;

    static std::shared_ptr<State> make_state(const Executor& executor, Classify classify_fn, Extract extract_fn,
                                             Generate generate_fn, StageLimits limits, Sink& dead_letters,
                                             const InferencePipelineOptions& options) {
        detail::require(options.max_in_backoff >= 0, "InferencePipeline", "max_in_backoff must not be negative",
                        options.max_in_backoff);
        if (options.window) {
            detail::require(*options.window >= 1, "InferencePipeline", "window must be at least 1", *options.window);
        }
        return std::make_shared<State>(options.window, options.max_in_backoff, options.observer, dead_letters, executor,
                                       std::move(classify_fn), std::move(extract_fn), std::move(generate_fn), limits,
                                       options);
    }

    std::shared_ptr<State> state_;
};

template <class Executor, class Classify, class Extract, class Generate, class Sink>
InferencePipeline(Executor, Classify, Extract, Generate, StageLimits, Sink&)
    -> InferencePipeline<Classify, Extract, Generate, Sink>;
template <class Executor, class Classify, class Extract, class Generate, class Sink>
InferencePipeline(Executor, Classify, Extract, Generate, StageLimits, Sink&, InferencePipelineOptions)
    -> InferencePipeline<Classify, Extract, Generate, Sink>;
template <class T, class Executor, class Classify, class Extract, class Generate, class Sink>
InferencePipeline(TimedExecutor<T, Executor>, Classify, Extract, Generate, StageLimits, Sink&)
    -> InferencePipeline<Classify, Extract, Generate, Sink, T>;
template <class T, class Executor, class Classify, class Extract, class Generate, class Sink>
InferencePipeline(TimedExecutor<T, Executor>, Classify, Extract, Generate, StageLimits, Sink&, InferencePipelineOptions)
    -> InferencePipeline<Classify, Extract, Generate, Sink, T>;

}  // namespace sluice
