// SPDX-License-Identifier: BSL-1.0
#include "right.hpp"

namespace asio = boost::asio;

// Generate is given what classify and extract give.
void generate_takes_other_types(asio::io_context& context, right::Sink& sink) {
#ifdef MISTAKE
    auto generate = [](int*, int, const std::string&) -> asio::awaitable<int> { co_return 1; };
#else
    auto generate = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 1; };
#endif
    sluice::InferencePipeline pipeline(context.get_executor(), right::model, right::model, generate, right::limits,
                                       sink);
}
