// SPDX-License-Identifier: BSL-1.0
#include "client_bench.hpp"
#include "protocol_probes.hpp"
#include "raw_server.hpp"

#include <openai/client.hpp>

#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>

#include <boost/asio/io_context.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <chrono>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using Catch::Matchers::ContainsSubstring;
using Ending = test::RawScene::Ending;
using test::answer_with;

namespace {

constexpr std::string_view whole_chat =
    R"({"choices":[{"message":{"role":"assistant","content":"Hi."},"finish_reason":"stop"}],)"
    R"("usage":{"prompt_tokens":5,"completion_tokens":2}})";

std::string status_with(const std::string& status, const std::string& headers, std::string_view body) {
    return "HTTP/1.1 " + status + "\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + headers + "\r\n" +
           std::string(body);
}

}  // namespace

TEST_CASE("A chat is asked for and read as a whole, and reports usage and rates") {
    test::ClientBench bench({{.answers = {answer_with(std::string(whole_chat),
                                                      "x-ratelimit-remaining-requests: 0\r\n"
                                                      "x-ratelimit-limit-requests: 9\r\n"
                                                      "x-ratelimit-reset-requests: 2s\r\n")}}},
                            {.api_key = "sk-1"});
    const openai::ChatAnswer answer = bench.chat();
    CHECK(answer.text == "Hi.");
    CHECK(answer.finish_reason == "stop");
    CHECK(bench.attempt.usages == std::vector<sluice::Cost>{{1, 5, 2}});
    CHECK(bench.attempt.pauses == std::vector<std::chrono::nanoseconds>{2s});
    const std::string& request = bench.server.requests().at(0);
    CHECK_THAT(request, ContainsSubstring("POST /v1/chat/completions HTTP/1.1\r\n") &&
                            ContainsSubstring("Authorization: Bearer sk-1\r\n") &&
                            ContainsSubstring("Accept: application/json\r\n") && ContainsSubstring("Well?"));
    bench.end();
}

TEST_CASE("Vectors are asked for and read") {
    test::ClientBench bench(
        {{.answers = {answer_with(R"({"data":[{"index":1,"embedding":[3,4]},{"index":0,"embedding":[1,2]}],)"
                                  R"("usage":{"prompt_tokens":7}})")}}});
    const auto embeddings = bench.result_of([&] { return bench.client->embed("m", {"a", "b"}, bench.attempt); });
    CHECK(embeddings.vectors == std::vector<std::vector<float>>{{1, 2}, {3, 4}});
    CHECK(bench.attempt.usages == std::vector<sluice::Cost>{{1, 7, 0}});
    CHECK_THAT(bench.server.requests().at(0), ContainsSubstring("POST /v1/embeddings HTTP/1.1\r\n"));
    bench.end();
}

TEST_CASE("Another status than 200 is the error of the server") {
    const std::string body = R"({"error":{"message":"slow down","code":"rate_limit_exceeded"}})";
    const std::string answer = status_with("429 Too Many Requests",
                                           "retry-after-ms: 1500\r\nx-ratelimit-remaining-requests: 0\r\n"
                                           "x-ratelimit-limit-requests: 9\r\nx-ratelimit-reset-requests: 2s\r\n",
                                           body);
    const bool streamed = GENERATE(false, true);
    test::ClientBench bench({{.answers = {answer, answer_with(std::string(whole_chat))}}});
    const auto error = test::model_error_of([&] { streamed ? bench.chat_stream() : bench.chat(); });
    CHECK(error.verdict().kind == sluice::Verdict::throttled);
    CHECK(error.verdict().retry_after == 1500ms);
    CHECK(error.status() == 429);
    CHECK(error.code() == "rate_limit_exceeded");
    CHECK_THAT(error.what(), ContainsSubstring("slow down"));
    CHECK(bench.attempt.pauses == std::vector<std::chrono::nanoseconds>{2s});
    CHECK(bench.chat().text == "Hi.");
    CHECK(bench.server.accepted() == 1);
    bench.end();
}

TEST_CASE("The key is in no error, even if the server repeats it") {
    const std::string key = "sk-0123456789";
    const std::string text = R"({"error":{"message":"no such key: sk-0123456789","code":"sk-0123456789"}})";
    const auto [answer, streamed] =
        GENERATE_COPY(std::pair(status_with("401 No", "", text), false),
                      std::pair(status_with("308 Gone", "Location: /?key=" + key + "\r\n", ""), false),
                      std::pair(answer_with("<html>" + key), false), std::pair(answer_with(text), false),
                      std::pair(answer_with("data: " + text + "\n\n", "Content-Type: text/event-stream\r\n"), true),
                      std::pair(status_with("401 No", "", std::string(990, 'x') + key + std::string(99, 'x')), false));
    test::ClientBench bench({{.answers = {answer}}}, {.api_key = key});
    const auto error = test::model_error_of([&, stream = streamed] { stream ? bench.chat_stream() : bench.chat(); });
    CHECK_THAT(error.what(), !ContainsSubstring("sk-0"));
    CHECK_THAT(error.what(), ContainsSubstring("[hidden]"));
    CHECK_THAT(error.code().str(), !ContainsSubstring("sk-0"));
    bench.end();
}

