// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/stage.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include <string>

namespace asio = boost::asio;

// A model function returns a value.
void stage_model_returns_nothing(asio::io_context& context) {
#ifdef MISTAKE
    auto model = [](const std::string&) -> asio::awaitable<void> { co_return; };
#else
    auto model = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
#endif
    sluice::Stage stage(context.get_executor(), "judge", 1, model);
    static_cast<void>(stage.run("1", std::string("text")));
}
