// SPDX-License-Identifier: BSL-1.0
#include "right.hpp"

namespace asio = boost::asio;

// A model function that gives its value at once is still to be written as a coroutine.
void model_is_no_coroutine(asio::io_context& context, right::Sink& sink) {
#ifdef MISTAKE
    auto classify = [](const std::string&) { return 1; };
#else
    auto classify = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
#endif
    sluice::InferencePipeline pipeline(context.get_executor(), classify, right::model, right::generate, right::limits,
                                       sink);
}
