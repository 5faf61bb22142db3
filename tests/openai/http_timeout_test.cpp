// SPDX-License-Identifier: BSL-1.0
#include "http_probes.hpp"
#include "raw_server.hpp"

#include <openai/http_client.hpp>
#include <openai/http_connection.hpp>
#include <openai/url.hpp>

#include <sluice/stage/verdict.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using asio::ip::tcp;
using Catch::Matchers::ContainsSubstring;
using test::answer_with;
using test::error_of_only_request;
using test::failed_fetch;
using test::fetch;
using test::HttpBench;

TEST_CASE("A kept connection on which no answer comes in time is not replaced") {
    HttpBench bench({{.answers = {answer_with("1")}}}, {.first_byte_timeout = 5ms});
    bench.run([&]() -> asio::awaitable<void> {
        co_await fetch(*bench.client);
        const sluice::ModelError error = co_await failed_fetch(*bench.client);
        CHECK_THAT(error.what(), ContainsSubstring("first-byte timeout"));
    });
    CHECK(bench.server.accepted() == 1);
}

TEST_CASE("Each timeout says which one it is, and how long") {
    const std::string head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n";
    CHECK_THAT(error_of_only_request({}, {.first_byte_timeout = 5ms}).what(),
               ContainsSubstring("no answer within 0.005 s (first-byte timeout)"));
    CHECK_THAT(error_of_only_request({.answers = {head}}, {.first_byte_timeout = 5ms}).what(),
               ContainsSubstring("no answer within 0.005 s (first-byte timeout)"));
    CHECK_THAT(error_of_only_request({.answers = {head + "\r\n"}}, {.idle_timeout = 5ms}).what(),
               ContainsSubstring("nothing more of the answer within 0.005 s (idle timeout)"));
    CHECK_THAT(error_of_only_request({.answers = {head + "\r\npart"}}, {.idle_timeout = 6ms}).what(),
               ContainsSubstring("nothing more of the answer within 0.006 s (idle timeout)"));
}

TEST_CASE("The look-up of a name is part of the time to connect") {
    asio::io_context context(1);
    // No address to the client, and so looked up; the system asks nobody.
    openai::HttpClient client(context.get_executor(), openai::parse_url("http://127.1:1"), {.connect_timeout = 1ns});
    std::string why;
    const auto attempt = [&]() -> asio::awaitable<void> {
        const sluice::ModelError error = co_await failed_fetch(client);
        why = error.what();
    };
    asio::co_spawn(context, attempt(), asio::detached);
    context.run();
    CHECK_THAT(why, ContainsSubstring("127.1:1: not connected within 1e-09 s (connect timeout)"));
}

TEST_CASE("An address on which nobody answers leaves time for the next one") {
    asio::io_context context(1);
    const test::DeafServer silent(context);
    const auto silent_endpoint = silent.acceptor.local_endpoint();
    asio::io_context not_run;
    std::vector<tcp::socket> knocking;
    for (int i = 0; i < 4; ++i) {
        knocking.emplace_back(not_run);
        knocking.back().async_connect(silent_endpoint, asio::detached);
    }
    test::RawServer server(context, {test::RawScene()});
    openai::HttpTarget target(openai::parse_url(server.url()), {.connect_timeout = 4s});
    target.endpoints.insert(target.endpoints.begin(), silent_endpoint);
    test::run_to_end(context, server, [&]() -> asio::awaitable<void> {
        openai::HttpConnection connection(context.get_executor(), target);
        co_await connection.connect();
        co_await test::until([&] { return server.accepted() == 1; });
    });
}

TEST_CASE("A server that does not read a request, or does not accept connections, is given up in time") {
    asio::io_context context(1);
    const test::DeafServer server(context);
    openai::HttpClient client(context.get_executor(), openai::parse_url(server.url()),
                              {.connect_timeout = 20ms, .first_byte_timeout = 30ms});
    std::string errors;
    const auto attempt = [&]() -> asio::awaitable<void> {
        auto post = client.post("/x", std::string(std::size_t{16} << 20, 'x'));
        try {
            const openai::HttpResponse response = co_await std::move(post);
        } catch (const sluice::ModelError& error) {
            errors += error.what();
        }
    };
    for (int i = 0; i < 6; ++i) {
        asio::co_spawn(context, attempt(), asio::detached);
    }
    context.run();
    CHECK_THAT(errors, ContainsSubstring("the request could not be sent within 0.03 s (first-byte timeout)"));
    CHECK_THAT(errors, ContainsSubstring("not connected within 0.02 s (connect timeout)"));
}
