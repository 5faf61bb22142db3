// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/detail/deadline.hpp>
#include <sluice/stage/detail/drain_scope.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/line_entry.hpp>
#include <sluice/stage/detail/resumption_hook.hpp>
#include <sluice/stage/detail/window.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/condition_variable.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/wait_canceller.hpp>
#include <sluice/sync/slot.hpp>

#include <boost/asio/execution_context.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <algorithm>
#include <cstdint>
#include <exception>
#include <limits>
#include <memory>
#include <utility>

namespace sluice::detail {

// What a StageRun keeps outside its operation while it runs in place, since a coroutine has an operation for each
// stage. One stage run of a query runs in place at a time.
struct InPlaceRun {
    InPlaceRun() = default;
    ~InPlaceRun() {  // another coroutine than the one in whose frame this lies may wait, and be destroyed after it
        if (waiter.is_linked()) {
            line->drop(waiter);
        }
    }

    // Does a part of the attempt. Returns false if that throws.
    bool attempt(const auto& part) noexcept {
        try {
            part();
            return true;
        } catch (const ModelError&) {
            error = std::current_exception();
            error_is_plain = false;
        } catch (...) {
            error = std::current_exception();
            error_is_plain = !may_be_multiple_exceptions();
        }
        return false;
    }

    InPlaceRun(const InPlaceRun&) = delete;
    InPlaceRun& operator=(const InPlaceRun&) = delete;

    Slot slot;
    StageResult<>* result = nullptr;
    std::exception_ptr error;         // of the attempt
    void* awaiting = nullptr;         // the frame of the coroutine, while it waits for the slot
    ResumptionHook hook;              // of the coroutine, while it awaits the model
    boost::intrusive_ptr<Line> line;  // which it waits for
    LineWaiter waiter;
    std::uint32_t ticket = 0;     // of its place in the line
    bool error_is_plain = false;  // and contains no ModelError
    bool taken = false;
    bool was_cancelled = false;  // the coroutine, before
};

// The place of a query in a window. The query leaves it while all its stage runs are in a backoff; there are several
// only if it runs some side by side.
//
// While its step waits in place for a slot, it is told of a drain of its pipeline. If a pause holds the line for longer
// than the grace, the wait gives up, and the query is unfinished.
class QueryPlace : private Drainable {
public:
    QueryPlace() noexcept : window(nullptr) {}
    QueryPlace(Window* its_window, Slot its_place) noexcept : window(its_window), place(std::move(its_place)) {}

    QueryPlace(const QueryPlace&) = delete;
    QueryPlace& operator=(const QueryPlace&) = delete;

    // A stage run begins a backoff. Afterwards it calls end_backoff(), and then, if has_left(), one waits in line for a
    // place and calls come_back() with it, and the others wait for that one.
    void begin_backoff() noexcept {
        if (--active_ == 0) {
            leave();
        }
    }
    void end_backoff() noexcept { ++active_; }
    bool has_left() const noexcept { return is_away_; }
    void come_back(Slot new_place) {
        place = std::move(new_place);
        is_away_ = false;
    }

    // A query that is late has none: what permits it to be without one stands for it from now on.
    void stay_away(Slot permit) noexcept {
        place = std::move(permit);
        is_away_ = static_cast<bool>(place);
    }

    // Instead of one stage run there are `count` side by side. Each but the last calls end_one() when it ends. When no
    // further one will begin, end_side_by_side() is told how many have not.
    void begin_side_by_side(int count) noexcept { active_ += count - 1; }
    void end_one() noexcept { begin_backoff(); }  // the query leaves its place if the others are in a backoff
    void end_side_by_side(int not_begun) noexcept { active_ -= std::max(0, not_begun - 1); }

    // A stage run has begun to wait in place, and ends that.
    void begin_wait() {
        if (drain) {
            drain->enter(*this);
            if (drain->draining()) {
                on_drain();
            }
        }
    }
    WaitOutcome end_wait() noexcept {
        unlink();
        in_place.line.reset();
        gave_up = gave_up || in_place.waiter.outcome == WaitOutcome::refused;
        return in_place.waiter.outcome;
    }

    // A step has been completed, or skipped since it was completed before.
    void end_step() noexcept {
        if (steps_ != std::numeric_limits<std::uint16_t>::max()) {
            ++steps_;
        }
    }

    // Steps that it has completed, or skipped since their field is filled.
    std::uint16_t steps() const noexcept { return steps_; }

    // The small ones come first, in what the base leaves free.
    bool gave_up : 1 = false;     // a backoff or a wait has, because of a drain
    bool is_in_line : 1 = false;  // a stage run waits for a place

private:
    bool is_away_ : 1 = false;
    std::uint16_t steps_ = 0;  // saturates
    int active_ = 1;           // stage runs that are in no backoff

public:
    Window* const window;  // null if there is none
    Slot place;            // in the window; or what permits the query to be without one
    InPlaceRun in_place;
    WaitCanceller* canceller = nullptr;              // of the waits of the worker that runs the query
    DrainScope* drain = nullptr;                     // of its pipeline, if that can be drained
    const Drainable* operation = nullptr;            // that it belongs to, then
    Observer* observer = nullptr;                    // of its pipeline
    std::unique_ptr<Deadline> deadline;              // null if it has no timeout
    boost::intrusive_ptr<ConditionVariable> others;  // wait for the stage run that waits for a place

protected:
    ~QueryPlace() = default;

private:
    void on_drain() override {
        Line& line = *in_place.line;
        if (!line.context_gone()) {
            in_place.waiter.expires = std::min(in_place.waiter.expires, line.after_grace(*drain));
            line.refuse_if_late(in_place.waiter);
        }
    }
    void on_grace_over() override {}  // the query is cancelled

    void leave() noexcept {
        if (window && place && !is_away_) {
            if (Slot permit = window->leave(place)) {
                stay_away(std::move(permit));
            }
        }
    }
};

// The state that the stage runs of one query share: its place, and the clock.
//
// Reading the clock takes a good part of the time of a stage run. So the reading at the end of one attempt also serves
// as the start of the next stage run, if no code but the library's ran in between.
template <class T>
class QueryRun {
public:
    explicit QueryRun(QueryPlace* its_place) noexcept
        : place(its_place), observer(its_place ? its_place->observer : nullptr) {}

    // The time now, which the last reading is if it has not expired.
    typename T::time_point now(boost::asio::execution_context& context) {
        return std::exchange(fresh_, false) ? last_reading_ : last_reading_ = detail::now<T>(context);
    }

    typename T::time_point read_clock(boost::asio::execution_context& context) {
        last_reading_ = detail::now<T>(context);
        fresh_ = true;
        return last_reading_;
    }

    typename T::time_point last_reading() const noexcept { return last_reading_; }

    // Null if the query has no timeout.
    const DeadlineOf<T>* deadline() const noexcept { return place ? DeadlineOf<T>::of(place->deadline) : nullptr; }

    // Which the query has completed.
    std::uint16_t steps() const noexcept { return place ? place->steps() : std::uint16_t{0}; }

    // Other code has run since.
    void expire_reading() noexcept { fresh_ = false; }

    QueryPlace* const place;   // null without one
    Observer* const observer;  // of a stage that has none of its own

private:
    typename T::time_point last_reading_{};
    bool fresh_ = false;
};

}  // namespace sluice::detail
