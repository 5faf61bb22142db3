// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <optional>

namespace asio = boost::asio;

// A step fills in a field of the record of its run.
void field_of_another_record(asio::io_context& context, valid::Sink& sink) {
    struct Other {
        std::optional<int> answer;
    };
#ifdef MISTAKE
    auto field = &Other::answer;
#else
    auto field = &valid::Record::answer;
#endif
    auto route = [field, stage = valid::stage(context)](valid::Run& run) -> asio::awaitable<void> {
        co_await run.step(field, stage, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
