// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "raw_client.hpp"
#include "scripts.hpp"
#include "support/task.hpp"

#include "openai/scripted_server.hpp"

#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <functional>
#include <string>
#include <type_traits>
#include <utility>

namespace test {

using namespace std::chrono_literals;

// A server and what talks to it, in one context.
struct ScriptedScene {
    boost::asio::io_context context{1};
    openai::ScriptedServer server;

    explicit ScriptedScene(openai::ScriptedServerOptions options = {.script = always({})})
        : server(context.get_executor(), std::move(options)) {}

    RawClient probe() { return {context.get_executor(), server.port()}; }

    // Runs until `function()` has ended; the server goes on.
    template <class Function>
    auto run(Function function) {
        using Value = decltype(function())::value_type;
        Task<Value> task(context.get_executor(), std::move(function));
        run_until([&] { return task.ends() > 0; });
        if constexpr (!std::is_void_v<Value>) {
            return std::move(task.value());
        } else {
            REQUIRE(task.succeeded());
        }
    }

    void run_until(const std::function<bool()>& done) {
        while (!done()) {
            const auto handlers = context.run_one_for(20s);
            REQUIRE(handlers == 1);
        }
    }

    HttpAnswer ask(RawClient& probe, const std::string& request) {
        return run([&] { return probe.ask(request); });
    }
    HttpAnswer ask(const std::string& request) {
        RawClient client = probe();
        return ask(client, request);
    }

    // Closes the server. Its coroutines end, so that nothing is left to do.
    void finish() {
        server.close();
        context.restart();
        REQUIRE(context.run_for(20s) < 1'000'000);
        REQUIRE(context.stopped());
        CHECK(server.counts().open_connections == 0);
        CHECK(server.counts().working == 0);
    }
};

}  // namespace test
