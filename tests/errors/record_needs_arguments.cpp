// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <optional>

namespace asio = boost::asio;

// Each query begins with an empty record.
void record_needs_arguments(asio::io_context& context, valid::Sink& sink) {
    struct Answers {
#ifdef MISTAKE
        explicit Answers(int expected) : number(expected) {}
        int number;
#endif
        std::optional<int> answer;
    };
    auto route = [stage = valid::stage(context)](sluice::Run<Answers>& run) -> asio::awaitable<void> {
        co_await run.step(&Answers::answer, stage, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
