// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// generate gets the values that classify and extract return.
void generate_takes_other_types(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto generate = [](int*, int, const std::string&) -> asio::awaitable<int> { co_return 1; };
#else
    auto generate = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 1; };
#endif
    sluice::InferencePipeline pipeline(context.get_executor(), valid::model, valid::model, generate, valid::limits,
                                       sink);
}
