// SPDX-License-Identifier: BSL-1.0
#include "right.hpp"

namespace asio = boost::asio;

// What a model function gives is kept in the result.
void model_gives_a_reference(asio::io_context& context, right::Sink& sink) {
#ifdef MISTAKE
    auto classify = [](const std::string&) -> asio::awaitable<int&> {
        static int n;
        co_return n;
    };
#else
    auto classify = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
#endif
    sluice::InferencePipeline pipeline(context.get_executor(), classify, right::model, right::generate, right::limits,
                                       sink);
}
