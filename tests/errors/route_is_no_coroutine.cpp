// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

// A route must be a coroutine even if it does nothing.
void route_is_no_coroutine(boost::asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto route = [](valid::Run& run) { run->answer = 1; };
#else
    auto route = [](valid::Run& run) -> boost::asio::awaitable<void> {
        run->answer = 1;
        co_return;
    };
#endif
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
