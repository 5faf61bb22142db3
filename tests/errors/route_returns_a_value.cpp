// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// What a route finds out is in its record.
void route_returns_a_value(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto route = [](valid::Run&) -> asio::awaitable<int> { co_return 1; };
#else
    auto route = [](valid::Run&) -> asio::awaitable<void> { co_return; };
#endif
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
