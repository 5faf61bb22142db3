// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/step_failed.hpp>
#include <sluice/reason.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/task_group.hpp>

#include <boost/asio/awaitable.hpp>

#include <exception>
#include <utility>

namespace sluice::detail {

// The coroutines of one Run::all().
template <class RunStateType, class Executor>
class SideBySide {
public:
    template <class... Steps>
    static boost::asio::awaitable<void, Executor> run(Pooled, RunStateType& run, Steps... steps) {
        --run.not_begun;
        SideBySide all(run, static_cast<int>(sizeof...(Steps)));
        const auto body = [&](TaskGroup& group) { return spawn_all(group, all, steps...); };
        std::exception_ptr cancelled;
        try {
            co_await with_task_group<Executor>(body);
        } catch (...) {
            cancelled = std::current_exception();
        }
        run.place.end_side_by_side(all.remaining_);
        if (cancelled) {
            run.abort();  // some have not even begun, perhaps
            std::rethrow_exception(cancelled);
        }
        if (all.first_) {
            std::rethrow_exception(all.first_);
        }
    }

private:
    SideBySide(RunStateType& run, int count) noexcept : run_(run), remaining_(count) {
        run.place.begin_side_by_side(count);
    }

    template <class... Steps>
    static boost::asio::awaitable<void, Executor> spawn_all(TaskGroup& group, SideBySide& all, Steps&... steps) {
        (group.spawn([&] { return run_one(Pooled(), all, steps); }), ...);
        co_return;
    }

    // Keeps a failure from the others. The first is thrown when all have ended; the results of the query have the rest.
    template <class Step>
    static boost::asio::awaitable<void, Executor> run_one(Pooled, SideBySide& all, Step& step) {
        try {
            static_cast<void>(co_await std::move(step));
        } catch (const StepFailed&) {
            all.keep_first(std::current_exception());
        } catch (...) {
            const std::exception_ptr error = std::current_exception();
            if (!all.keep_first(error) && !is_cancellation(error)) {
                all.run_.add_failure("route", Reason::route, error);
            }
        }
        if (--all.remaining_ != 0) {
            all.run_.place.end_one();
        }
    }

    bool keep_first(const std::exception_ptr& error) noexcept {
        if (first_) {
            return false;
        }
        first_ = error;
        return true;
    }

    RunStateType& run_;
    std::exception_ptr first_;
    int remaining_;  // that have not ended
};

}  // namespace sluice::detail
