// SPDX-License-Identifier: BSL-1.0
#include "right.hpp"

namespace asio = boost::asio;

// What a model function gives is moved into the result, where an exception would lose the query.
void model_gives_what_moves_with_exceptions(asio::io_context& context, right::Sink& sink) {
    struct Number {
        Number() = default;
#ifdef MISTAKE
        Number(Number&&) {}
#else
        Number(Number&&) noexcept {}
#endif
    };
    auto generate = [](int, int, const std::string&) -> asio::awaitable<Number> { co_return Number(); };
    sluice::InferencePipeline pipeline(context.get_executor(), right::model, right::model, generate, right::limits,
                                       sink);
}
