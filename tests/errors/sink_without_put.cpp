// SPDX-License-Identifier: BSL-1.0
#include "right.hpp"

// The dead letters go to a member function put.
void sink_without_put(boost::asio::io_context& context) {
    struct Sink {
#ifdef MISTAKE
        void push(const sluice::Query&, const sluice::StageResult<>&) {}
#else
        void put(const sluice::Query&, const sluice::StageResult<>&) {}
#endif
    } sink;
    sluice::InferencePipeline pipeline(context.get_executor(), right::model, right::model, right::generate,
                                       right::limits, sink);
}
