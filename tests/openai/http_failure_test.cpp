// SPDX-License-Identifier: BSL-1.0
#include "http_probes.hpp"
#include "raw_server.hpp"

#include <openai/http_client.hpp>
#include <openai/url.hpp>

#include <sluice/stage/verdict.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <string>
#include <utility>

namespace asio = boost::asio;
using Catch::Matchers::ContainsSubstring;
using Ending = test::RawScene::Ending;
using test::answer_with;
using test::error_of_only_request;
using test::failed_fetch;
using test::fetch;
using test::HttpBench;

TEST_CASE("A kept connection that the server has closed is replaced without an error") {
    const Ending ending = GENERATE(Ending::close, Ending::reset);
    HttpBench bench({{.answers = {answer_with("1")}, .ending = ending}, {.answers = {answer_with("2")}}});
    bench.run([&]() -> asio::awaitable<void> {
        const std::string first = co_await fetch(*bench.client);
        co_await test::until([&] { return bench.server.open() == 0; });
        const std::string second = co_await fetch(*bench.client);
        CHECK(first + second == "12");
    });
    CHECK(bench.server.accepted() == 2);
    CHECK(bench.server.requests().size() == 2);
}

TEST_CASE("A kept connection that is closed under a request is replaced, and the request sent again") {
    HttpBench bench(
        {{.answers = {answer_with("1")}, .ending = Ending::close_on_request}, {.answers = {answer_with("2")}}});
    bench.run([&]() -> asio::awaitable<void> {
        const std::string first = co_await fetch(*bench.client);
        const std::string second = co_await fetch(*bench.client);
        CHECK(first + second == "12");
    });
    CHECK(bench.server.accepted() == 2);
    REQUIRE(bench.server.requests().size() == 3);
    CHECK(bench.server.requests()[1] == bench.server.requests()[2]);
}

TEST_CASE("A kept connection on which the server has said something unasked is not used") {
    HttpBench bench(
        {{.answers = {answer_with("1"), "HTTP/1.1 408 Request Timeout\r\nContent-Length: 0\r\n\r\n"}, .unasked = 1},
         {.answers = {answer_with("2")}}});
    bench.run([&]() -> asio::awaitable<void> {
        const std::string first = co_await fetch(*bench.client);
        CHECK(bench.client->idle() == 1);
        bench.server.speak_unasked();
        co_await test::until([&] { return bench.server.sent() == 2; });
        const std::string second = co_await fetch(*bench.client);
        CHECK(first + second == "12");
    });
    CHECK(bench.server.accepted() == 2);
}

TEST_CASE("A request is sent again once, over a new connection, even if others are kept") {
    HttpBench bench({{.answers = {answer_with("1")}, .ending = Ending::close_on_request},
                     {.answers = {answer_with("2")}, .ending = Ending::close_on_request},
                     {.ending = Ending::close_on_request}});
    int fetched = 0;
    const auto note = [&]() -> asio::awaitable<void> {
        co_await fetch(*bench.client);
        ++fetched;
    };
    bench.run([&]() -> asio::awaitable<void> {
        asio::co_spawn(bench.context, note(), asio::detached);
        asio::co_spawn(bench.context, note(), asio::detached);
        co_await test::until([&] { return fetched == 2; });
        CHECK(bench.client->idle() == 2);
        const sluice::ModelError error = co_await failed_fetch(*bench.client);
        CHECK_THAT(error.what(), ContainsSubstring("no answer came: the connection was closed"));
        CHECK(bench.client->idle() == 1);
    });
    CHECK(bench.server.accepted() == 3);
    CHECK(bench.server.requests().size() == 4);
}

TEST_CASE("A request is never sent again over a new connection, nor after the first byte of an answer") {
    const auto error = error_of_only_request({.ending = Ending::close_on_request});
    CHECK_THAT(error.what(), ContainsSubstring("no answer came: the connection was closed"));

    HttpBench bench({{.answers = {answer_with("1"), "H"}, .ending = Ending::close}});
    bench.run([&]() -> asio::awaitable<void> {
        co_await fetch(*bench.client);
        const sluice::ModelError failure = co_await failed_fetch(*bench.client);
        CHECK_THAT(failure.what(), ContainsSubstring("broke off in its header: the connection was closed"));
    });
    CHECK(bench.server.accepted() == 1);
}

TEST_CASE("A server that is not there is named") {
    asio::io_context context(1);
    // A port that is taken, so that no other test gets it, but on which nobody listens.
    const asio::ip::tcp::acceptor silent = [&] {
        asio::ip::tcp::acceptor acceptor(context, asio::ip::tcp::v4());
        acceptor.bind({asio::ip::address_v4::loopback(), 0});
        return acceptor;
    }();
    const std::string port = std::to_string(silent.local_endpoint().port());
    test::RawServer unused(context, {{}});
    test::run_to_end(context, unused, [&]() -> asio::awaitable<void> {
        // The last one is too long for a name, and therefore asked nobody for.
        for (const std::string& host : {std::string("127.0.0.1"), std::string("localhost"), std::string(64, 'x')}) {
            openai::HttpClient client(context.get_executor(), openai::parse_url("http://" + host + ":" + port));
            const sluice::ModelError error = co_await failed_fetch(client);
            CHECK_THAT(error.what(), ContainsSubstring(host + ":" + port + ": could not connect: "));
            CHECK(error.verdict().kind == sluice::Verdict::transient);
        }
    });
}

TEST_CASE("A response whose body has failed holds no connection, and fails again") {
    HttpBench bench({{.answers = {"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"}}});
    bench.run([&]() -> asio::awaitable<void> {
        auto post = bench.client->post("/x", "{}");
        openai::HttpResponse response = co_await std::move(post);
        std::string errors;
        for (int i = 0; i < 2; ++i) {
            try {
                co_await response.read_some();
            } catch (const sluice::ModelError& error) {
                errors += error.what();
            }
            co_await test::until([&] { return bench.server.open() == 0; });
        }
        CHECK_THAT(errors, ContainsSubstring("not valid HTTP") && ContainsSubstring("the answer broke off before"));
    });
}
