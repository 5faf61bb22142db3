// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/concepts.hpp>
#include <sluice/dead_letter.hpp>
#include <sluice/detail/input.hpp>
#include <sluice/observer.hpp>
#include <sluice/query.hpp>
#include <sluice/result_stream.hpp>
#include <sluice/stage.hpp>
#include <sluice/task_group.hpp>
#include <sluice/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <algorithm>
#include <concepts>
#include <cstddef>
#include <exception>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace sluice {

/// How many queries may be in each stage at once; each at least 1.
struct StageLimits {
    std::ptrdiff_t classify;
    std::ptrdiff_t extract;
    std::ptrdiff_t generate;
};

/// What an InferencePipeline may be told beside its limits. `TimerType` is what it waits with and measures time by.
template <Timer TimerType = boost::asio::steady_timer>
struct BasicPipelineOptions {
    BasicStageOptions<TimerType> classify;
    BasicStageOptions<TimerType> extract;
    BasicStageOptions<TimerType> generate;

    /// How many queries process_batch() and process_stream() run at once; at least 1. Default: the sum of the limits,
    /// which keeps every stage busy. A query in backoff keeps its place in the window.
    std::optional<std::ptrdiff_t> window;

    /// Is told of every dead letter, and of every run of those stages that have no observer of their own. Default:
    /// none.
    Observer* observer = nullptr;

    BasicPipelineOptions() = default;

    /// The same options for all three stages.
    explicit BasicPipelineOptions(const BasicStageOptions<TimerType>& every_stage,
                                  Observer* pipeline_observer = nullptr)
        : classify(every_stage), extract(every_stage), generate(every_stage), observer(pipeline_observer) {}
};

using PipelineOptions = BasicPipelineOptions<>;

/// Runs queries through three models, classify, extract and generate, each behind its own limit.
///
/// The model functions are callables that give an `asio::awaitable`; the types of intent, entities and response, and
/// the executor, are deduced from them:
///
///     classify(text) -> awaitable<Intent>
///     extract(text) -> awaitable<Entities>
///     generate(intent, entities, text) -> awaitable<Response>
///
/// They are given the text as a `const std::string&`, and intent and entities as lvalues that live until they end. What
/// they give must be movable without throwing. Stage says what else they must do.
///
/// Each query ends in exactly one way: it is completed, it is put into the dead letters by the stage that gave it up,
/// or it is cancelled by whoever cancelled the call that it belongs to.
///
/// All of process_one(), process_batch() and process_stream() share the limits, and may run at the same time.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe. The pipeline and all that uses it belong to one thread or strand,
/// that of the executor. Model functions may do their work elsewhere.
///
/// @par Lifetime
/// The pipeline must outlive the coroutines of its operations, streams excepted; the sink, the observer and ranges
/// given by reference must outlive all of them. The execution context may be destroyed before or after the pipeline.
/// One that was moved from can only be destroyed or assigned to.
template <class Classify, class Extract, class Generate, class Sink, Timer TimerType = boost::asio::steady_timer>
class InferencePipeline {
public:
    using Executor = detail::awaiting_executor_t<Classify&, const std::string&>;
    using Intent = detail::model_value_t<Classify&, const std::string&>;
    using Entities = detail::model_value_t<Extract&, const std::string&>;
    using Response = detail::model_value_t<Generate&, Intent&, Entities&, const std::string&>;
    using Result = PipelineResult<Intent, Entities, Response>;
    using Stream = ResultStream<Result, Executor>;

    // Not constraints, since to those compilers say "no matching function" first, and what is wrong far below.
    static_assert(ModelFunction<Classify, const std::string&>,
                  "sluice::ModelFunction: classify(const std::string&) must give an asio::awaitable of a value: not "
                  "void, no reference, nothing that may throw when it is moved");
    static_assert(
        ModelFunction<Extract, const std::string&>,
        "sluice::ModelFunction: extract(const std::string&) must give an asio::awaitable of a value: not void, "
        "no reference, nothing that may throw when it is moved");
    static_assert(
        ModelFunction<Generate, Intent&, Entities&, const std::string&>,
        "sluice::ModelFunction: generate(intent, entities, const std::string&), with what classify and extract "
        "give, must give an asio::awaitable of a value: not void, no reference, nothing that may throw when it "
        "is moved");
    static_assert(
        std::same_as<Executor, detail::awaiting_executor_t<Extract&, const std::string&>> &&
            std::same_as<Executor, detail::awaiting_executor_t<Generate&, Intent&, Entities&, const std::string&>>,
        "sluice::InferencePipeline: the awaitables of classify, extract and generate must have the same "
        "executor type");
    static_assert(std::constructible_from<TimerType, const Executor&>,
                  "sluice::Timer: the timer must be constructible from the executor of the models' coroutines");
    static_assert(DeadLetterSink<Sink>,
                  "sluice::DeadLetterSink: the sink must have put(const sluice::Query&, const sluice::StageResult<>&)");

