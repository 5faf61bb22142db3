// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// The value that a model function returns is stored in the result.
void model_returns_a_reference(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto classify = [](const std::string&) -> asio::awaitable<int&> {
        static int n;
        co_return n;
    };
#else
    auto classify = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
#endif
    sluice::InferencePipeline pipeline(context.get_executor(), classify, valid::model, valid::generate, valid::limits,
                                       sink);
}