TEST_CASE("The key is in no error, wherever it was given") {
    const std::string text = R"({"error":{"message":"no such key: sk-0123456789","code":"sk-0123456789"}})";
    test::ClientBench bench({{.answers = {answer_with(text)}}}, {.http = {.bearer_token = "sk-0123456789"}});
    const auto error = test::model_error_of([&] { bench.chat(); });
    CHECK_THAT(error.what(), !ContainsSubstring("sk-0"));
    CHECK(error.code() == "[hidden]");
    bench.end();
}

TEST_CASE("The key is in no error, however the server writes it") {
    const std::string key = "sk-01/2345678\"9\\";
    const std::string written =
        GENERATE(R"(sk-01/2345678"9\)", R"(sk-01\/2345678\"9\\)", R"(\u0073k\u002D01\u002f2345678\u00229\u005C)",
                 R"(sk-01%2F2345678%229%5c)", R"(sk-01&#x2F;2345678&#34;9&#x5c;)");
    const std::string body = GENERATE_COPY(R"({"detail":")" + written + R"(."})", "{" + std::string(180, ' ') + written,
                                           "<p>" + written + " and " + written);
    CAPTURE(body);
    test::ClientBench bench({{.answers = {answer_with(body)}}}, {.api_key = key});
    const auto error = test::model_error_of([&] { bench.chat(); });
    CHECK_THAT(error.what(), !ContainsSubstring("01"));
    CHECK_THAT(error.what(), !ContainsSubstring("2345"));
    CHECK_THAT(error.what(), ContainsSubstring("[hidden]"));
    bench.end();
}

TEST_CASE("Hiding a key does not make an error long") {
    test::ClientBench bench({{.answers = {status_with("400 No", "", std::string(1000, 'x'))}}}, {.api_key = "x"});
    const auto error = test::model_error_of([&] { bench.chat(); });
    CHECK_THAT(error.what(), ContainsSubstring("[hidden][hidden]"));
    CHECK(std::string_view(error.what()).size() <= 1024);
    bench.end();
}

TEST_CASE("An error is known by its status even if its body is long, broken off or too long") {
    const std::string answer = GENERATE(status_with("401 No", "", std::string(1'000'000, 'x')),
                                        std::string("HTTP/1.1 401 No\r\nContent-Length: 99\r\n\r\npart"),
                                        std::string("HTTP/1.1 401 No\r\nContent-Length: 1073741824\r\n\r\npart"),
                                        std::string("HTTP/1.1 401 No\r\nTransfer-Encoding: chunked\r\n\r\nzz\r\n"));
    test::ClientBench bench({{.answers = {answer}, .ending = Ending::close}});
    const auto error = test::model_error_of([&] { bench.chat(); });
    CHECK(error.status() == 401);
    CHECK(error.verdict().kind == sluice::Verdict::exhausted);
    CHECK(std::string_view(error.what()).size() <= 1024);
    bench.end();
}

TEST_CASE("A whole answer that breaks off is transient") {
    const std::string answer = answer_with(std::string(whole_chat));
    test::ClientBench bench({{.answers = {answer.substr(0, answer.size() - 1)}, .ending = Ending::close}});
    const auto error = test::model_error_of([&] { bench.chat(); });
    CHECK(error.verdict().kind == sluice::Verdict::transient);
    CHECK(error.status() == 0);
    bench.end();
}

TEST_CASE("A request that cannot be written is not sent") {
    test::ClientBench bench({test::RawScene()});
    openai::ChatRequest request = test::short_question();
    request.messages[0].content = "\xff";
    const auto error = test::model_error_of([&] { std::ignore = bench.client->chat(request, bench.attempt); });
    CHECK(error.verdict().kind == sluice::Verdict::invalid);
    CHECK(bench.server.accepted() == 0);
    bench.end();
}

TEST_CASE("Calls may outlive the client and their arguments") {
    test::ClientBench bench({{.answers = {answer_with(std::string(whole_chat))}}});
    auto call = [&] { return bench.client->chat(test::short_question(), bench.attempt); }();
    bench.client.reset();
    const openai::ChatAnswer answer = bench.result_of([&] { return std::move(call); });
    CHECK(answer.text == "Hi.");
    bench.end();
}

TEST_CASE("A client refuses a bad URL and a bad key, which it does not show") {
    asio::io_context context;
    CHECK_THROWS_WITH(openai::Client(context.get_executor(), "localhost"), ContainsSubstring("'localhost'"));
    CHECK_THROWS_WITH(openai::Client(context.get_executor(), "http://localhost", {.api_key = "sk-1\r\n"}),
                      ContainsSubstring("bearer_token") && !ContainsSubstring("sk-1"));
}
