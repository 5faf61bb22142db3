// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <sluice/sync/timed_by.hpp>
#include <sluice/testing/virtual_timer.hpp>

namespace asio = boost::asio;

// Members have one timer.
void fallback_with_two_timers(asio::io_context& context) {
    const auto stage = valid::stage(context);
    const auto timed = sluice::timed_by<sluice::testing::VirtualTimer>(context.get_executor());
    const sluice::Stage virtual_stage(timed, "virtual", 1, &valid::model);
#ifdef MISTAKE
    static_cast<void>(sluice::Fallback("either", stage, virtual_stage));
#else
    static_cast<void>(sluice::Fallback("either", virtual_stage, virtual_stage));
#endif
}
