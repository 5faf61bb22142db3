// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// A step runs a stage, and not its model function.
void step_of_a_model(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto stage = valid::model;
#else
    auto stage = valid::stage(context);
#endif
    auto route = [stage](valid::Run& run) -> asio::awaitable<void> {
        co_await run.step(&valid::Record::answer, stage, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
