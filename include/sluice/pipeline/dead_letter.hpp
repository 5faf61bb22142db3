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
///
/// The sink of a Pipeline may take the record too, and may have a member `save` that stores it; see Pipeline.
template <class Sink>
concept DeadLetterSink =
    requires(Sink& sink, const Query& query, const StageResult<>& stage_result) { sink.put(query, stage_result); };

namespace detail {

template <class Sink, class Record>
concept SavingSink = requires(Sink& sink, const Query& query, const Record& record) { sink.save(query, record); };

// A sink of a pipeline with a record: see Pipeline.
template <class Sink, class Record>
concept SinkOf = DeadLetterSink<Sink> ||
                 requires(Sink& sink, const Query& query, const StageResult<>& stage_result,
                          const RecordResult<Record>& result) { sink.put(query, stage_result, result.record); } ||
                 requires(Sink& sink, const Query& query, const StageResult<>& stage_result,
                          const RecordResult<Record>& result) { sink.put(query, stage_result, result); };

// A member `save` that cannot be called is a mistake, and not a sink that saves nothing.
template <class Sink>
concept HasSave = requires { &Sink::save; };

}  // namespace detail

}  // namespace sluice
