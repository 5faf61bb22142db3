// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <functional>

// A member function becomes a route through a lambda: what std::bind_front() returns is a template.
class RouteThatIsBound {
public:
    void answer(boost::asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
        sluice::Pipeline pipeline(context.get_executor(), std::bind_front(&RouteThatIsBound::route, this), sink, 1);
#else
        sluice::Pipeline pipeline(context.get_executor(), [this](valid::Run& run) { return route(run); }, sink, 1);
#endif
        static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
    }

private:
    boost::asio::awaitable<void> route(valid::Run& run) { return valid::route(run); }
};
