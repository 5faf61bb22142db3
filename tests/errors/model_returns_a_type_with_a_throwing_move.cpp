// SPDX-License-Identifier: BSL-1.0
#include "valid.hpp"

namespace asio = boost::asio;

// The value that a model function returns is moved into the result, where an exception would lose the query.
void model_returns_a_type_with_a_throwing_move(asio::io_context& context, valid::Sink& sink) {
    struct Number {
        Number() = default;
#ifdef MISTAKE
        Number(Number&&) {}
#else
        Number(Number&&) noexcept {}
#endif
    };
    auto generate = [](int, int, const std::string&) -> asio::awaitable<Number> { co_return Number(); };
    sluice::InferencePipeline pipeline(context.get_executor(), valid::model, valid::model, generate, valid::limits,
                                       sink);
}
