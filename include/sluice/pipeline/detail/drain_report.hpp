// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/pipeline_numbers.hpp>
#include <sluice/result.hpp>

#include <utility>
#include <vector>

namespace sluice::detail {

template <class Result>
inline constexpr bool has_record = false;
template <class Record>
inline constexpr bool has_record<RecordResult<Record>> = true;

template <class Result>
struct RecordOf;
template <class Record>
struct RecordOf<RecordResult<Record>> {
    using Type = Record;
};

// Returns the DrainReport of a drain that found `counts` and left `unfinished`.
template <class Report, class Result>
Report report_of(const QueryEnds& counts, std::vector<Result> unfinished) {
    Report report;
    report.completed = counts.completed;
    report.dead = counts.dead;
    report.cancelled = counts.cancelled;
    report.unfinished = counts.unfinished;
    for (Result& result : unfinished) {
        report.checkpoints.emplace_back(std::move(result));
    }
    return report;
}

}  // namespace sluice::detail
