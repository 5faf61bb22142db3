// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

#include <string>
#include <vector>

// A stream has a range of queries.
void stream_of_another_type(boost::asio::io_context& context, valid::Sink& sink) {
    sluice::Pipeline pipeline(context.get_executor(), &valid::route, sink, 1);
#ifdef MISTAKE
    std::vector<std::string> queries{"Who?"};
#else
    std::vector<sluice::Query> queries{{"1", "Who?"}};
#endif
    auto stream = pipeline.process_stream(queries);
    static_cast<void>(stream.next());
}
