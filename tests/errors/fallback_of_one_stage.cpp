// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// A fallback needs somewhere to fall back to.
void fallback_of_one_stage(asio::io_context& context) {
    const auto stage = valid::stage(context);
#ifdef MISTAKE
    static_cast<void>(sluice::Fallback("either", stage));
#else
    static_cast<void>(sluice::Fallback("either", stage, stage));
#endif
}
