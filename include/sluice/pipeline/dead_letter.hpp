// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>
#include <sluice/result.hpp>

#include <type_traits>

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

template <class Sink, class Argument>
concept PutsWith = requires(Sink& sink, const Query& query, const StageResult<>& stage_result,
                            const Argument& argument) { sink.put(query, stage_result, argument); };

// A sink of a pipeline with a record whose put() has a third parameter: see Pipeline.
template <class Sink, class Record>
concept RecordSink = PutsWith<Sink, Record> || PutsWith<Sink, RecordResult<Record>>;

template <class Sink, class Record>
concept SinkOf = DeadLetterSink<Sink> || RecordSink<Sink, Record>;

// Converts to whatever a parameter needs.
struct AnyLvalue {
    template <class T>
    operator T&() const;
};
struct AnyRvalue {
    template <class T>
    operator T&&() const;
};

// A put() whose third parameter is something else is a mistake, and not a reason to call the one without it. (If there
// is one put() alone, that parameter has a default.)
template <class Sink>
concept PutsSomethingElse = !requires { &Sink::put; } && (PutsWith<Sink, AnyLvalue> || PutsWith<Sink, AnyRvalue>);

// Has two members `save` if the sink has one, or several, or a template.
struct NamedSave {
    int save;
};
template <class Sink>
struct SaveTwice : Sink, NamedSave {
protected:
    ~SaveTwice() = default;
};

// A member `save` that cannot be called is a mistake, and not a sink that saves nothing.
template <class Sink>
concept HasSave = requires {
    &Sink::save;
} || (std::is_class_v<Sink> && !std::is_final_v<Sink> && !requires { &SaveTwice<std::remove_cv_t<Sink>>::save; });

}  // namespace detail

}  // namespace sluice
