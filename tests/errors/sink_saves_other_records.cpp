// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

// Of the save functions of a sink, one saves the records of its pipeline.
void sink_saves_other_records(boost::asio::io_context& context) {
    struct Sink : valid::Sink {
        void save(const sluice::Query&, const std::string&) {}
#ifdef MISTAKE
        void save(const sluice::Query&, const int&) {}
#else
        void save(const sluice::Query&, const valid::Record&) {}
#endif
    } sink;
    sluice::Pipeline pipeline(context.get_executor(), &valid::route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
