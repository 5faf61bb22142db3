// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/dead_letter.hpp>
#include <sluice/pipeline/detail/pipeline_operations.hpp>
#include <sluice/pipeline/detail/pipeline_state.hpp>
#include <sluice/pipeline/detail/record_route.hpp>
#include <sluice/pipeline/detail/route_traits.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/query_source.hpp>
#include <sluice/pipeline/result_stream.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/timed_by.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/steady_timer.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <functional>
#include <memory>
#include <stdexcept>
#include <type_traits>
#include <utility>
#include <vector>

namespace sluice {

/// The options of a Pipeline. Fields are only ever appended.
struct PipelineOptions {
    /// The number of queries of each batch and each stream that may be in backoff and hold no place in the window; not
    /// negative. A query beyond it keeps its place during its backoff, so that memory stays bounded. One that has left
    /// its place waits for another before its next attempt or step, and before it completes or becomes a dead letter.
    /// If it is late, by Query::timeout, it ends without one, and is one of this number until its result is taken.
    std::ptrdiff_t max_in_backoff = 1000;

    /// Observes every dead letter, and each step of a stage that has no observer of its own. It must outlive the
    /// pipeline's operations. Default: none.
    Observer* observer = nullptr;
};
static_assert(std::is_aggregate_v<PipelineOptions> && std::is_trivially_destructible_v<PipelineOptions>);

/// Runs queries through stages of any number and in any shape. A coroutine that you write, the *route*, takes one query
/// through the stages. A struct that you define, the *record*, collects their values: its fields are optionals. It may
/// be move-only, and its move constructor must not throw.
///
/// @code
/// struct Ticket {
///     std::optional<std::string> intent;
///     std::optional<Entities> entities;
///     std::optional<std::string> reply;
/// };
///
/// const auto route = [=](sluice::Run<Ticket>& run) -> asio::awaitable<void> {
///     co_await run.all(run.step(&Ticket::intent, classify, run.query().text),
///                      run.step(&Ticket::entities, extract, run.query().text));
///     if (*run->intent == "spam") co_return;  // safe: all() has thrown if a step failed
///     co_await run.step(&Ticket::reply, generate, &Ticket::intent, &Ticket::entities);
/// };
/// sluice::Pipeline support(executor, route, dead_letters, 64);
/// @endcode
///
/// A record is a checkpoint: a step whose field has a value does not run. So a query that is run again with its record
/// (see Checkpoint) goes on at the first empty field. It takes the route from its top, so a route must depend on the
/// query and the record alone. A loop empties its fields at the *end* of a round, and never at its start, so that a
/// checkpoint keeps what was paid for.
///
/// Each query ends in exactly one way:
/// @li completed: its route has returned.
/// @li a dead letter: its route has thrown, and the query goes to the dead-letter sink. StepFailed names the stage that
/// failed; anything else is a failure of a stage named `route`.
/// @li cancelled: together with the call or stream that it belongs to, before its route has ended. It has no result. An
/// exception that leaves the route after the cancellation does not make it a dead letter, except the StepFailed of a
/// stage that had failed before.
/// @li unfinished: a drain has cut it short, by the same rules. Its result has the record.
///
/// A query that was cancelled is not completed if any of its steps, or an all(), was cut short, or if its route awaits
/// one afterwards, even if the route catches the exception and returns. If its cancellation has ended only something
/// else that the route awaited, such as a timer, and the route catches that and returns without a further step, the
/// query is completed. A step that the route itself has cancelled, as by with_timeout(), keeps from completing only a
/// query that is cancelled later.
///
/// A route must leave `this_coro::throw_if_cancelled` and `this_coro::reset_cancellation_state` as it has found them,
/// as a model function must: they belong to the coroutine that runs the query, and the next one after it. A coroutine
/// that needs others can be awaited by all(), which gives each its own.
///
/// The sink's put() may have a third parameter: a `const Record&`, or the whole result, a `const
/// RecordResult<Record>&`, whose `stage_results` also list what failed beside the step that is to blame.
///
/// The sink may have a member `save(query, record)`, a function or coroutine with a `const Query&` and a `const
/// Record&`. It is awaited after each step whose model has succeeded, before step() completes: one at a time for a
/// query, and not again for a change that it has seen. No cancellation reaches it. What it needs of the record it reads
/// before it suspends, since steps side by side change the record meanwhile. If it throws, the field stays filled, and
/// the query becomes a dead letter of the stage `save` with Reason::checkpoint, unless another step had failed before.
///
/// @tparam Function The route: called with a `Run<Record>&`, or a `Run<Record, Executor>&`, it returns an
/// `asio::awaitable<void, Executor>`.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. The pipeline, its stages and everything that uses them belong to one
/// thread or strand, that of the executor.
///
/// @par Lifetime
/// The pipeline may be destroyed while its operations run: they keep its route alive, and the stages that it holds. The
/// sink, the observer, and ranges and sources that were passed by reference must outlive the operations. A pipeline
/// that was moved from can only be destroyed or assigned to.
template <class Function, class Sink, Timer T = boost::asio::steady_timer>
class Pipeline {
    using Traits = detail::RouteTraits<Function>;
    static constexpr bool is_route = detail::RouteFunction<Function>;

