// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

// A sink has a member function put.
void sink_without_put(boost::asio::io_context& context) {
    struct Sink {
#ifdef MISTAKE
        void push(const sluice::Query&, const sluice::StageResult<>&) {}
#else
        void put(const sluice::Query&, const sluice::StageResult<>&) {}
#endif
    } sink;
    sluice::InferencePipeline pipeline(context.get_executor(), valid::model, valid::model, valid::generate,
                                       valid::limits, sink);
}
