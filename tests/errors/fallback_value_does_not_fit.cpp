// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// The value of each member is for one field.
void fallback_value_does_not_fit(asio::io_context& context, valid::Sink& sink) {
    const auto stage = valid::stage(context);
#ifdef MISTAKE
    const auto other = [](const std::string& text) -> asio::awaitable<std::string> { co_return text; };
#else
    const auto other = [](const std::string&) -> asio::awaitable<short> { co_return short(1); };
#endif
    const sluice::Fallback answer("answer", stage, sluice::Stage(context.get_executor(), "other", 1, other));
    auto route = [answer](valid::Run& run) -> asio::awaitable<void> {
        co_await run.step(&valid::Record::answer, answer, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
