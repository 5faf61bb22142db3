// SPDX-License-Identifier: BSL-1.0
#include "right.hpp"

// A sink is given the query and why it failed.
void sink_takes_other_types(boost::asio::io_context& context) {
    struct Sink {
#ifdef MISTAKE
        void put(const sluice::Query&, const std::string&) {}
#else
        void put(const sluice::Query&, const sluice::StageResult<>&) {}
#endif
    } sink;
    sluice::InferencePipeline pipeline(context.get_executor(), right::model, right::model, right::generate,
                                       right::limits, sink);
}
