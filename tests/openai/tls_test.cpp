// SPDX-License-Identifier: BSL-1.0
#include "http_probes.hpp"
#include "raw_server.hpp"
#include "support/task.hpp"

#include <openai/http_client.hpp>
#include <openai/url.hpp>

#include <sluice/stage/verdict.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <chrono>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

#if OPENAI_HAS_TLS

#include "certificates.hpp"

namespace asio = boost::asio;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;
using Ending = test::RawScene::Ending;
using test::answer_with;
using test::failed_fetch;
using test::fetch;

namespace {

const test::Certificate& tls_authority() {
    static const test::Certificate certificate;
    return certificate;
}

// A server with a certificate for `names`, and a client that trusts its authority.
struct TlsBench {
    explicit TlsBench(std::vector<test::RawScene> scenes, const std::string& host = "127.0.0.1",
                      const std::string& names = "DNS:localhost,IP:127.0.0.1", long days = 1,
                      openai::HttpOptions options = {})
        : tls(test::Certificate(tls_authority(), names, days).server_context()),
          trusted(tls_authority().pem()),
          server(context, std::move(scenes), &tls) {
        options.ca_file = trusted.path();
        client.emplace(context.get_executor(), openai::parse_url(server.url(host)), std::move(options));
    }

    asio::io_context context{1};
    asio::ssl::context tls;
    test::TemporaryFile trusted;
    test::RawServer server;
    std::optional<openai::HttpClient> client;
};

sluice::ModelError tls_error_of(TlsBench& bench) {
    std::optional<sluice::ModelError> error;
    test::run_to_end(bench.context, bench.server, [&]() -> asio::awaitable<void> {
        error = co_await failed_fetch(*bench.client);
        CHECK(bench.client->idle() == 0);
        co_await test::until([&] { return bench.server.open() == 0; });
    });
    return error.value();
}

}  // namespace

