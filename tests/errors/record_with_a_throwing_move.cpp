// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <optional>

namespace asio = boost::asio;

// A result is moved with its record, where an exception would lose the query.
void record_with_a_throwing_move(asio::io_context& context, valid::Sink& sink) {
    struct Answers {
        Answers() = default;
#ifdef MISTAKE
        Answers(Answers&& other) : answer(other.answer) {}
#else
        Answers(Answers&& other) noexcept : answer(other.answer) {}
#endif
        std::optional<int> answer;
    };
    auto route = [stage = valid::stage(context)](sluice::Run<Answers>& run) -> asio::awaitable<void> {
        co_await run.step(&Answers::answer, stage, run.query().text);
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
