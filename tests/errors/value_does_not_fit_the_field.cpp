// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <optional>
#include <vector>

namespace asio = boost::asio;

// The value of the model function converts to that of the field. A vector is not made of its size.
void value_does_not_fit_the_field(asio::io_context& context, valid::Sink& sink) {
    struct Answers {
#ifdef MISTAKE
        std::optional<std::vector<int>> answers;
#else
        std::optional<long> answers;
#endif
    };
    auto route = [stage = valid::stage(context)](sluice::Run<Answers>& run) -> asio::awaitable<void> {
        co_await run.step(&Answers::answers, stage, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
