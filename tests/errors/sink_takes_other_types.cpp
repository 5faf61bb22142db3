// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

// A sink gets the query and the result of the stage that failed.
void sink_takes_other_types(boost::asio::io_context& context) {
    struct Sink {
#ifdef MISTAKE
        void put(const sluice::Query&, const std::string&) {}
#else
        void put(const sluice::Query&, const sluice::StageResult<>&) {}
#endif
    } sink;
    sluice::InferencePipeline pipeline(context.get_executor(), valid::model, valid::model, valid::generate,
                                       valid::limits, sink);
}
