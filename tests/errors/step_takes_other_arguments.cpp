// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// A step gets the arguments of the model function.
void step_takes_other_arguments(asio::io_context& context, valid::Sink& sink) {
    auto route = [stage = valid::stage(context)](valid::Run& run) -> asio::awaitable<void> {
#ifdef MISTAKE
        co_await run.step(&valid::Record::answer, stage, &valid::Record::answer);
#else
        co_await run.step(&valid::Record::answer, stage, run.query().text);
#endif
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
