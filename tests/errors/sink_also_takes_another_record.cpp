// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

// A sink that takes dead letters with and without the record takes the record of its pipeline.
void sink_also_takes_another_record(boost::asio::io_context& context) {
    struct Sink : valid::Sink {
        using valid::Sink::put;
#ifdef MISTAKE
        void put(const sluice::Query&, const sluice::StageResult<>&, const std::string&) {}
#else
        void put(const sluice::Query&, const sluice::StageResult<>&, const valid::Record&) {}
#endif
    } sink;
    sluice::Pipeline pipeline(context.get_executor(), &valid::route, sink, 1);
    static_cast<void>(pipeline.process_one(sluice::Query("1", "Who?")));
}
