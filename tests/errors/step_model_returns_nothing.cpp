// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <string>

namespace asio = boost::asio;

// The value of the model function is stored in the field.
void step_model_returns_nothing(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto model = [](const std::string&) -> asio::awaitable<void> { co_return; };
#else
    auto model = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
#endif
    sluice::Stage stage(context.get_executor(), "judge", 1, model);
    auto route = [stage](valid::Run& run) -> asio::awaitable<void> {
        co_await run.step_or_error(&valid::Record::answer, stage, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
