// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// Fallbacks are not nested.
void fallback_of_a_fallback(asio::io_context& context) {
    const auto stage = valid::stage(context);
    const sluice::Fallback inner("inner", stage, stage);
#ifdef MISTAKE
    static_cast<void>(sluice::Fallback("either", inner, stage));
#else
    static_cast<void>(sluice::Fallback("either", stage, stage));
#endif
}
