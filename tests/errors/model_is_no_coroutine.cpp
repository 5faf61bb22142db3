// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// A model function must be a coroutine even if it returns at once.
void model_is_no_coroutine(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto classify = [](const std::string&) { return 1; };
#else
    auto classify = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
#endif
    sluice::InferencePipeline pipeline(context.get_executor(), classify, valid::model, valid::generate, valid::limits,
                                       sink);
}
