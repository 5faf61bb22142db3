// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/record_saver.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/detail/query_run.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <utility>

namespace sluice::detail {

// The state that a Run shares with its steps.
template <class Record, class Executor>
struct RunState {
    RunState(QueryPlace& its_place, RecordResult<Record>& its_result) noexcept : place(its_place), result(its_result) {}

    RunState(const RunState&) = delete;
    RunState& operator=(const RunState&) = delete;

    // Adds the result of a stage run, and returns its index.
    std::int32_t add(StageResult<>&& stage_result) {
        result.stage_results.push_back(std::move(stage_result));
        return static_cast<std::int32_t>(result.stage_results.size()) - 1;
    }

    StageResult<>& at(std::int32_t index) noexcept { return result.stage_results[static_cast<std::size_t>(index)]; }

    // The same for a failure of no stage.
    std::int32_t add_failure(const char* name, Reason reason, std::exception_ptr error) {
        StageResult<> failure(result.query.id, SharedString(name));
        failure.reason = reason;
        failure.error = std::move(error);
        return add(std::move(failure));
    }

    // A step was cancelled, or an all().
    void abort() noexcept {
        first_aborted = std::min(first_aborted, static_cast<std::int32_t>(result.stage_results.size()));
    }

    // Whether one was, or was dropped before it began, as one is that a cancelled route awaits.
    bool lacks_a_step() const noexcept { return first_aborted != none_aborted || not_begun != 0; }

    static constexpr auto none_aborted = std::numeric_limits<std::int32_t>::max();

    QueryPlace& place;
    RecordResult<Record>& result;
    StageResult<> in_place;                     // of the step that runs in place
    Saver<Executor>* saver = nullptr;           // if the sink saves
    std::int32_t failed_save = -1;              // the index of the failure of the first that failed
    std::int32_t first_aborted = none_aborted;  // the results from this index on came after a step was cancelled
    int not_begun = 0;                          // steps that were made and have not begun
};

}  // namespace sluice::detail
