// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>
#include <sluice/result.hpp>

namespace sluice {

/// A sink for queries that failed for good. It has a member `put(query, stage_result)`, which takes a `const Query&`
/// and a `const StageResult<>&` that says where and why the query failed. It returns an `asio::awaitable`, or is a
/// plain function.
///
/// `put` is called once for each failed query, on the pipeline's executor. An awaitable one that has begun is not
/// cancelled: cancelling the pipeline waits for it, so it must not wait for that pipeline in turn. If it throws, the
/// pipeline continues, and the exception is in the query's result.
template <class Sink>
concept DeadLetterSink =
    requires(Sink& sink, const Query& query, const StageResult<>& stage_result) { sink.put(query, stage_result); };

}  // namespace sluice
