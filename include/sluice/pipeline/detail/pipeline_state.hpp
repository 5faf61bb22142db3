// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/pipeline/inference_pipeline_options.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/require.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>

#include <cstddef>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <utility>

namespace sluice::detail {

// The state that an InferencePipeline shares with its operations and streams, which may outlive it. Runs one query
// through the stages.
template <class Classify, class Extract, class Generate, class Sink, class TimerType, class ResultType,
          class ExecutorType>
class PipelineState {
public:
    using Result = ResultType;
    using Executor = ExecutorType;

    PipelineState(const Executor& executor, Classify classify_fn, Extract extract_fn, Generate generate_fn,
                  StageLimits limits, Sink& sink, const BasicInferencePipelineOptions<TimerType>& options)
        : classify(executor, "classify", limits.classify, std::move(classify_fn), observed(options.classify, options)),
          extract(executor, "extract", limits.extract, std::move(extract_fn), observed(options.extract, options)),
          generate(executor, "generate", limits.generate, std::move(generate_fn), observed(options.generate, options)),
          dead_letters(&sink),
          observer(options.observer),
          window(options.window.value_or(sum(limits))) {
        require(window >= 1, "InferencePipeline", "window must be at least 1", window);
    }

    // Runs result.query and fills in the rest.
    boost::asio::awaitable<void, Executor> process(Result& result) { return run_stages(Pooled(), *this, result); }

    Stage<Classify, TimerType> classify;
    Stage<Extract, TimerType> extract;
    Stage<Generate, TimerType> generate;
    Sink* dead_letters;
    Observer* observer;
    std::ptrdiff_t window;

private:
    // Adds the pipeline's observer to the options of a stage that has none.
    static BasicStageOptions<TimerType> observed(BasicStageOptions<TimerType> stage,
                                                 const BasicInferencePipelineOptions<TimerType>& options) {
        if (!stage.observer) {
            stage.observer = options.observer;
        }
        return stage;
    }

    // Saturates.
    static std::ptrdiff_t sum(StageLimits limits) noexcept {
        constexpr auto most = std::numeric_limits<std::ptrdiff_t>::max();
        const auto add = [](std::ptrdiff_t a, std::ptrdiff_t b) { return a > most - b ? most : a + b; };
        return add(add(limits.classify, limits.extract), limits.generate);
    }

    static boost::asio::awaitable<void, Executor> run_stages(Pooled, PipelineState& state, Result& result) {
        const std::string& text = result.query.text;
        result.stage_results.reserve(3);
        co_await run_stage(state.classify, result, result.intent, text);
        if (result.stage_results.back().success) {
            co_await run_stage(state.extract, result, result.entities, text);
            if (result.stage_results.back().success) {
                co_await run_stage(state.generate, result, result.response, std::as_const(*result.intent),
                                   std::as_const(*result.entities), text);
                result.completed = result.stage_results.back().success;
            }
        }
        if (!result.completed) {
            const StageResult<>& reason = result.stage_results.back();
            // A dead letter that has begun is not cancelled.
            const bool throws = co_await boost::asio::this_coro::throw_if_cancelled();
            co_await boost::asio::this_coro::throw_if_cancelled(false);
            try {
                using Returned = decltype(state.dead_letters->put(result.query, reason));
                if constexpr (Awaitable<Returned>) {
                    // In a coroutine of its own, which no cancellation reaches.
                    Put<Returned> put{*state.dead_letters, result.query, reason};
                    co_await boost::asio::co_spawn(
                        co_await boost::asio::this_coro::executor, std::move(put),
                        boost::asio::bind_cancellation_slot(boost::asio::cancellation_slot(), boost::asio::deferred));
                } else {
                    state.dead_letters->put(result.query, reason);
                }
            } catch (...) {
                result.dead_letter_error = std::current_exception();
            }
            co_await boost::asio::this_coro::throw_if_cancelled(throws);
            if (state.observer) {
                state.observer->on_dead_letter(result.query, reason, result.dead_letter_error);
            }
        }
    }

    // Runs result.query through one stage.
    template <class StageType, class T, class... Args>
    static auto run_stage(StageType& stage, Result& result, std::optional<T>& data, Args&... args) {
        StageResult<>& stage_result = result.stage_results.emplace_back(result.query.id, stage.name());
        return StageType::template fill<Args...>(Pooled(), stage, stage_result, data, args...);
    }

    template <class Coroutine>
    struct Put {
        Sink& sink;
        const Query& query;
        const StageResult<>& reason;

        // Begins and ends on a fresh stack, since a sink may send the query through a pipeline with the same sink.
        boost::asio::awaitable<void, typename Coroutine::executor_type> operator()() const {
            co_await boost::asio::post(co_await boost::asio::this_coro::executor, boost::asio::deferred);
            std::exception_ptr error;
            try {
                static_cast<void>(co_await sink.put(query, reason));
            } catch (...) {
                error = std::current_exception();
            }
            co_await boost::asio::post(co_await boost::asio::this_coro::executor, boost::asio::deferred);
            if (error) {
                std::rethrow_exception(error);
            }
        }
    };
};

}  // namespace sluice::detail
