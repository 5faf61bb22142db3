// SPDX-License-Identifier: BSL-1.0
#include "http_probes.hpp"
#include "raw_server.hpp"

#include <openai/http_client.hpp>
#include <openai/url.hpp>

#include <sluice/stage/verdict.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <cstddef>
#include <string>

namespace asio = boost::asio;
using Catch::Matchers::ContainsSubstring;
using Ending = test::RawScene::Ending;
using test::answer_with;
using test::error_of_only_request;

namespace {

std::string chunked_answer(const std::string& chunks) {
    return "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + chunks;
}

}  // namespace

TEST_CASE("An answer that breaks off is an error") {
    const std::string head = "HTTP/1.1 200 OK\r\nContent-Length: 9\r\n";
    const std::string bytes =
        GENERATE_COPY(head, head + "\r\n", head + "\r\npart", chunked_answer(""), chunked_answer("5\r\nhel"),
                      chunked_answer("5\r\nhello\r\n"), chunked_answer("5\r\nhello\r\n0\r\n"),
                      std::string("HTTP/1.1 100 Continue\r\n\r\n"));
    const Ending ending = GENERATE(Ending::close, Ending::reset);
    const auto error = error_of_only_request({.answers = {bytes}, .ending = ending});
    CHECK_THAT(error.what(), ContainsSubstring("the answer broke off") &&
                                 ContainsSubstring(ending == Ending::close ? "the connection was closed" : "reset"));
}

TEST_CASE("An answer above a limit is an error before it is there") {
    const auto error_of_long = [](const std::string& answer, const openai::HttpOptions& options) {
        return error_of_only_request({.answers = {answer}}, options, sluice::Verdict::invalid);
    };
    CHECK_THAT(error_of_long("HTTP/1.1 200 OK\r\nContent-Length: 1073741824\r\n\r\n", {}).what(),
               ContainsSubstring("the answer is longer than 268435456 bytes"));
    std::string chunks;
    for (int i = 0; i < 101; ++i) {
        chunks += "a\r\n0123456789\r\n";
    }
    for (const std::string& answer : {answer_with(std::string(1001, 'x')), chunked_answer(chunks),
                                      "HTTP/1.1 200 OK\r\n\r\n" + std::string(1001, 'x')}) {
        CHECK_THAT(error_of_long(answer, {.max_body = 1000}).what(),
                   ContainsSubstring("the answer is longer than 1000 bytes"));
    }
    std::string interim;
    for (int i = 0; i < 101; ++i) {
        interim += "HTTP/1.1 100 Continue\r\n\r\n";
    }
    CHECK_THAT(error_of_only_request({.answers = {interim}}).what(),
               ContainsSubstring("more than 100 interim answers"));
    const std::string much(100'000, 'x');
    CHECK_THAT(error_of_only_request({.answers = {"HTTP/1.1 200 OK\r\nX: " + much}}).what(),
               ContainsSubstring("the header of the answer is longer than 32768 bytes"));
    // Newer versions of Beast have limits of their own.
    CHECK_THAT(error_of_only_request({.answers = {chunked_answer("1;" + much)}}).what(),
               ContainsSubstring("too long") || ContainsSubstring("bad chunk extension"));
    CHECK_THAT(error_of_only_request({.answers = {chunked_answer("0\r\nX: " + much)}}).what(),
               ContainsSubstring("too long") || ContainsSubstring("longer than 32768 bytes"));
}

TEST_CASE("What is not HTTP is an error") {
    const std::string bytes = GENERATE(
        as<std::string>(), "SSH-2.0-OpenSSH_9.2\r\n\r\n", "<html>no</html>\r\n\r\n", "HTTP/1.1 abc\r\n\r\n",
        "HTTP/9.9 200 OK\r\n\r\n", "HTTP/1.1 200 OK\r\nContent-Length: -1\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "HTTP/1.1 200 OK\r\nno colon\r\n\r\n",
        "HTTP/1.1 200 OK\r\nContent-Length: 99999999999999999999\r\n\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFFF\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n",
        "HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n1\r\nxx\r\n0\r\n\r\n");
    CHECK_THAT(error_of_only_request({.answers = {bytes}}).what(), ContainsSubstring("the answer is not valid HTTP: "));
}

TEST_CASE("A server may refuse a request before it has read all of it") {
    asio::io_context context(1);
    test::RawServer server(context, {{.answers = {"HTTP/1.1 413 Too Large\r\nContent-Length: 3\r\n\r\nbig"},
                                      .ending = Ending::close,
                                      .unasked = 0}});
    openai::HttpClient client(context.get_executor(), openai::parse_url(server.url()));
    test::run_to_end(context, server, [&]() -> asio::awaitable<void> {
        auto post = client.post("/x", std::string(std::size_t{16} << 20, 'x'));
        openai::HttpResponse response = co_await std::move(post);
        const std::string body = co_await response.read();
        CHECK(response.status() == 413);
        CHECK(body == "big");
        CHECK(client.idle() == 0);
    });
    CHECK(server.accepted() == 1);
}