    static_assert(
        Traits::takes_run,
        "sluice::Pipeline: the route must be a callable with the one parameter sluice::Run<Record>&, which is "
        "no template; write [this](sluice::Run<Record>& run) { return route(run); }");
    static_assert(!Traits::takes_run || Traits::returns_awaitable,
                  "sluice::Pipeline: the route must return an asio::awaitable<void> with the executor of its Run");
    static_assert(!Traits::takes_run || Traits::makes_record,
                  "sluice::Pipeline: the record must be default-initializable");
    static_assert(!Traits::takes_run || Traits::moves_record,
                  "sluice::Pipeline: the record must be movable, and its move constructor must not throw: mark it "
                  "noexcept");

public:
    using Record = typename detail::RouteTypes<Function>::Record;
    using Executor = typename detail::RouteTypes<Function>::Executor;
    using Result = RecordResult<Record>;
    using Stream = ResultStream<Result, Executor>;

    static_assert(
        !is_route || detail::SinkOf<Sink, Record>,
        "sluice::DeadLetterSink: the sink must have put(const sluice::Query&, const sluice::StageResult<>&), or "
        "put() with a const Record& or a const sluice::RecordResult<Record>& as third argument");
    static_assert(!is_route || detail::RecordSink<Sink, Record> || !detail::PutsSomethingElse<Sink>,
                  "sluice::DeadLetterSink: the third parameter of the sink's put must be a const Record& or a const "
                  "sluice::RecordResult<Record>&");
    static_assert(!is_route || detail::SavingSink<Sink, Record> || !detail::HasSave<Sink>,
                  "sluice::Pipeline: the sink's save must be save(const sluice::Query&, const Record&), and public");
    static_assert(std::constructible_from<T, const Executor&>,
                  "sluice::Timer: the timer must be constructible from the executor of the route");

    /// @param executor The executor of the pipeline's coroutines; pass `timed_by<T>(executor)` to use another timer.
    /// @param route How one query goes.
    /// @param dead_letters Gets the queries that failed for good; must outlive the pipeline's operations.
    /// @param window The number of queries that each batch and each stream runs at once; at least 1. The sum of the
    /// limits of the stages keeps all of them busy.
    /// @param options The bound on backoffs, and the observer.
    /// @throws std::invalid_argument naming the argument or option and its value if one is out of range, or if the
    /// route or the executor is empty.
    Pipeline(const Executor& executor, Function route, Sink& dead_letters, std::ptrdiff_t window,
             const PipelineOptions& options = {})
        : state_(std::make_shared<State>(settings(executor, route, window, options), dead_letters, executor,
                                         std::move(route))) {}
    template <std::convertible_to<Executor> AnyExecutor>
    Pipeline(const TimedExecutor<T, AnyExecutor>& executor, Function route, Sink& dead_letters, std::ptrdiff_t window,
             const PipelineOptions& options = {})
        : Pipeline(Executor(executor.executor()), std::move(route), dead_letters, window, options) {}

