// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <vector>

// A batch is a range of queries, or of checkpoints with the record of its pipeline.
void checkpoints_of_another_record(boost::asio::io_context& context, valid::Sink& sink) {
    sluice::Pipeline pipeline(context.get_executor(), &valid::route, sink, 1);
#ifdef MISTAKE
    std::vector<sluice::Checkpoint<int>> queries;
#else
    std::vector<sluice::Checkpoint<valid::Record>> queries;
#endif
    static_cast<void>(pipeline.process_batch(queries));
}
