// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <optional>

namespace asio = boost::asio;

// A field is empty until its step has run.
void field_is_no_optional(asio::io_context& context, valid::Sink& sink) {
    struct Count {
#ifdef MISTAKE
        int number = 0;
#else
        std::optional<int> number;
#endif
    };
    auto route = [stage = valid::stage(context)](sluice::Run<Count>& run) -> asio::awaitable<void> {
        co_await run.step(&Count::number, stage, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
