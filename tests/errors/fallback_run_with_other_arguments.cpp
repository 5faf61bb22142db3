// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// run() gets the arguments of the model functions.
void fallback_run_with_other_arguments(asio::io_context& context) {
    const auto stage = valid::stage(context);
    const sluice::Fallback either("either", stage, stage);
#ifdef MISTAKE
    static_cast<void>(either.run("1", 2));
#else
    static_cast<void>(either.run("1", std::string()));
#endif
}
