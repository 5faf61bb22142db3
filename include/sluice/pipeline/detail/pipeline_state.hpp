// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/pipeline/inference_pipeline_options.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/stage_state.hpp>
#include <sluice/stage/detail/window.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/intrusive_list.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/detail/spawn_uncancelled.hpp>
#include <sluice/sync/timed_by.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <optional>
#include <string>
#include <utility>

namespace sluice::detail {

// The state that an InferencePipeline shares with its operations and streams, which may outlive it. Runs one query
// through the stages.
template <class Classify, class Extract, class Generate, class Sink, class T, class ResultType, class ExecutorType>
class PipelineState {
public:
    using Result = ResultType;
    using Executor = ExecutorType;
    using Run = QueryRun<T>;

    PipelineState(const Executor& executor, Classify classify_fn, Extract extract_fn, Generate generate_fn,
                  StageLimits limits, Sink& sink, const InferencePipelineOptions& options)
        : classify(timed_by<T>(executor), "classify", limits.classify, std::move(classify_fn),
                   observed(options.classify, options)),
          extract(timed_by<T>(executor), "extract", limits.extract, std::move(extract_fn),
                  observed(options.extract, options)),
          generate(timed_by<T>(executor), "generate", limits.generate, std::move(generate_fn),
                   observed(options.generate, options)),
          max_in_backoff(require(options.max_in_backoff >= 0, "InferencePipeline",
                                 "max_in_backoff must not be negative", options.max_in_backoff)),
          dead_letters_(&sink),
          observer_(options.observer),
          window_(options.window) {
        if (window_) {
            require(*window_ >= 1, "InferencePipeline", "window must be at least 1", *window_);
        } else {
            follow(classify, followers_[0]);
            follow(extract, followers_[1]);
            follow(generate, followers_[2]);
        }
    }

    PipelineState(const PipelineState&) = delete;
    PipelineState& operator=(const PipelineState&) = delete;

    // Runs result.query and fills in the rest.
    boost::asio::awaitable<void, Executor> process(Result& result, Run& run) {
        return run_stages(Pooled(), *this, result, run);
    }

    void check_context(const Executor& executor) const {
        state_of(state_of(classify)->endpoint->line)->check_context([&]() -> const auto& { return executor; });
    }

    // The window follows the limits, if no other was given, as long as `window` lives.
    std::ptrdiff_t window() const noexcept {
        return window_ ? *window_ : sum(limit_of(classify), sum(limit_of(extract), limit_of(generate)));
    }
    void add_window(Window& window) noexcept { windows_.push_back(window); }

    Stage<Classify, T> classify;
    Stage<Extract, T> extract;
    Stage<Generate, T> generate;
    const std::ptrdiff_t max_in_backoff;

private:
    class Follower final : public LimitListener {
    public:
        explicit Follower(PipelineState& pipeline) noexcept : pipeline_(pipeline) {}

        void on_limit_changed() override {
            pipeline_.windows_.for_each([size = pipeline_.window()](Window& window) { window.resize(size); });
        }

    private:
        PipelineState& pipeline_;
    };

    static void follow(const auto& stage, Follower& follower) noexcept {
        state_of(stage)->endpoint->limit_listeners.push_back(follower);
    }

    static std::ptrdiff_t limit_of(const auto& stage) noexcept { return state_of(stage)->endpoint->line.limit(); }

    // Saturates.
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

    static boost::asio::awaitable<void, Executor> run_stages(Pooled, PipelineState& state, Result& result, Run& run) {
        const std::string& text = result.query.text;
        result.stage_results.reserve(3);
        co_await run_stage(state.classify, run, result, result.intent, text);
        if (result.stage_results.back().success) {
            co_await run_stage(state.extract, run, result, result.entities, text);
            if (result.stage_results.back().success) {
                co_await run_stage(state.generate, run, result, result.response, std::as_const(*result.intent),
                                   std::as_const(*result.entities), text);
                result.completed = result.stage_results.back().success;
            }
        }
        if (!result.completed) {
            result.failed = static_cast<std::int32_t>(result.stage_results.size()) - 1;
            // A dead letter that has begun is not cancelled.
            const bool throws = co_await boost::asio::this_coro::throw_if_cancelled();
            co_await boost::asio::this_coro::throw_if_cancelled(false);
            co_await bury(Pooled(), state, result);
            co_await boost::asio::this_coro::throw_if_cancelled(throws);
        }
    }

    // Runs result.query through one stage.
    template <class StageType, class Value, class... Args>
    static auto run_stage(StageType& stage, Run& run, Result& result, std::optional<Value>& data, Args&... args) {
        StageResult<>& stage_result = result.stage_results.emplace_back(result.query.id, stage.name());
        auto& state = *state_of(stage);
        return state.template run<Args...>(Pooled(), state, run, stage_result, data, args...);
    }

    // Hands a failed query to the dead-letter sink.
    static boost::asio::awaitable<void, Executor> bury(Pooled, PipelineState& state, Result& result) {
        Sink& sink = *state.dead_letters_;
        const StageResult<>& reason = *result.failure();
        try {
            using Returned = decltype(sink.put(result.query, reason));
            if constexpr (Awaitable<Returned>) {
                // In a coroutine of its own, which no cancellation reaches.
                Put<Returned> put{sink, result.query, reason};
                const Executor executor = co_await boost::asio::this_coro::executor;
                co_await spawn_uncancelled(executor, std::move(put));
            } else {
                sink.put(result.query, reason);
            }
        } catch (...) {
            result.dead_letter_error = std::current_exception();
        }
        if (state.observer_) {
            state.observer_->on_dead_letter(result.query, reason, result.dead_letter_error);
        }
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

    Sink* dead_letters_;
    Observer* observer_;
    std::optional<std::ptrdiff_t> window_;  // empty if it follows the limits
    IntrusiveList<Window> windows_;         // of the batches and streams that run
    std::array<Follower, 3> followers_{Follower(*this), Follower(*this), Follower(*this)};
};

}  // namespace sluice::detail