    Pipeline(Pipeline&&) noexcept = default;
    Pipeline& operator=(Pipeline&&) noexcept = default;

    /// When awaited, runs one query, and returns its result. If a step fails, the query goes to the dead-letter sink.
    ///
    /// @throws Draining when awaited, if the pipeline is being drained, or has been.
    ///
    /// @par Cancellation
    /// The types that the stages and the route support. Every slot is returned, `operation_aborted` is thrown, and the
    /// query is no dead letter. The result is returned instead if the route completes the query nevertheless, if the
    /// query is already going to the dead-letter sink, or if a drain has cut it short.
    [[nodiscard]] boost::asio::awaitable<Result, Executor> process_one(Query query) {
        return Operations::run_one(detail::Pooled(), state_, std::move(query));
    }
    /// The same for a query with its record.
    [[nodiscard]] boost::asio::awaitable<Result, Executor> process_one(Checkpoint<Record> checkpoint) {
        return Operations::run_one(detail::Pooled(), state_, std::move(checkpoint));
    }

    /// When awaited, runs all queries of a range or an asynchronous source, at most `window` at once, and returns their
    /// results in the order of the input; see InferencePipeline::process_batch(). The items may be Checkpoints, and the
    /// projection may return them. drain() says what becomes of the rest of a range.
    ///
    /// @throws Draining when awaited, if the pipeline is being drained, or has been. A range that was moved in is
    /// destroyed then, and a source closed and destroyed.
    template <class Items, class Projection = std::identity>
    [[nodiscard]] boost::asio::awaitable<std::vector<Result>, Executor> process_batch(Items&& items,
                                                                                      Projection projection = {}) {
        static_assert(is_input<Items, Projection>,
                      "sluice::QueryRange: process_batch() needs a range or an asynchronous "
                      "source of sluice::Query or sluice::Checkpoint<Record>, or of items "
                      "that the projection turns into one");
        if constexpr (is_input<Items, Projection>) {
            return Operations::run_batch(state_, std::forward<Items>(items), std::move(projection));
        } else {
            return {};
        }
    }

    /// Returns a stream of the results; see ResultStream and InferencePipeline::process_stream(). The items may be
    /// Checkpoints, and the projection may return them.
    ///
    /// @throws Draining at once, before anything is moved in, if the pipeline is being drained, or has been.
    template <class Items, class Projection = std::identity>
    Stream process_stream(Items&& items, Projection projection = {}) {
        static_assert(
            is_input<Items, Projection>,
            "sluice::QueryRange: process_stream() needs a range or an asynchronous source of sluice::Query or "
            "sluice::Checkpoint<Record>, or of items that the projection turns into one");
        if constexpr (is_input<Items, Projection>) {
            return Operations::make_stream(state_, std::forward<Items>(items), std::move(projection));
        } else {
            return Stream(nullptr);
        }
    }

