// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/breaker_permit.hpp>
#include <sluice/stage/detail/breaker_state.hpp>
#include <sluice/stage/detail/rate_meter.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>

namespace sluice::detail {

class Line;

// Whoever waits in the line of an endpoint for a query.
struct LineWaiter : Waiter {
    LineWaiter() noexcept { is_line_waiter = true; }

    static constexpr std::chrono::nanoseconds never = std::chrono::nanoseconds::max();

    // When it will be late, on the clock of the line.
    std::chrono::nanoseconds expires = never;
};

// An attempt in the line of its endpoint. If it is destroyed without Line::end(), its call was cancelled.
struct LineEntry : LineWaiter {
    LineEntry() noexcept;  // both in line.hpp, where Line is complete
    ~LineEntry();

    LineEntry(const LineEntry&) = delete;
    LineEntry& operator=(const LineEntry&) = delete;

    // Before it enters: what it costs, by estimate, and what it does while the breaker is open.
    Cost cost;
    WhileOpen while_open = WhileOpen::hold_unless_exhausted;
    bool failed_probe = false;  // an attempt before did
    bool lacks_cost = false;    // fields that its estimate needs are empty
    std::uint16_t steps = 0;    // which its query has completed

    // When the grace of a drain is over, on the clock of the line. It may be granted a slot then, but no call could end
    // in time.
    std::chrono::nanoseconds grace_end = never;

    // When it has been granted a slot: when, and what was taken for it at that instant.
    std::chrono::nanoseconds granted{0};
    boost::intrusive_ptr<Line> line;
    Charge charge;
    BreakerPermit<BreakerState*> call;

    // Otherwise, if it was refused, why.
    enum class Refusal : std::uint8_t { none, too_costly, breaker_open, late, too_late_to_begin, full, waited };
    Refusal refusal = Refusal::none;

    // Whether it was refused for its time.
    bool is_late() const noexcept { return refusal == Refusal::late || refusal == Refusal::too_late_to_begin; }
};

// Of any waiter in the line of an endpoint: what it costs, when it will be late, how many steps its query has
// completed.
inline Cost cost_of(const Waiter& waiter) noexcept {
    return waiter.is_line_entry ? static_cast<const LineEntry&>(waiter).cost : Cost();
}

inline std::chrono::nanoseconds expires_of(const Waiter& waiter) noexcept {
    return waiter.is_line_waiter ? static_cast<const LineWaiter&>(waiter).expires : LineWaiter::never;
}

// When its call must have ended: the end of the grace of a drain is a nanosecond before it is late.
inline std::chrono::nanoseconds end_by_of(const Waiter& waiter) noexcept {
    return std::min(expires_of(waiter),
                    waiter.is_line_entry ? static_cast<const LineEntry&>(waiter).grace_end : LineWaiter::never);
}

inline int steps_of(const Waiter& waiter) noexcept {
    return waiter.is_line_entry ? static_cast<const LineEntry&>(waiter).steps : 0;
}

}  // namespace sluice::detail
