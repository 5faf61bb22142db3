// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// Each member gets the arguments of the step.
void fallback_takes_other_arguments(asio::io_context& context, valid::Sink& sink) {
    const auto stage = valid::stage(context);
#ifdef MISTAKE
    const auto other = [](int) -> asio::awaitable<int> { co_return 1; };
#else
    const auto other = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
#endif
    const sluice::Fallback answer("answer", stage, sluice::Stage(context.get_executor(), "other", 1, other));
    auto route = [answer](valid::Run& run) -> asio::awaitable<void> {
        co_await run.step(&valid::Record::answer, answer, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
