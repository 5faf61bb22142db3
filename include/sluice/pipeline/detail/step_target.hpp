// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/step_failed.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/detail/frame_pool.hpp>

#include <boost/asio/awaitable.hpp>

#include <cstdint>
#include <exception>
#include <optional>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// Where a step puts what its stage run makes: the value into a field of the record, and the result into that of the
// query. See StageCoroutine. `StageRef` is a reference, or a handle that keeps the stage alive.
template <class RunStateType, class Executor, bool throws, class Field, class StageRef, class T>
struct StepTarget {
    using Returned = std::conditional_t<throws, void, StageError>;
    using Data = Field;
    static constexpr bool is_step = true;
    static constexpr bool is_member = false;

    void begins() noexcept { --run.not_begun; }
    bool is_filled() const noexcept { return field.has_value(); }
    Returned skipped() noexcept {
        run.place.end_step();
        return Returned();
    }

    QueryRun<T>& query() noexcept { return clock; }
    const SharedString& query_id() const noexcept { return run.result.query.id; }
    StageResult<> result() const { return StageResult<>(query_id(), stage.name()); }
    std::optional<Field>& data(StageResult<>&) const noexcept { return field; }

    void aborted(StageResult<>& result) {
        run.abort();
        run.add(std::move(result));
    }
    void ended(StageResult<>& result) {
        const bool success = result.success;
        if (success) {
            run.place.end_step();
        }
        const std::int32_t index = run.add(std::move(result));
        failed = success ? -1 : index;
    }

    bool may_run_in_place() const noexcept { return !run.saver && !run.place.has_left(); }
    void begin_in_place() {
        run.in_place = result();
        run.place.in_place.result = &run.in_place;
    }

    bool saves() const noexcept { return failed < 0 && run.saver; }
    boost::asio::awaitable<void, Executor> save() { return save(Pooled(), *this); }

    // A save that fails ends the route, even if it fails after a step_or_error(): the stage has not failed.
    Returned returned(StageResult<>&) const {
        if (failed >= 0 && (throws || save_failed)) {
            throw StepFailed(failed);
        }
        if constexpr (!throws) {
            return failed < 0 ? StageError() : run.at(failed).error;
        }
    }

    RunStateType& run;
    std::optional<Field>& field;
    StageRef stage;
    std::int32_t failed = -1;  // the index of its failure, if it failed
    bool save_failed = false;
    QueryRun<T> clock{&run.place};

private:
    static boost::asio::awaitable<void, Executor> save(Pooled, StepTarget& target) {
        std::exception_ptr error;
        try {
            co_await target.run.saver->save();
        } catch (...) {
            error = std::current_exception();
        }
        if (error) {
            target.failed = target.run.add_failure("save", Reason::checkpoint, std::move(error));
            if (target.run.failed_save < 0) {
                target.run.failed_save = target.failed;
            }
            target.save_failed = true;
        }
    }
};

}  // namespace sluice::detail
