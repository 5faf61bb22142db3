// SPDX-License-Identifier: BSL-1.0
#include "right.hpp"

#include <string>
#include <vector>

// A batch is a range of queries.
void range_of_something_else(boost::asio::io_context& context, right::Sink& sink) {
    sluice::InferencePipeline pipeline(context.get_executor(), right::model, right::model, right::generate,
                                       right::limits, sink);
#ifdef MISTAKE
    std::vector<std::string> queries{"Who?"};
#else
    std::vector<sluice::Query> queries{{"1", "Who?"}};
#endif
    static_cast<void>(pipeline.process_batch(queries));
}
