// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/query_job.hpp>
#include <sluice/pipeline/inference_pipeline_options.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/stage_run.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/timed_by.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>

#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// The route of an InferencePipeline: classify, extract, generate.
template <class Classify, class Extract, class Generate, class T, class ResultType, class ExecutorType>
class InferenceRoute {
public:
    using Job = QueryJob<ResultType>;
    using Executor = ExecutorType;
    static constexpr bool drains = false;

    InferenceRoute(const Executor& executor, Classify classify_fn, Extract extract_fn, Generate generate_fn,
                   StageLimits limits, const InferencePipelineOptions& options)
        : classify(timed_by<T>(executor), "classify", limits.classify, std::move(classify_fn),
                   observed(options.classify, options)),
          extract(timed_by<T>(executor), "extract", limits.extract, std::move(extract_fn),
                  observed(options.extract, options)),
          generate(timed_by<T>(executor), "generate", limits.generate, std::move(generate_fn),
                   observed(options.generate, options)) {}

    template <class State>
    boost::asio::awaitable<void, Executor> run(State& state, Job& job) {
        return Process<State>::run(Pooled(), state, *this, job);
    }

    // run() has done everything.
    static bool has_ended(Job&, const std::exception_ptr& error) noexcept { return !error; }
    template <class State>
    boost::asio::awaitable<void, Executor> end_otherwise(State&, Job&, const std::exception_ptr& error) {
        std::rethrow_exception(error);
    }

    void check_context(const Executor& executor) const {
        state_of(state_of(classify)->endpoint->line)->check_context([&]() -> const auto& { return executor; });
    }

    // The sum of the limits. Saturates.
    std::ptrdiff_t slots() const noexcept {
        return sum(limit_of(classify), sum(limit_of(extract), limit_of(generate)));
    }

    // `listener` is told when one of the limits changes.
    template <class Listener>
    void listen(Listener (&listeners)[3]) const noexcept {
        state_of(classify)->endpoint->limit_listeners.push_back(listeners[0]);
        state_of(extract)->endpoint->limit_listeners.push_back(listeners[1]);
        state_of(generate)->endpoint->limit_listeners.push_back(listeners[2]);
    }

    Stage<Classify, T> classify;
    Stage<Extract, T> extract;
    Stage<Generate, T> generate;

private:
    static std::ptrdiff_t limit_of(const auto& stage) noexcept { return state_of(stage)->endpoint->line.limit(); }

    static std::ptrdiff_t sum(std::ptrdiff_t a, std::ptrdiff_t b) noexcept {
        constexpr auto most = std::numeric_limits<std::ptrdiff_t>::max();
        return a > most - b ? most : a + b;
    }

    // Adds the pipeline's observer to the options of a stage that has none.
    static StageOptions observed(StageOptions stage, const InferencePipelineOptions& options) noexcept {
        if (!stage.observer) {
            stage.observer = options.observer;
        }
        return stage;
    }

    // A class, since g++ objects to the frame of a function template with an argument of an unnamed namespace.
    template <class State>
    struct Process {
        static boost::asio::awaitable<void, Executor> run(Pooled, State& state, InferenceRoute& route, Job& job) {
            auto& result = job.result;
            const std::string& text = result.query.text;
            QueryRun<T> run(&job);
            result.stage_results.reserve(3);
            co_await run_stage(route.classify, run, result, result.intent, text);
            if (result.stage_results.back().success) {
                co_await run_stage(route.extract, run, result, result.entities, text);
                if (result.stage_results.back().success) {
                    co_await run_stage(route.generate, run, result, result.response, std::as_const(*result.intent),
                                       std::as_const(*result.entities), text);
                    result.completed = result.stage_results.back().success;
                }
            }
            if (!result.completed) {
                co_await even_if_cancelled(bury(Pooled(), state, result));
            }
        }

        // A coroutine of its own keeps that of the others small.
        static boost::asio::awaitable<void, Executor> bury(Pooled, State& state, ResultType& result) {
            result.failed = static_cast<std::int32_t>(result.stage_results.size()) - 1;
            const bool throws = co_await boost::asio::this_coro::throw_if_cancelled();
            co_await boost::asio::this_coro::throw_if_cancelled(false);
            co_await State::bury(Pooled(), state, result);
            co_await boost::asio::this_coro::throw_if_cancelled(throws);
        }
    };

    // The result of a stage run is in the result of its query, and its value too.
    template <class Value>
    struct Target {
        using Returned = void;
        using Data = Value;
        static constexpr bool is_step = false;
        static constexpr bool is_member = false;

        QueryRun<T>& query() const noexcept { return run; }
        StageResult<>& result() const noexcept { return *run.place->in_place.result; }
        std::optional<Value>& data(StageResult<>&) const noexcept { return field; }
        static void begins() noexcept {}
        static bool may_run_in_place() noexcept { return true; }
        static void begin_in_place() noexcept {}
        static void aborted(StageResult<>&) noexcept {}
        static void ended(StageResult<>&) noexcept {}
        static void returned(StageResult<>&) noexcept {}

        QueryRun<T>& run;
        std::optional<Value>& field;
    };

    // Runs result.query through one stage.
    template <class StageType, class Value, class... Args>
    static auto run_stage(StageType& stage, QueryRun<T>& run, ResultType& result, std::optional<Value>& field,
                          Args&... args) {
        run.place->in_place.result = &result.stage_results.emplace_back(result.query.id, stage.name());
        auto& state = *state_of(stage);
        using State = std::remove_reference_t<decltype(state)>;
        return run_in<State, Target<Value>, Args&...>(state, {run, field}, args...);
    }
};

}  // namespace sluice::detail
