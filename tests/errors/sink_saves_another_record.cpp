// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

// A sink that saves records saves those of its pipeline.
void sink_saves_another_record(boost::asio::io_context& context) {
    struct Sink : valid::Sink {
#ifdef MISTAKE
        void save(const sluice::Query&, const int&) {}
#else
        void save(const sluice::Query&, const valid::Record&) {}
#endif
    } sink;
    sluice::Pipeline pipeline(context.get_executor(), &valid::route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
