// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// Members are stages, not models.
void fallback_of_a_model(asio::io_context& context) {
    const auto stage = valid::stage(context);
#ifdef MISTAKE
    static_cast<void>(sluice::Fallback("either", stage, &valid::model));
#else
    static_cast<void>(sluice::Fallback("either", stage, stage));
#endif
}