TEST_CASE("A server with the right certificate is asked over TLS, and its connection kept") {
    const std::string host = GENERATE("127.0.0.1", "localhost");
    const std::string much(100'000, 'x');
    TlsBench bench({{.answers = {answer_with("1"), answer_with(much), answer_with("3")}}}, host);
    test::run_to_end(bench.context, bench.server, [&]() -> asio::awaitable<void> {
        const std::string first = co_await fetch(*bench.client);
        const std::string second = co_await fetch(*bench.client);
        auto post = bench.client->post("/x", much);
        openai::HttpResponse response = co_await std::move(post);
        const std::string third = co_await response.read();
        CHECK(first + second + third == "1" + much + "3");
        CHECK(bench.client->idle() == 1);
    });
    CHECK(bench.server.accepted() == 1);
    CHECK(bench.server.names() == std::vector<std::string>{host == "localhost" ? host : ""});
}

TEST_CASE("A certificate that is not valid for the host is refused, and no attempt will help") {
    struct Case {
        std::string host;
        std::string names;
        long days;
        std::string why;
    };
    const auto wrong = GENERATE(Case{"localhost", "DNS:example.com", 1, "ostname mismatch"},
                                Case{"localhost", "DNS:*.localhost,IP:127.0.0.1", 1, "ostname mismatch"},
                                Case{"127.0.0.1", "DNS:localhost,IP:127.0.0.2", 1, "IP address mismatch"},
                                Case{"127.0.0.1", "DNS:127.0.0.1", 1, "IP address mismatch"},
                                Case{"localhost", "DNS:localhost", -1, "expired"});
    TlsBench bench({{.answers = {answer_with("no")}}}, wrong.host, wrong.names, wrong.days);
    const auto error = tls_error_of(bench);
    CHECK_THAT(error.what(),
               ContainsSubstring(wrong.host + ":" + bench.server.port() + ": the server's certificate was refused: ") &&
                   ContainsSubstring(wrong.why));
    CHECK(error.verdict().kind == sluice::Verdict::exhausted);
    CHECK(bench.server.accepted() == 1);
    CHECK(bench.server.requests().empty());
}

TEST_CASE("A certificate from an authority that nobody trusts is refused") {
    TlsBench bench({{.answers = {answer_with("no")}}});
    const test::TemporaryFile other(test::Certificate().pem());
    const bool trusts_other = GENERATE(false, true);
    bench.client.emplace(bench.context.get_executor(), openai::parse_url(bench.server.url()),
                         openai::HttpOptions{.ca_file = trusts_other ? other.path() : ""});
    const auto error = tls_error_of(bench);
    CHECK_THAT(error.what(), ContainsSubstring("the server's certificate was refused: "));
    CHECK(error.verdict().kind == sluice::Verdict::exhausted);
    CHECK(bench.server.requests().empty());
}

TEST_CASE("A body that ends with the connection must end as TLS says, or it was cut off") {
    const bool proper = GENERATE(true, false);
    TlsBench bench(
        {{.answers = {"HTTP/1.1 200 OK\r\n\r\nhello"}, .ending = proper ? Ending::shut_down : Ending::close}});
    if (proper) {
        test::run_to_end(bench.context, bench.server, [&]() -> asio::awaitable<void> {
            const std::string answer = co_await fetch(*bench.client);
            CHECK(answer == "hello");
        });
    } else {
        const auto error = tls_error_of(bench);
        CHECK_THAT(error.what(), ContainsSubstring("the answer broke off: stream truncated"));
        CHECK(error.verdict().kind == sluice::Verdict::transient);
    }
}

TEST_CASE("A kept TLS connection that is closed is replaced without an error") {
    const Ending ending = GENERATE(Ending::close, Ending::reset, Ending::shut_down, Ending::close_on_request);
    TlsBench bench({{.answers = {answer_with("1")}, .ending = ending}, {.answers = {answer_with("2")}}});
    test::run_to_end(bench.context, bench.server, [&]() -> asio::awaitable<void> {
        const std::string first = co_await fetch(*bench.client);
        if (ending == Ending::close || ending == Ending::reset) {
            co_await test::until([&] { return bench.server.open() == 0; });
        }
        const std::string second = co_await fetch(*bench.client);
        CHECK(first + second == "12");
    });
    CHECK(bench.server.accepted() == 2);
}

TEST_CASE("A kept TLS connection on which the server has said something unasked is not used") {
    const std::string much(16384, 'x');  // as long as a record, so that the next one comes together with its end
    const std::string head = "HTTP/1.1 200 OK\r\nContent-Length: 16384\r\n\r\n";
    TlsBench bench({{.answers = {head, much + answer_with("unasked")}, .unasked = 1}, {.answers = {answer_with("2")}}});
    test::run_to_end(bench.context, bench.server, [&]() -> asio::awaitable<void> {
        auto post = bench.client->post("/x", "{}");
        openai::HttpResponse response = co_await std::move(post);
        bench.server.speak_unasked();
        co_await test::until([&] { return bench.server.sent() == 2; });
        const std::string first = co_await response.read();
        const std::string second = co_await fetch(*bench.client);
        CHECK(first == much);
        CHECK(second == "2");
    });
    CHECK(bench.server.accepted() == 2);
}

TEST_CASE("A server that does not speak TLS is a transient error") {
    asio::io_context context(1);
    test::RawServer server(context, {{.answers = {answer_with("plain text")}, .unasked = 0}});
    openai::HttpClient client(context.get_executor(), openai::parse_url("https://127.0.0.1:" + server.port()));
    test::run_to_end(context, server, [&]() -> asio::awaitable<void> {
        const sluice::ModelError error = co_await failed_fetch(client);
        CHECK_THAT(error.what(), ContainsSubstring("could not connect: wrong version number"));
        CHECK(error.verdict().kind == sluice::Verdict::transient);
    });
}

TEST_CASE("A server below TLS 1.2 is refused") {
    TlsBench bench({{.answers = {answer_with("old")}}});
    ::SSL_CTX_set_security_level(bench.tls.native_handle(), 0);
    ::SSL_CTX_set_min_proto_version(bench.tls.native_handle(), TLS1_VERSION);
    ::SSL_CTX_set_max_proto_version(bench.tls.native_handle(), TLS1_1_VERSION);
    const auto error = tls_error_of(bench);
    CHECK_THAT(error.what(), ContainsSubstring("could not connect: "));
    CHECK(bench.server.requests().empty());
}

TEST_CASE("The connect timeout covers the handshake, and cancelling ends it") {
    const bool cancelled = GENERATE(false, true);
    asio::io_context context(1);
    test::RawServer server(context, {{}});
    openai::HttpClient client(context.get_executor(), openai::parse_url("https://127.0.0.1:" + server.port()),
                              {.connect_timeout = cancelled ? std::chrono::nanoseconds(1h) : 20ms});
    test::Task<std::string> task(context.get_executor(), [&] { return fetch(client); });
    while (server.accepted() == 0) {
        context.run_one();
    }
    while (context.poll() != 0) {
    }
    if (cancelled) {
        task.cancel();
    }
    while (!task.done()) {
        context.run_one();
    }
    if (cancelled) {
        CHECK(task.aborted());
    } else {
        CHECK(task.failed_with<sluice::ModelError>());
    }
    while (server.open() != 0) {
        context.run_one();
    }
    server.close();
    context.run();
}

TEST_CASE("A file without certificates is named") {
    const test::TemporaryFile empty("no certificate\n");
    const bool there = GENERATE(false, true);
    const std::string file = there ? empty.path() : "/no/such/file.pem";
    asio::io_context context;
    try {
        openai::HttpClient(context.get_executor(), openai::parse_url("https://host"), {.ca_file = file});
        FAIL("it was accepted");
    } catch (const std::invalid_argument& error) {
        CHECK_THAT(error.what(), ContainsSubstring("'" + file + "': no certificates could be read"));
    }
}

#else

TEST_CASE("Without OpenSSL an https URL is refused") {
    boost::asio::io_context context;
    CHECK_THROWS_WITH(openai::HttpClient(context.get_executor(), openai::parse_url("https://host")),
                      Catch::Matchers::ContainsSubstring("built without OpenSSL"));
}

#endif
