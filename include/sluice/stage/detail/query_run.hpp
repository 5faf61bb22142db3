// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/window.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/slot.hpp>

#include <boost/asio/execution_context.hpp>

#include <utility>

namespace sluice::detail {

// What the stage runs of one query share: its place in a window, and the clock.
//
// Reading the clock takes a good part of the time of a stage run. So the reading at the end of one attempt also serves
// as the start of the next stage run, if no code but the library's ran in between.
template <class T>
class QueryRun {
public:
    QueryRun() noexcept : window(nullptr) {}
    QueryRun(Window* its_window, Slot its_place) noexcept : window(its_window), place(std::move(its_place)) {}

    QueryRun(const QueryRun&) = delete;
    QueryRun& operator=(const QueryRun&) = delete;

    // The time now, which the last reading is if it has not expired.
    typename T::time_point now(boost::asio::execution_context& context) {
        return std::exchange(fresh_, false) ? last_reading_ : detail::now<T>(context);
    }

    typename T::time_point read_clock(boost::asio::execution_context& context) {
        last_reading_ = detail::now<T>(context);
        fresh_ = true;
        return last_reading_;
    }

    // Other code has run since.
    void expire_reading() noexcept { fresh_ = false; }

    Window* const window;  // null if there is none
    Slot place;            // in the window

private:
    typename T::time_point last_reading_{};
    bool fresh_ = false;
};

}  // namespace sluice::detail
