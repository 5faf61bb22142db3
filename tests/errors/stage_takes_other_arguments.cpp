// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/stage.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include <string>

namespace asio = boost::asio;

// run() gets the arguments of the model function.
void stage_takes_other_arguments(asio::io_context& context) {
    auto model = [](const std::string&, int) -> asio::awaitable<int> { co_return 1; };
    sluice::Stage stage(context.get_executor(), "judge", 1, model);
#ifdef MISTAKE
    static_cast<void>(stage.run("1", std::string("text")));
#else
    static_cast<void>(stage.run("1", std::string("text"), 1));
#endif
}
