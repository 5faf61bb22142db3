// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// All coroutines of a pipeline are bound to one type of executor.
void executors_differ(asio::io_context& context, valid::Sink& sink) {
#ifdef MISTAKE
    using Executor = asio::io_context::executor_type;
#else
    using Executor = asio::any_io_executor;
#endif
    auto extract = [](const std::string&) -> asio::awaitable<int, Executor> { co_return 1; };
    sluice::InferencePipeline pipeline(context.get_executor(), valid::model, extract, valid::generate, valid::limits,
                                       sink);
}
