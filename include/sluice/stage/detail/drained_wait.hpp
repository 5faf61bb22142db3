// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/drain_scope.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/query_run.hpp>

#include <algorithm>
#include <chrono>

namespace sluice::detail {

// The wait of an attempt in the line of its endpoint, while a drain of its pipeline may begin. It gives up if the line
// is closed, by a pause or a breaker, for longer than the grace. The query is unfinished then.
class DrainedWait final : public Drainable {
public:
    // Before `entry` enters `line`.
    DrainedWait(QueryPlace& place, Line& line, LineEntry& entry) : place_(place), line_(line), entry_(entry) {
        place.drain->enter(*this);
        if (place.drain->draining()) {
            end_with_grace();
        }
    }

    // Whether the entry, which was refused since it would be late, would be so for the grace, and not for its query.
    bool gave_up() const noexcept { return entry_.expires == end_; }

private:
    void on_drain() override {
        end_with_grace();
        line_.refuse_if_late(entry_);
    }
    void on_grace_over() override {}  // the query is cancelled

    void end_with_grace() {
        end_ = std::min(end_, line_.after_grace(*place_.drain));
        entry_.expires = std::min(entry_.expires, end_);
        entry_.grace_end = end_ - std::chrono::nanoseconds(1);
    }

    QueryPlace& place_;
    Line& line_;
    LineEntry& entry_;

    // The first time, on the clock of the line, that is after the grace. A drain that shortens it does not move this to
    // a later time, even if more time passes between the readings of the two clocks.
    std::chrono::nanoseconds end_ = std::chrono::nanoseconds::max();
};

}  // namespace sluice::detail
