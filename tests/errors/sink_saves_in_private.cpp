// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

// A sink that saves records says so in public.
void sink_saves_in_private(boost::asio::io_context& context) {
    class Sink : public valid::Sink {
#ifndef MISTAKE
    public:
#endif
        void save(const sluice::Query&, const valid::Record&) {}
    } sink;
    sluice::Pipeline pipeline(context.get_executor(), &valid::route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
