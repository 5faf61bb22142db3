// SPDX-License-Identifier: BSL-1.0
#include "right.hpp"

// A retry must find intent and entities as they were.
void model_changes_the_intent(boost::asio::io_context& context, right::Sink& sink) {
#ifdef MISTAKE
    auto generate = [](int& intent, int, const std::string&) -> boost::asio::awaitable<int> { co_return ++intent; };
#else
    auto generate = [](const int& intent, int, const std::string&) -> boost::asio::awaitable<int> { co_return intent; };
#endif
    sluice::InferencePipeline pipeline(context.get_executor(), right::model, right::model, generate, right::limits,
                                       sink);
}