    /// Stops the pipeline in order, and for good. When awaited, the pipeline takes in nothing more: new operations
    /// throw Draining, streams end, and the pending next() of an asynchronous source is cancelled. What runs goes on.
    /// What waits for something that ends after the grace gives up now, and its query is unfinished, but steps beside
    /// it go on: a backoff, or a place in the line of an endpoint that is paused, or whose breaker is open, for longer.
    /// (Who waits only for a slot or a rate waits on, since calls that end give both back.) When the grace is over, the
    /// rest is cancelled and waited for. Then drain() returns what became of the queries.
    ///
    /// The results of queries that are cut short are marked `unfinished`, and have their records. process_one() returns
    /// its result. A batch returns the results of all queries that it had taken, in order. The report has the
    /// unfinished queries of streams.
    ///
    /// The rest of an input, which was not taken, stays in a range that was passed by reference. A container that was
    /// moved in, or a view of one, comes back if it has a size: its rest follows as unfinished, in the results of the
    /// batch or in the report, even if the batch is cancelled, or the stream closed or destroyed, while the pipeline
    /// drains. Any other range that was moved in, such as a generator or a `std::forward_list`, may be endless, or
    /// expensive to read: its rest is destroyed with the batch or stream.
    ///
    /// What an asynchronous source has not delivered stays in it. A source that was moved in is closed, if it has a
    /// close(), and destroyed; but a ResultStream that was moved in is drained, too. It takes in nothing more. What it
    /// has completed, or still completes within the grace, goes through the projection and follows as unfinished. What
    /// it cuts short, and the rest of its own input, is in the report of its own pipeline, so drain that as well:
    /// before, at the same time, or afterwards. (The stream of an InferencePipeline or of map_stream() has no report:
    /// what it has not completed by then is lost.)
    ///
    /// Draining again returns the same numbers; it can only shorten the grace. Each checkpoint is in one report only.
    ///
    /// A model function, a sink or a route of this pipeline must not wait for drain(): it would wait for itself.
    ///
    /// @param grace The time that is left to what runs. Less than zero is zero, and more than a century is a century.
    /// @throws boost::system::system_error with `operation_aborted` if the wait was cancelled.
    ///
    /// @par Cancellation
    /// Terminal, partial and total. Ends only the wait: neither the drain nor its grace.
    ///
    /// @par Complexity
    /// O(n) in the queries and streams that the drain concerns, at its beginning and at the end of its grace, and in
    /// what it returns.
    [[nodiscard]] boost::asio::awaitable<DrainReport<Record>, Executor> drain(std::chrono::nanoseconds grace) {
        return Operations::template drain<DrainReport<Record>>(detail::Pooled(), state_, grace);
    }

    std::ptrdiff_t window() const noexcept { return state_->window(); }

private:
    using State = detail::PipelineState<
        detail::RecordRoute<Run<Record, Executor>, typename detail::RouteTypes<Function>::Route, Sink>, Sink, T>;
    using Operations = detail::PipelineOperations<State>;

    // For those that watch the pipeline.
    friend const std::shared_ptr<State>& state_of(const Pipeline& pipeline) noexcept { return pipeline.state_; }

    template <class Items, class Projection>
    static constexpr bool is_input = detail::ItemRange<Items, Projection, typename State::Job> ||
                                     detail::ItemsFrom<Items, Projection, typename State::Job>;

    static detail::PipelineSettings settings(const Executor& executor, const Function& route, std::ptrdiff_t window,
                                             const PipelineOptions& options) {
        detail::require_executor("Pipeline", executor);
        if (detail::is_empty(route)) {
            throw std::invalid_argument("Pipeline: the route must not be empty");
        }
        detail::require(window >= 1, "Pipeline", "window must be at least 1", window);
        detail::require(options.max_in_backoff >= 0, "Pipeline", "max_in_backoff must not be negative",
                        options.max_in_backoff);
        return {window, options.max_in_backoff, options.observer};
    }

    std::shared_ptr<State> state_;
};

template <class Executor, class Function, class Sink>
Pipeline(Executor, Function, Sink&, std::ptrdiff_t) -> Pipeline<Function, Sink>;
template <class Executor, class Function, class Sink>
Pipeline(Executor, Function, Sink&, std::ptrdiff_t, PipelineOptions) -> Pipeline<Function, Sink>;
template <class T, class Executor, class Function, class Sink>
Pipeline(TimedExecutor<T, Executor>, Function, Sink&, std::ptrdiff_t) -> Pipeline<Function, Sink, T>;
template <class T, class Executor, class Function, class Sink>
Pipeline(TimedExecutor<T, Executor>, Function, Sink&, std::ptrdiff_t, PipelineOptions) -> Pipeline<Function, Sink, T>;

}  // namespace sluice
