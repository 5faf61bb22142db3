// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// What runs side by side are steps, or other awaitables.
void all_of_a_stage(asio::io_context& context, valid::Sink& sink) {
    auto route = [stage = valid::stage(context)](valid::Run& run) -> asio::awaitable<void> {
#ifdef MISTAKE
        co_await run.all(stage);
#else
        co_await run.all(run.step(&valid::Record::answer, stage, run.query().text));
#endif
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
