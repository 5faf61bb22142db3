// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// run() returns one type.
void fallback_of_other_values(asio::io_context& context) {
    const auto stage = valid::stage(context);
    const auto name = [](const std::string& text) -> asio::awaitable<std::string> { co_return text; };
    const sluice::Stage names(context.get_executor(), "names", 1, name);
#ifdef MISTAKE
    static_cast<void>(sluice::Fallback("either", stage, names).run("1", std::string()));
#else
    static_cast<void>(sluice::Fallback("either", names, names).run("1", std::string()));
#endif
}
