// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// A route gets the run of its query, and not the query itself.
void route_without_run(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto route = [](const sluice::Query&) -> asio::awaitable<void> { co_return; };
#else
    auto route = [](valid::Run&) -> asio::awaitable<void> { co_return; };
#endif
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
