// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// The parameter of a route says which record it has, which a template does not.
void route_of_any_record(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    auto route = [](auto& run) -> asio::awaitable<void> {
#else
    auto route = [](valid::Run& run) -> asio::awaitable<void> {
#endif
        run->answer = 1;
        co_return;
    };
    sluice::Pipeline pipeline(context.get_executor(), route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
