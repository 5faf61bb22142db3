// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "raw_server.hpp"

#include <openai/http_client.hpp>
#include <openai/url.hpp>

#include <sluice/stage/verdict.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include <catch2/catch_test_macros.hpp>

#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace test {

/// Sends a request and reads the answer, whatever its status is.
inline asio::awaitable<std::string> fetch(openai::HttpClient& client) {
    auto post = client.post("/x", "{}");
    openai::HttpResponse response = co_await std::move(post);
    std::string body = co_await response.read();
    co_return body;
}

/// Returns the error with which fetch() fails.
/// @throws std::logic_error if it does not.
inline asio::awaitable<sluice::ModelError> failed_fetch(openai::HttpClient& client) {
    std::optional<sluice::ModelError> failure;
    std::string answer;
    try {
        answer = co_await fetch(client);
    } catch (const sluice::ModelError& error) {
        failure = error;
    }
    if (!failure) {
        throw std::logic_error("fetch() returned '" + answer + "'");
    }
    co_return *failure;
}

/// A client of a RawServer.
struct HttpBench {
    explicit HttpBench(std::vector<RawScene> scenes, openai::HttpOptions options = {})
        : server(context, std::move(scenes)) {
        client.emplace(context.get_executor(), openai::parse_url(server.url()), std::move(options));
    }

    template <class Function>
    void run(Function function) {
        run_to_end(context, server, std::move(function));
    }

    asio::io_context context{1};
    RawServer server;
    std::optional<openai::HttpClient> client;
};

/// Returns the error of a request on a connection that plays `scene`. Checks that it is the only one, and is closed.
inline sluice::ModelError error_of_only_request(RawScene scene, openai::HttpOptions options = {},
                                                sluice::Verdict::Kind kind = sluice::Verdict::transient) {
    HttpBench bench({std::move(scene)}, std::move(options));
    std::optional<sluice::ModelError> error;
    bench.run([&]() -> asio::awaitable<void> {
        error = co_await failed_fetch(*bench.client);
        CHECK(bench.client->idle() == 0);
        co_await until([&] { return bench.server.open() == 0; });
    });
    CHECK(bench.server.accepted() == 1);
    CHECK(std::string_view(error->what()).starts_with("127.0.0.1:" + bench.server.port() + ": "));
    CHECK(error->verdict().kind == kind);
    CHECK(error->status() == 0);
    return error.value();
}

}  // namespace test