    /// @throws std::invalid_argument naming the stage or option and the value, if a limit, the window or a timeout is
    /// out of range or a function is empty.
    InferencePipeline(const Executor& executor, Classify classify_fn, Extract extract_fn, Generate generate_fn,
                      StageLimits limits, Sink& dead_letters, BasicPipelineOptions<TimerType> options = {})
        : state_(std::make_shared<State>(executor, std::move(classify_fn), std::move(extract_fn),
                                         std::move(generate_fn), limits, dead_letters, std::move(options))) {}

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
        return process_one(state_, std::move(query));
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
    /// Terminal, partial, total. Nothing new starts, what runs is cancelled, every slot comes back, and then
    /// `operation_aborted` comes out. Queries that failed before are in the dead letters, cancelled ones are not.
    /// Results that are there already are discarded.
    ///
    /// @note Model functions that complete without suspending give nothing else a turn while they do, not even whoever
    /// would cancel the batch.
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
        return Stream(std::make_shared<Streaming<Range>>(state_, detail::Input<Range>(std::forward<Range>(queries))));
    }

    /// The stages, to look at or to change their limits.
    auto& classify() noexcept { return state_->classify; }
    auto& extract() noexcept { return state_->extract; }
    auto& generate() noexcept { return state_->generate; }

    /// How many queries a batch or a stream runs at once.
    std::ptrdiff_t window() const noexcept { return state_->window; }

