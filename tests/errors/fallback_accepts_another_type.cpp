// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// The predicate of a fallback takes the value of the field.
void fallback_accepts_another_type(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    const auto answer =
        sluice::Fallback("answer", valid::stage(context), valid::stage(context)).accept([](const std::string& text) {
            return !text.empty();
        });
#else
    const auto answer = sluice::Fallback("answer", valid::stage(context), valid::stage(context)).accept([](int number) {
        return number > 0;
    });
#endif
    auto route = [answer](valid::Run& run) -> asio::awaitable<void> {
        co_await run.step(&valid::Record::answer, answer, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
