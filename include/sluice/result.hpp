// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage_error.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace sluice {

/// The outcome of one query in one stage: `StageResult<T>` with the value, `StageResult<>` without.
template <class T = void>
struct StageResult;

template <>
struct StageResult<void> {
    SharedString query_id;
    SharedString stage;
    std::chrono::nanoseconds latency{};     ///< Time with a slot, over all attempts.
    std::chrono::nanoseconds queue_time{};  ///< Time waiting for a slot, over all attempts.
    int attempts = 0;                       ///< Attempts begun, including the first.
    bool success = false;
    bool late = false;  ///< Succeeded after its timeout: the model function was cancelled, or blocked its thread.
    Reason reason = Reason::none;   ///< Why the stage run failed, for programs; `none` on success.
    bool retries_withheld = false;  ///< It failed since the endpoint's RetryBudget had no retry left for it.
    StageError error;               ///< Why the stage run failed; empty on success.

    StageResult() = default;
    StageResult(SharedString id, SharedString stage_name) : query_id(std::move(id)), stage(std::move(stage_name)) {}
};

template <class T>
struct StageResult : StageResult<> {
    std::optional<T> data;  ///< The value that the model function returned; empty on failure.

    using StageResult<>::StageResult;
};

/// The part of the outcome of one query in a pipeline that does not depend on the pipeline's values. The query is
/// `completed`, or `unfinished`, or a dead letter, whose failure() is not null; one that was cancelled has no result.
struct QueryResult {
    Query query;
    std::vector<StageResult<>> stage_results;  ///< Without their values, in the order in which the stage runs ended.
    bool completed = false;    ///< Whether the route returned; of an InferencePipeline, whether each stage succeeded.
    bool unfinished = false;   ///< Whether a drain cut the query short: not completed, and no dead letter.
    std::int32_t failed = -1;  ///< The index in `stage_results` of the one that made it a dead letter; -1 if none did.
    StageError dead_letter_error;  ///< What the dead-letter sink threw for this query; normally empty.

    QueryResult() = default;
    explicit QueryResult(Query its_query) : query(std::move(its_query)) {}

    /// The result of the stage that made the query a dead letter, or null if none did.
    const StageResult<>* failure() const noexcept {
        return failed < 0 ? nullptr : &stage_results[static_cast<std::size_t>(failed)];
    }
};

/// The outcome of one query in an InferencePipeline, with the values of its three stages.
template <class Intent, class Entities, class Response>
struct PipelineResult : QueryResult {
    std::optional<Intent> intent;
    std::optional<Entities> entities;
    std::optional<Response> response;

    using QueryResult::QueryResult;
};

/// The outcome of one query in a Pipeline, with the record of what its steps have filled in.
template <class Record>
struct RecordResult : QueryResult {
    Record record{};

    using QueryResult::QueryResult;
};

/// One result of a ResultStream, and the position of its query in the input, from 0.
template <class Result>
struct StreamItem {
    std::size_t index;
    Result result;

    StreamItem(std::size_t query_index, Result&& query_result) : index(query_index), result(std::move(query_result)) {}
};

}  // namespace sluice
