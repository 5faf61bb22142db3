// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"

#include <sluice/inference_pipeline.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <optional>
#include <ranges>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace properties {

// A pipeline of models that wait, fail, hang and misbehave, and what is known of its queries.
class Scene {
public:
    struct Failure : std::runtime_error {
        using std::runtime_error::runtime_error;
    };

    struct Sink {
        Scene& scene;

        asio::awaitable<void> put(const sluice::Query& query, const sluice::StageResult<>& why) {
            require(!why.success && why.error, "a dead letter without a reason");
            co_await pause(scene.choices);
            require(scene.dead.insert(query.id.str()).second, "a dead letter was put twice");
            if (scene.choices.one_in(10)) {
                throw Failure("sink");
            }
        }
    };

    explicit Scene(Choices& c)
        : choices(c),
          context([this](std::size_t n) { return choices.below(n); }),
          limits{1 + most_of(3), 1 + most_of(3), 1 + most_of(2)} {}

    auto pipeline() {
        using namespace std::chrono_literals;
        sluice::BasicStageOptions<VirtualTimer> stage(
            sluice::RetryPolicy(static_cast<int>(choices.below(3)), sluice::Backoff{.initial = 5ns, .cap = 20ns}));
        if (choices.one_in(3)) {
            stage.timeout = 15ns;
        }
        sluice::BasicPipelineOptions<VirtualTimer> options(stage);
        if (choices.one_in(2)) {
            options.window = 1 + most_of(6);
        }
        return sluice::InferencePipeline(
            context.get_executor(), [this](const std::string& text) { return model(0, limits.classify, text); },
            [this](const std::string& text) { return model(1, limits.extract, text); },
            [this](const std::string&, const std::string&, const std::string& text) {
                return model(2, limits.generate, text);
            },
            limits, sink, std::move(options));
    }

    // A lazy range of `n` queries that counts how many were taken.
    auto queries(std::size_t n) {
        return std::views::iota(std::size_t{0}, n) | std::views::transform([this](std::size_t i) {
                   ++taken;
                   return sluice::Query("q" + std::to_string(i), "text " + std::to_string(i));
               });
    }

    template <class Result>
    void check_result(const Result& result, std::size_t index) {
        require(result.query.id == "q" + std::to_string(index), "a result belongs to another query");
        if (result.completed) {
            require(result.response == "text " + std::to_string(index), "a response belongs to another query");
            require(result.stage_results.size() == 3, "a completed query skipped a stage");
            require(!dead.contains(result.query.id.str()), "a query is completed and a dead letter");
        } else {
            require(dead.contains(result.query.id.str()), "a failed query is no dead letter");
            require(!result.stage_results.back().success, "a failed query has no failed stage");
        }
    }

    template <class Pipeline>
    void check_slots(Pipeline& p) {
        for (const auto* semaphore : {&p.classify().semaphore(), &p.extract().semaphore(), &p.generate().semaphore()}) {
            require(semaphore->active() == 0, "a slot was lost");
            require(semaphore->waiting() == 0, "a waiter was lost");
        }
        require(running == std::array<std::ptrdiff_t, 3>{}, "a model is still running");
    }

    Choices& choices;
    InterleavingContext context;
    sluice::StageLimits limits;
    Sink sink{*this};
    std::set<std::string> dead;
    std::size_t taken = 0;
    std::array<std::ptrdiff_t, 3> running{};

private:
    std::ptrdiff_t most_of(std::size_t n) { return static_cast<std::ptrdiff_t>(choices.below(n)); }

    asio::awaitable<std::string> model(std::size_t stage, std::ptrdiff_t limit, std::string text) {
        const struct Running {
            std::ptrdiff_t& count;
            ~Running() { --count; }
        } counted{running[stage]};
        require(++running[stage] <= limit, "a limit was exceeded");
        co_await pause(choices);
        if (choices.one_in(8)) {
            throw Failure("model");
        }
        if (choices.one_in(20)) {
            throw boost::system::system_error(asio::error::operation_aborted);  // uncancelled: a failure
        }
        if (choices.one_in(20)) {
            VirtualTimer timer(co_await asio::this_coro::executor, std::chrono::nanoseconds(50));
            co_await timer.async_wait(asio::deferred);
        }
        co_return text;
    }
};

/// Batches, one of which may be cancelled, and single queries beside them.
inline void check_batch(Choices& choices) {
    Scene scene(choices);
    auto pipeline = scene.pipeline();
    Actors actors(scene.context.get_executor());
    const std::size_t n = choices.below(12);
    std::size_t ended = 0;

    actors.start([&]() -> asio::awaitable<void> {
        const auto results = co_await pipeline.process_batch(scene.queries(n));
        require(results.size() == n, "a batch has lost or made up a result");
        for (std::size_t i = 0; i < n; ++i) {
            scene.check_result(results[i], i);
        }
        ended = n;
    });
    actors.start([&]() -> asio::awaitable<void> {
        sluice::Query query("q1000", "text 1000");
        scene.check_result(co_await pipeline.process_one(query), 1000);
    });
    const bool cancels = choices.one_in(2);
    for (std::size_t steps = 0; steps < 3000 && scene.context.run_one(); ++steps) {
        if (cancels && choices.one_in(60)) {
            actors.cancel_one(choices);
        }
    }
    scene.context.run();

    actors.check();
    scene.check_slots(pipeline);
    require(cancels || ended == n, "a batch did not end");
    require(scene.taken <= n, "a query was taken twice");
}

/// A stream whose consumers are slow, are cancelled, and may leave early.
inline void check_stream(Choices& choices) {
    Scene scene(choices);
    auto pipeline = std::make_unique<decltype(scene.pipeline())>(scene.pipeline());
    Actors actors(scene.context.get_executor());
    const std::size_t n = choices.below(15);
    const std::size_t leaves_after = choices.one_in(2) ? choices.below(8) : n + 1;
    const bool closes = choices.one_in(2);
    const auto window = static_cast<std::size_t>(pipeline->window());
    std::set<std::size_t> seen;
    bool began = false;

    auto stream = std::make_unique<decltype(pipeline->process_stream(scene.queries(n)))>(
        pipeline->process_stream(scene.queries(n)));
    actors.start([&]() -> asio::awaitable<void> {
        began = true;
        bool at_end = false;
        while (seen.size() < leaves_after && !at_end) {
            co_await asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
            bool cancelled = false;
            try {
                auto item = co_await stream->next();
                at_end = !item;
                if (item) {
                    require(seen.insert(item->index).second, "a result was given twice");
                    scene.check_result(item->result, item->index);
                }
            } catch (const boost::system::system_error&) {
                cancelled = true;  // nothing is lost, so go on
            }
            // One more if the consumer was cancelled just as a result came.
            require(scene.taken <= seen.size() + window + (cancelled ? 1 : 0), "a slow consumer did not slow intake");
            co_await asio::this_coro::reset_cancellation_state(asio::disable_cancellation());
            co_await pause(choices);
        }
        if (at_end) {
            require(seen.size() == n, "a stream has lost a result");
            require(!co_await stream->next(), "the end of a stream is not for ever");
        }
        if (closes) {
            co_await stream->close();
            scene.check_slots(*pipeline);
        }
        stream.reset();
    });
    for (std::size_t steps = 0; steps < 3000 && scene.context.run_one(); ++steps) {
        if (choices.one_in(40)) {
            actors.cancel_one(choices);
        }
    }
    scene.context.run();

    actors.check();
    scene.check_slots(*pipeline);
    require(!began || leaves_after <= n || seen.size() == n, "a stream did not end");
}

}  // namespace properties
