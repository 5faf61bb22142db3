// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/shared_string.hpp>
#include <sluice/stage_error.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <optional>
#include <ranges>
#include <string>
#include <utility>
#include <vector>

namespace sluice {

/// What travels through a pipeline.
struct Query {
    SharedString id;
    std::string text;
    std::chrono::system_clock::time_point timestamp;  ///< When the query came in; the pipeline only carries it.

    Query() = default;
    Query(SharedString query_id, std::string query_text,
          std::chrono::system_clock::time_point when = std::chrono::system_clock::now())
        : id(std::move(query_id)), text(std::move(query_text)), timestamp(when) {}
};

/// What process_batch() and process_stream() take queries from: an input range, such as a container, a view or a
/// generator, of what converts to Query. An lvalue is referred to, and an rvalue that is a container moved from.
template <class Range>
concept QueryRange = std::ranges::input_range<Range> && std::ranges::viewable_range<Range> &&
                     std::convertible_to<std::ranges::range_reference_t<Range>, Query>;

/// How one query fared in one stage: `StageResult<T>` with the data, `StageResult<>` without.
template <class T = void>
struct StageResult;

template <>
struct StageResult<void> {
    SharedString query_id;
    SharedString stage;
    std::chrono::nanoseconds latency{};     ///< Time inside a slot, all attempts together.
    std::chrono::nanoseconds queue_time{};  ///< Time spent waiting for a slot, all attempts together.
    int attempts = 0;                       ///< Attempts begun; the first is 1.
    bool success = false;
    bool late = false;  ///< Succeeded after its timeout: the model function was cancelled, or blocked its thread.
    StageError error;   ///< Why the last attempt failed; empty on success.

    StageResult() = default;
    StageResult(SharedString id, SharedString stage_name) : query_id(std::move(id)), stage(std::move(stage_name)) {}
};

template <class T>
struct StageResult : StageResult<> {
    std::optional<T> data;  ///< What the model function gave; empty on failure.

    using StageResult<>::StageResult;
};

/// How one query fared in a pipeline of three stages. What a stage gave is moved to `intent`, `entities` or `response`;
/// the rest of its StageResult stands in `stage_results`, in the order in which the stages ran.
template <class Intent, class Entities, class Response>
struct PipelineResult {
    Query query;
    std::optional<Intent> intent;
    std::optional<Entities> entities;
    std::optional<Response> response;
    std::vector<StageResult<>> stage_results;  ///< Only the last one can be a failure.
    bool completed = false;        ///< Whether all three stages succeeded; if not, the query is a dead letter.
    StageError dead_letter_error;  ///< What the dead-letter sink threw when it got this query; mostly empty.

    PipelineResult() = default;
    explicit PipelineResult(Query pipeline_query) : query(std::move(pipeline_query)) {}
};

/// One result of a stream, and where its query stood in the input.
template <class Result>
struct StreamItem {
    std::size_t index;
    Result result;

    StreamItem(std::size_t query_index, Result&& query_result) : index(query_index), result(std::move(query_result)) {}
};

}  // namespace sluice
