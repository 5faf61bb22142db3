// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "models.hpp"
#include "task.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/query.hpp>

#include <boost/asio/io_context.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <string>

namespace test {

template <class Pipeline>
Task<Rig<>::Result> start_one(asio::io_context& context, Pipeline& pipeline, const sluice::Query& query) {
    return Task<Rig<>::Result>(context.get_executor(), [&pipeline, query] { return pipeline.process_one(query); });
}

template <class Pipeline, class Range>
Task<Rig<>::Results> start_batch(asio::io_context& context, Pipeline& pipeline, Range& queries) {
    return Task<Rig<>::Results>(context.get_executor(), [&] { return pipeline.process_batch(queries); });
}

/// Whether all three stages succeeded.
inline bool is_complete(const Rig<>::Result& result) {
    const std::string& text = result.query.text;
    return result.completed && result.intent == "classify(" + text + ")" &&
           result.entities == "extract(" + text + ")" &&
           result.response == "generate(classify(" + text + "),extract(" + text + ")," + text + ")" &&
           result.stage_results.size() == 3 && !result.dead_letter_error;
}

/// Whether stage number `stage`, 0 to 2, was the last one and failed.
inline bool is_partial(const Rig<>::Result& result, int stage) {
    return !result.completed && result.intent.has_value() == (stage > 0) &&
           result.entities.has_value() == (stage > 1) && !result.response &&
           result.stage_results.size() == static_cast<std::size_t>(stage) + 1 && !result.stage_results.back().success &&
           result.stage_results.back().stage == stage_names[static_cast<std::size_t>(stage)];
}

/// A pipeline to destroy at some step, with its context; some queries fail once and one fails for good.
struct DestructibleRig {
    using Pipeline = Rig<SlowDeadLetters>::Pipeline;

    Rig<SlowDeadLetters> models;  // its context is not used
    std::unique_ptr<asio::io_context> context = std::make_unique<asio::io_context>(1);
    std::unique_ptr<Pipeline> pipeline;

    DestructibleRig() {
        using namespace std::chrono_literals;
        models.classify.failures["t0"] = 1;
        models.extract.failures["t1"] = 9;
        models.generate.failures["t2"] = 1;
        InferencePipelineOptions options = test::every_stage(StageOptions{.timeout = 1s, .retry = retries(1, 10ms)});
        options.window = 3;
        pipeline = std::make_unique<Pipeline>(timed(context->get_executor()), Endpoint{&models.classify},
                                              Endpoint{&models.extract}, Endpoint{&models.generate},
                                              sluice::StageLimits{2, 2, 1}, models.dead_letters, options);
    }
};

}  // namespace test
