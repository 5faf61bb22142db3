// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

// A retry must see intent and entities unchanged.
void model_changes_the_intent(boost::asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto generate = [](int& intent, int, const std::string&) -> boost::asio::awaitable<int> { co_return ++intent; };
#else
    auto generate = [](const int& intent, int, const std::string&) -> boost::asio::awaitable<int> { co_return intent; };
#endif
    sluice::InferencePipeline pipeline(context.get_executor(), valid::model, valid::model, generate, valid::limits,
                                       sink);
}
