// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// A fallback has one predicate.
void fallback_accepts_twice(asio::io_context& context) {
    const auto stage = valid::stage(context);
    const auto positive = sluice::Fallback("either", stage, stage).accept([](int value) { return value > 0; });
#ifdef MISTAKE
    static_cast<void>(positive.accept([](int value) { return value < 9; }));
#else
    static_cast<void>(positive.run("1", std::string()));
#endif
}
