// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <string>
#include <vector>

// A batch is a range of queries.
void range_of_another_type(boost::asio::io_context& context, valid::Sink& sink) {
    sluice::InferencePipeline pipeline(context.get_executor(), valid::model, valid::model, valid::generate,
                                       valid::limits, sink);
#ifdef MISTAKE
    std::vector<std::string> queries{"Who?"};
#else
    std::vector<sluice::Query> queries{{"1", "Who?"}};
#endif
    static_cast<void>(pipeline.process_batch(queries));
}
