// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <string>

namespace asio = boost::asio;

// All coroutines of a route are bound to the type of executor of its Run.
void step_of_another_executor(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    using Executor = asio::io_context::executor_type;
#else
    using Executor = asio::any_io_executor;
#endif
    auto model = [](const std::string&) -> asio::awaitable<int, Executor> { co_return 1; };
    sluice::Stage stage(context.get_executor(), "judge", 1, model);
    auto route = [stage](valid::Run& run) -> asio::awaitable<void> {
        co_await run.step(&valid::Record::answer, stage, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
