// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>

namespace sluice {

/// Where queries go that a stage has given up: `put(query, stage_result)`, a plain function or one that gives an
/// `asio::awaitable`, with a `const Query&` and a `const StageResult<>&` that says where and why it failed.
///
/// It is called once per failed query, on the pipeline's executor. An awaitable `put` that has begun is not cancelled:
/// whoever cancels the pipeline waits for it, so it must not in turn wait for that pipeline. If it throws, the pipeline
/// goes on and the exception is kept in the query's result.
template <class Sink>
concept DeadLetterSink =
    requires(Sink& sink, const Query& query, const StageResult<>& stage_result) { sink.put(query, stage_result); };

}  // namespace sluice