private:
    // Shared with streams, which may have work to cancel when the pipeline has gone.
    struct State {
        State(const Executor& executor, Classify classify_fn, Extract extract_fn, Generate generate_fn,
              StageLimits limits, Sink& sink, BasicPipelineOptions<TimerType> options)
            : classify(executor, "classify", limits.classify, std::move(classify_fn),
                       observed(options.classify, options)),
              extract(executor, "extract", limits.extract, std::move(extract_fn), observed(options.extract, options)),
              generate(executor, "generate", limits.generate, std::move(generate_fn),
                       observed(options.generate, options)),
              dead_letters(&sink),
              observer(options.observer),
              window(options.window.value_or(sum(limits))) {
            if (window < 1) {
                throw std::invalid_argument("InferencePipeline: window must be at least 1, got " +
                                            std::to_string(window));
            }
        }

        // A stage's options, with the pipeline's observer if it has none of its own.
        static BasicStageOptions<TimerType> observed(BasicStageOptions<TimerType> stage,
                                                     const BasicPipelineOptions<TimerType>& options) {
            if (!stage.observer) {
                stage.observer = options.observer;
            }
            return stage;
        }

        // Cut off at the largest number there is.
        static std::ptrdiff_t sum(StageLimits limits) noexcept {
            constexpr auto most = std::numeric_limits<std::ptrdiff_t>::max();
            const auto add = [](std::ptrdiff_t a, std::ptrdiff_t b) { return a > most - b ? most : a + b; };
            return add(add(limits.classify, limits.extract), limits.generate);
        }

        Stage<Classify, TimerType> classify;
        Stage<Extract, TimerType> extract;
        Stage<Generate, TimerType> generate;
        Sink* dead_letters;
        Observer* observer;
        std::ptrdiff_t window;
    };

    static boost::asio::awaitable<Result, Executor> process_one(std::shared_ptr<State> state, Query query) {
        Result result(std::move(query));
        co_await process(detail::Pooled(), *state, result);
        co_return result;
    }

    // Runs result.query and fills in the rest.
    static boost::asio::awaitable<void, Executor> process(detail::Pooled, State& state, Result& result) {
        const std::string& text = result.query.text;
        result.stage_results.reserve(3);
        co_await run(state.classify, result, result.intent, text);
        if (result.stage_results.back().success) {
            co_await run(state.extract, result, result.entities, text);
            if (result.stage_results.back().success) {
                co_await run(state.generate, result, result.response, *result.intent, *result.entities, text);
                result.completed = result.stage_results.back().success;
            }
        }
        if (!result.completed) {
            co_await bury(detail::Pooled(), *state.dead_letters, result);
            if (state.observer) {
                state.observer->on_dead_letter(result.query, result.stage_results.back(), result.dead_letter_error);
            }
        }
    }

    // Runs result.query through one stage.
    template <class StageType, class T, class... Args>
    static auto run(StageType& stage, Result& result, std::optional<T>& data, Args&... args) {
        StageResult<>& stage_result = result.stage_results.emplace_back(result.query.id, stage.name());
        return StageType::fill(detail::Pooled(), stage, stage_result, data, args...);
    }

    struct Put {
        Sink& sink;
        const Query& query;
        const StageResult<>& reason;

        auto operator()() const { return sink.put(query, reason); }
    };

    static boost::asio::awaitable<void, Executor> bury(detail::Pooled, Sink& sink, Result& result) {
        const StageResult<>& reason = result.stage_results.back();
        try {
            if constexpr (Awaitable<decltype(sink.put(result.query, reason))>) {
                // As a coroutine of its own, which no cancellation reaches: a dead letter is put whole or not at all.
                Put put{sink, result.query, reason};
                co_await boost::asio::co_spawn(
                    co_await boost::asio::this_coro::executor, std::move(put),
                    boost::asio::bind_cancellation_slot(boost::asio::cancellation_slot(), boost::asio::deferred));
            } else {
                sink.put(result.query, reason);
            }
        } catch (...) {
            result.dead_letter_error = std::current_exception();
        }
    }

    // What the workers of one batch share. Each takes the next query when it is done with its last.
    template <class Range>
    struct Batch {
        State& state;
        detail::Input<Range> queries;
        std::vector<Result> results;
        std::ptrdiff_t workers = 0;

        void add_worker(TaskGroup& group) {
            ++workers;
            group.spawn(detail::Work<Batch>{*this, group});
        }

        // What the group runs first.
        boost::asio::awaitable<void, Executor> begin(TaskGroup& group) {
            add_worker(group);
            co_return;
        }

        boost::asio::awaitable<void, Executor> work(TaskGroup& group) {
            while (!group.cancelled()) {
                std::optional<Query> query = queries.pull();
                if (!query) {
                    co_return;
                }
                const std::size_t index = results.size();
                results.emplace_back();
                if (workers < state.window) {
                    add_worker(group);
                }
                Result result(std::move(*query));
                co_await process(detail::Pooled(), state, result);
                results[index] = std::move(result);
            }
        }
    };

    template <class Range>
    static boost::asio::awaitable<std::vector<Result>, Executor> process_batch(std::shared_ptr<State> state,
                                                                               detail::Input<Range> queries) {
        Batch<Range> batch{*state, std::move(queries), {}};
        batch.results.reserve(
            std::min(batch.queries.size_hint(), std::size_t{1} << 20));  // a huge range may be endless
        co_await with_task_group<Executor>(detail::Begin<Batch<Range>>{batch});
        co_return std::move(batch.results);
    }

    template <class Range>
    class Streaming final : public detail::StreamState<Result, Executor> {
    public:
        Streaming(std::shared_ptr<State> state, detail::Input<Range> queries)
            : detail::StreamState<Result, Executor>(state->window),
              state_(std::move(state)),
              queries_(std::move(queries)) {}

    private:
        std::optional<Query> pull() override { return queries_.pull(); }

        boost::asio::awaitable<void, Executor> process(Result& result) override {
            return InferencePipeline::process(detail::Pooled(), *state_, result);
        }

        std::shared_ptr<State> state_;
        detail::Input<Range> queries_;
    };

    std::shared_ptr<State> state_;
};

template <class Executor, class Classify, class Extract, class Generate, class Sink>
InferencePipeline(Executor, Classify, Extract, Generate, StageLimits, Sink&)
    -> InferencePipeline<Classify, Extract, Generate, Sink>;

template <class Executor, class Classify, class Extract, class Generate, class Sink, class TimerType>
InferencePipeline(Executor, Classify, Extract, Generate, StageLimits, Sink&, BasicPipelineOptions<TimerType>)
    -> InferencePipeline<Classify, Extract, Generate, Sink, TimerType>;

}  // namespace sluice
