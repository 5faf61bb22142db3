// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// A model function gets the text of its query as a constant.
void model_changes_the_text(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto extract = [](std::string&) -> asio::awaitable<int> { co_return 1; };
#else
    auto extract = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
#endif
    sluice::InferencePipeline pipeline(context.get_executor(), valid::model, extract, valid::generate, valid::limits,
                                       sink);
}
