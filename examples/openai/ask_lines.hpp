// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "protocol.hpp"

#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/verdict.hpp>

#include <boost/describe/class.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value_from.hpp>

#include <cstdint>
#include <exception>
#include <optional>
#include <string>
#include <utility>

namespace openai {

/// A line of the file of answers.
struct AnswerLine {
    std::string id;
    std::string answer;
    std::string finish_reason;
    int attempts = 0;
    std::optional<std::int64_t> input_tokens;
    std::optional<std::int64_t> output_tokens;
};
BOOST_DESCRIBE_STRUCT(AnswerLine, (), (id, answer, finish_reason, attempts, input_tokens, output_tokens))

/// A line of the file of prompts that failed. That is a file of prompts as well.
struct FailedLine {
    std::string id;
    std::string prompt;
    std::string stage;
    std::string reason;
    std::string error;
    std::optional<int> status;  ///< That of HTTP, if there was one.
    int attempts = 0;
};
BOOST_DESCRIBE_STRUCT(FailedLine, (), (id, prompt, stage, reason, error, status, attempts))

inline std::string answer_line(const sluice::Query& query, const sluice::StageResult<>& run, ChatAnswer answer) {
    AnswerLine line{query.id, std::move(answer.text), std::move(answer.finish_reason), run.attempts, {}, {}};
    if (answer.usage) {
        line.input_tokens = answer.usage->input_tokens;
        line.output_tokens = answer.usage->output_tokens;
    }
    return boost::json::serialize(boost::json::value_from(line));
}

/// The ModelError that a stage run ended with, if it was one.
inline std::optional<sluice::ModelError> model_error_of(const sluice::StageResult<>& failure) {
    if (!failure.error) return std::nullopt;
    try {
        std::rethrow_exception(failure.error.exception());
    } catch (const sluice::ModelError& error) {
        return error;
    } catch (...) {
        return std::nullopt;
    }
}

inline std::string failed_line(const sluice::Query& query, const sluice::StageResult<>& failure) {
    const auto error = model_error_of(failure);
    const FailedLine line{query.id,
                          query.text,
                          failure.stage,
                          std::string(to_string(failure.reason)),
                          failure.error.message(),
                          error && error->status() != 0 ? std::optional(error->status()) : std::nullopt,
                          failure.attempts};
    return boost::json::serialize(boost::json::value_from(line));
}

}  // namespace openai
