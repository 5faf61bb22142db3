// SPDX-License-Identifier: BSL-1.0
#include "http_probes.hpp"

#include <openai/http_client.hpp>
#include <openai/http_pool.hpp>
#include <openai/url.hpp>

#include <sluice/stage/verdict.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address_v6.hpp>
#include <boost/system/system_error.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;
using Ending = test::RawScene::Ending;
using test::answer_with;
using test::failed_fetch;
using test::fetch;
using test::HttpBench;

namespace {

std::string why_options_are_refused(openai::HttpOptions options) {
    asio::io_context context;
    try {
        openai::HttpClient(context.get_executor(), openai::parse_url("http://host"), std::move(options));
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "";
}

}  // namespace

TEST_CASE("A POST has a length, the key, and nothing that a server would stumble on") {
    HttpBench bench({{.answers = {answer_with("one"), answer_with("two")}}}, {.bearer_token = "sk-123"});
    bench.run([&]() -> asio::awaitable<void> {
        auto first = bench.client->post("/chat", "{\"a\":1}");
        openai::HttpResponse response = co_await std::move(first);
        CHECK(response.status() == 200);
        CHECK(response.headers()["content-length"] == "3");
        const std::string body = co_await response.read();
        CHECK(body == "one");
        auto second = bench.client->post("/x", "", "text/event-stream");
        const openai::HttpResponse other = co_await std::move(second);
    });
    REQUIRE(bench.server.requests().size() == 2);
    CHECK(bench.server.requests()[0] == "POST /v1/chat HTTP/1.1\r\nHost: 127.0.0.1:" + bench.server.port() +
                                            "\r\nUser-Agent: sluice/0.2.0\r\nContent-Type: application/json\r\n"
                                            "Authorization: Bearer sk-123\r\nAccept: application/json\r\n"
                                            "Content-Length: 7\r\n\r\n{\"a\":1}");
    CHECK_THAT(bench.server.requests()[1], ContainsSubstring("Accept: text/event-stream\r\nContent-Length: 0\r\n\r\n"));
}

TEST_CASE("Without a key there is no Authorization") {
    HttpBench bench({{.answers = {answer_with("")}}});
    bench.run([&]() -> asio::awaitable<void> { co_await fetch(*bench.client); });
    CHECK_THAT(bench.server.requests().at(0), !ContainsSubstring("Authorization"));
}

TEST_CASE("A key goes to this computer or through TLS") {
    asio::io_context context;
    const auto refusal = [&](openai::Url url) -> std::string {
        url.port = "80";
        try {
            openai::HttpClient(context.get_executor(), std::move(url), {.bearer_token = "sk-123"});
        } catch (const std::invalid_argument& error) {
            return error.what();
        }
        return "";
    };
    for (const char* here : {"localhost", "127.0.0.1", "127.8.8.8", "::1"}) {
        CHECK(refusal({.host = here, .port = {}, .path = {}}).empty());
    }
    for (const std::string elsewhere :
         {"example.com", "10.0.0.1", "localhost.example.com", "128.0.0.1", "::2", "127.1"}) {
        CHECK(refusal({.host = elsewhere, .port = {}, .path = {}}) ==
              "the key is not sent to '" + elsewhere + "' over http: use https, or no key");
    }
#if OPENAI_HAS_TLS
    CHECK(refusal({.tls = true, .host = "example.com", .port = {}, .path = {}}).empty());
#endif
    CHECK(why_options_are_refused({}).empty());
}

TEST_CASE("A client goes to a name") {
    // The second is no address to the client, and so looked up; the system reads it as 127.0.0.1 without asking
    // anybody.
    const std::string host = GENERATE("localhost", "127.1");
    asio::io_context context(1);
    test::RawServer server(context, {{.answers = {answer_with("here")}}});
    openai::HttpClient client(context.get_executor(), openai::parse_url(server.url(host)));
    test::run_to_end(context, server, [&]() -> asio::awaitable<void> {
        const std::string got = co_await fetch(client);
        CHECK(got == "here");
    });
    CHECK_THAT(server.requests().at(0), ContainsSubstring("Host: " + host + ":" + server.port()));
}

TEST_CASE("A client goes to an IPv6 address, which may be that of localhost") {
    const std::string host = GENERATE("[::1]", "localhost");
    asio::io_context context(1);
    std::optional<test::RawServer> server;
    try {
        server.emplace(context, std::vector<test::RawScene>{{.answers = {answer_with("here")}}}, nullptr,
                       asio::ip::address_v6::loopback());
    } catch (const boost::system::system_error& error) {
        WARN("not tried, since this system has no IPv6: " << error.what());
        return;
    }
    openai::HttpClient client(context.get_executor(), openai::parse_url(server->url(host)));
    test::run_to_end(context, *server, [&]() -> asio::awaitable<void> {
        const std::string got = co_await fetch(client);
        CHECK(got == "here");
    });
    CHECK_THAT(server->requests().at(0), ContainsSubstring("Host: " + host + ":" + server->port()));
}

TEST_CASE("An answer is read as a whole, up to a limit, or piece by piece") {
    const std::string text(100'000, 'x');
    HttpBench bench({{.answers = {answer_with(text), answer_with(text), answer_with(text)}}});
    bench.run([&]() -> asio::awaitable<void> {
        const std::string whole = co_await fetch(*bench.client);
        CHECK(whole == text);
        CHECK(bench.client->idle() == 1);
        {
            auto post = bench.client->post("/x", "{}");
            openai::HttpResponse response = co_await std::move(post);
            std::string all;
            for (;;) {
                const std::string_view piece = co_await response.read_some();
                if (piece.empty()) {
                    break;
                }
                all += piece;
            }
            CHECK(all == text);
            const std::string_view after = co_await response.read_some();
            CHECK(after.empty());
            CHECK(bench.client->idle() == 1);
        }
        auto post = bench.client->post("/x", "{}");
        openai::HttpResponse response = co_await std::move(post);
        const std::string beginning = co_await response.read(1000);
        CHECK(beginning == text.substr(0, 1000));
    });
    CHECK(bench.client->idle() == 0);
    CHECK(bench.server.accepted() == 1);
}

TEST_CASE("Bodies with chunks and trailers, or that end with the connection, are read however they are split") {
    const auto [answer, ending] =
        GENERATE(std::pair{"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n5;x=y\r\nhello\r\n1\r\n "
                           "\r\n5\r\nworld\r\n0\r\nA: b\r\n\r\n",
                           Ending::silence},
                 std::pair{"HTTP/1.1 200 OK\r\n\r\nhello world", Ending::close},
                 std::pair{"HTTP/1.0 200 OK\r\nContent-Length: 11\r\n\r\nhello world", Ending::silence});
    const std::size_t piece = GENERATE(0u, 1u, 2u, 7u);
    HttpBench bench({{.answers = {answer}, .ending = ending, .piece = piece}});
    bench.run([&]() -> asio::awaitable<void> {
        const std::string got = co_await fetch(*bench.client);
        CHECK(got == "hello world");
    });
}

TEST_CASE("Interim answers are skipped") {
    const std::size_t piece = GENERATE(0u, 1u);
    HttpBench bench({{.answers = {"HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: </x>\r\n\r\n" +
                                      answer_with("yes"),
                                  answer_with("again")},
                      .piece = piece}});
    bench.run([&]() -> asio::awaitable<void> {
        const std::string first = co_await fetch(*bench.client);
        CHECK(first == "yes");
        const std::string second = co_await fetch(*bench.client);
        CHECK(second == "again");
    });
    CHECK(bench.server.accepted() == 1);
}

TEST_CASE("Every status is an answer, and redirects are not followed") {
    const std::string line = GENERATE("204 No Content", "302 Found\r\nLocation: http://127.0.0.1:1/", "429 Slow Down",
                                      "503 Busy", "599 Odd", "101 Switching Protocols");
    HttpBench bench(
        {{.answers = {
              "HTTP/1.1 " + line +
              (line.starts_with("2") || line.starts_with("1") ? "\r\n\r\n" : "\r\nContent-Length: 2\r\n\r\nno")}}});
    bench.run([&]() -> asio::awaitable<void> {
        auto post = bench.client->post("/x", "{}");
        openai::HttpResponse response = co_await std::move(post);
        CHECK(std::to_string(response.status()) == line.substr(0, 3));
        const std::string body = co_await response.read();
        CHECK(body == (line.starts_with("2") || line.starts_with("1") ? "" : "no"));
        CHECK(bench.client->idle() == (line.starts_with("1") ? 0 : 1));
    });
    CHECK(bench.server.accepted() == 1);
}

TEST_CASE("A connection that cannot be used again is closed") {
    const std::string answer =
        GENERATE(answer_with("x", "Connection: close\r\n"), answer_with("x", "Keep-Alive: timeout=1\r\n"),
                 answer_with("x", "Keep-Alive: max=9, Timeout=0\r\n"), answer_with("x") + "more",
                 std::string("HTTP/1.0 200 OK\r\nContent-Length: 1\r\n\r\nx"));
    HttpBench bench({{.answers = {answer}}});
    bench.run([&]() -> asio::awaitable<void> {
        const std::string first = co_await fetch(*bench.client);
        CHECK(first == "x");
        CHECK(bench.client->idle() == 0);
        co_await test::until([&] { return bench.server.open() == 0; });
        const std::string second = co_await fetch(*bench.client);
        CHECK(second == "x");
    });
    CHECK(bench.server.accepted() == 2);
}

TEST_CASE("A connection is kept if the server does not mind") {
    const std::string answer =
        GENERATE(answer_with("x"), answer_with("x", "Keep-Alive: timeout=100\r\n"),
                 answer_with("x", "Keep-Alive: timeout=99999999999999999999\r\n"),
                 answer_with("x", "Keep-Alive: timeout=, max=1\r\n"), answer_with("x", "Keep-Alive: timeout=-5\r\n"),
                 std::string("HTTP/1.0 200 OK\r\nConnection: keep-alive\r\nContent-Length: 1\r\n\r\nx"));
    HttpBench bench({{.answers = {answer, answer}}});
    bench.run([&]() -> asio::awaitable<void> {
        const std::string first = co_await fetch(*bench.client);
        CHECK(first == "x");
        CHECK(bench.client->idle() == 1);
        const std::string second = co_await fetch(*bench.client);
        CHECK(second == "x");
    });
    CHECK(bench.server.accepted() == 1);
}

TEST_CASE("Connections that are too old are not used again, and close when the next one is taken or given back") {
    asio::io_context context(1);
    test::RawServer server(context, {test::RawScene()});
    openai::HttpPool pool(context.get_executor(), openai::parse_url(server.url()), {});
    test::run_to_end(context, server, [&]() -> asio::awaitable<void> {
        const auto keep = [&](std::chrono::nanoseconds time) -> asio::awaitable<void> {
            auto connection = pool.make();
            co_await connection->connect();
            pool.give_back(std::move(connection), time);
        };
        co_await keep(1h);
        co_await keep(1ns);
        co_await keep(1h);
        REQUIRE(pool.size() == 2);
        co_await keep(1ns);
        auto taken = pool.take();
        CHECK(taken != nullptr);
        REQUIRE(pool.size() == 1);
        co_await test::until([&] { return server.open() == 2; });
        taken = pool.take();
        taken.reset();
        co_await keep(1ns);
        CHECK(pool.take() == nullptr);
        co_await test::until([&] { return server.open() == 0; });
    });
}

TEST_CASE("A response that is left before its end closes its connection") {
    HttpBench bench({{.answers = {"HTTP/1.1 200 OK\r\nContent-Length: 9\r\n\r\npart"}}});
    bench.run([&]() -> asio::awaitable<void> {
        {
            auto post = bench.client->post("/x", "{}");
            openai::HttpResponse response = co_await std::move(post);
            CHECK(bench.server.open() == 1);
        }
        CHECK(bench.client->idle() == 0);
        co_await test::until([&] { return bench.server.open() == 0; });
    });
}

TEST_CASE("As many connections are kept as were asked for, and the one that was used last is taken first") {
    const std::size_t max_idle = GENERATE(0u, 2u, 3u, 4u);
    HttpBench bench({{.answers = {answer_with("1"), answer_with("1")}},
                     {.answers = {answer_with("2"), answer_with("2")}},
                     {.answers = {answer_with("3"), answer_with("3")}},
                     {.answers = {answer_with("4")}}},
                    {.max_idle = max_idle});
    std::vector<std::string> order;
    const auto note = [&]() -> asio::awaitable<void> {
        auto got = co_await fetch(*bench.client);
        order.push_back(got);
    };
    bench.run([&]() -> asio::awaitable<void> {
        for (int i = 0; i < 3; ++i) {
            asio::co_spawn(bench.context, note(), asio::detached);
        }
        co_await test::until([&] { return order.size() == 3; });
        CHECK(bench.client->idle() == std::min<std::size_t>(max_idle, 3));
        co_await note();
    });
    CHECK(order[3] == (max_idle == 0 ? "4" : order[2]));
}

TEST_CASE("Options out of range are refused by name and value, a key without its value") {
    CHECK_THAT(why_options_are_refused({.connect_timeout = 0ns}),
               ContainsSubstring("connect_timeout") && ContainsSubstring("got 0 ns"));
    CHECK_THAT(why_options_are_refused({.first_byte_timeout = -1ns}),
               ContainsSubstring("first_byte_timeout") && ContainsSubstring("got -1 ns"));
    CHECK_THAT(why_options_are_refused({.idle_timeout = 25h}), ContainsSubstring("idle_timeout"));
    CHECK_THAT(why_options_are_refused({.idle_timeout = std::chrono::nanoseconds::max()}),
               ContainsSubstring("idle_timeout"));
    CHECK(why_options_are_refused({.connect_timeout = 1ns, .first_byte_timeout = 24h}).empty());
    for (const std::string bad : {"sk-1\r\nX: y", "sk 1", "sk-1\n", "sk-\x7f", "sk-\xc3\xa9"}) {
        const std::string message = why_options_are_refused({.bearer_token = bad});
        CHECK_THAT(message, ContainsSubstring("bearer_token") && !ContainsSubstring("sk"));
    }
}
