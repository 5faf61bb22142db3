// SPDX-License-Identifier: BSL-1.0
#include "client_bench.hpp"
#include "protocol_probes.hpp"
#include "raw_server.hpp"

#include <openai/client.hpp>

#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cstddef>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

using Catch::Matchers::ContainsSubstring;
using Ending = test::RawScene::Ending;
using test::answer_with;

namespace {

constexpr std::string_view two_pieces =
    "data: {\"choices\":[{\"delta\":{\"content\":\"Hello, \"}}]}\n\n"
    "data: {\"choices\":[{\"delta\":{\"content\":\"you.\"},\"finish_reason\":\"stop\"}]}\n\n"
    "data: {\"choices\":[],\"usage\":{\"prompt_tokens\":5,\"completion_tokens\":3}}\n\n";
constexpr std::string_view end_of_stream = "data: [DONE]\n\n";

std::string stream_of(std::string_view events, bool ends = true) {
    std::string body = "HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\nTransfer-Encoding: chunked\r\n\r\n";
    for (; !events.empty(); events.remove_prefix(std::min<std::size_t>(events.size(), 10))) {
        const std::string_view chunk = events.substr(0, 10);
        body += (chunk.size() == 10 ? "a" : std::to_string(chunk.size())) + "\r\n" + std::string(chunk) + "\r\n";
    }
    return body + (ends ? "0\r\n\r\n" : "");
}

}  // namespace

TEST_CASE("A streamed chat is passed on piece by piece, and its connection is kept") {
    const std::size_t piece = GENERATE(0u, 1u, 30u);
    const std::string answer = stream_of(std::string(two_pieces) + std::string(end_of_stream));
    test::ClientBench bench({{.answers = {answer, answer}, .piece = piece}});
    for (int i = 0; i < 2; ++i) {
        bench.pieces.clear();
        const openai::ChatAnswer chat = bench.chat_stream();
        CHECK(chat.text == "Hello, you.");
        CHECK(chat.finish_reason == "stop");
        CHECK(bench.pieces == std::vector<std::string>{"Hello, ", "you."});
    }
    CHECK(bench.attempt.usages == std::vector<sluice::Cost>(2, {1, 5, 3}));
    CHECK(bench.server.accepted() == 1);
    CHECK_THAT(bench.server.requests().at(0), ContainsSubstring("Accept: text/event-stream\r\n"));
    bench.end();
}

TEST_CASE("A stream that goes on after its end costs its connection, not its answer") {
    const std::string events = std::string(two_pieces) + std::string(end_of_stream);
    const std::string answer = GENERATE_COPY(stream_of(events + std::string(100'000, '\n')), stream_of(events, false));
    const Ending ending = GENERATE(Ending::close, Ending::reset);
    test::ClientBench bench({{.answers = {answer}, .ending = ending}});
    const openai::ChatAnswer chat = bench.chat_stream();
    CHECK(chat.text == "Hello, you.");
    bench.run_until([&] { return bench.server.open() == 0; });
    bench.end();
}

TEST_CASE("A stream that fails before its first piece may be retried") {
    const std::string answer = GENERATE(answer_with("<html>"), stream_of("data: {}\n\n"), stream_of("data: {", false),
                                        stream_of("data: {\"error\":{\"message\":\"no\",\"code\":500}}\n\n"),
                                        std::string("HTTP/1.1 200 OK\r\n"));
    test::ClientBench bench({{.answers = {answer}, .ending = Ending::close}});
    const auto error = test::model_error_of([&] { bench.chat_stream(); });
    CHECK(error.verdict().kind == sluice::Verdict::transient);
    CHECK_THAT(error.what(), !ContainsSubstring("passed on"));
    CHECK(bench.pieces.empty());
    bench.end();
}

TEST_CASE("A stream that fails after its first piece is not retryable, and says how much had come") {
    const auto [answer, why] = GENERATE(
        std::pair{stream_of(two_pieces), "[DONE]"}, std::pair{stream_of(two_pieces, false), "the answer broke off"},
        std::pair{stream_of(std::string(two_pieces) + "data: {\n\n"), "JSON"},
        std::pair{stream_of(std::string(two_pieces) + "data: {\"error\":{\"message\":\"gone\",\"code\":503}}\n\n"),
                  "gone"});
    test::ClientBench bench({{.answers = {answer}, .ending = Ending::close}});
    const auto error = test::model_error_of([&] { bench.chat_stream(); });
    CHECK(error.verdict().kind == sluice::Verdict::invalid);
    CHECK_THAT(error.what(),
               ContainsSubstring("failed after 11 bytes of it had been passed on") && ContainsSubstring(why));
    CHECK(error.status() == (std::string_view(why) == "gone" ? 503 : error.status()));
    CHECK(bench.pieces.size() == 2);
    CHECK(bench.attempt.usages == std::vector<sluice::Cost>{{1, 5, 3}});  // which had come
    bench.end();
}

TEST_CASE("An error instead of a stream is known, however long it is") {
    const std::string text = R"({"error":{"message":")" + std::string(9000, 'm') + R"(","code":"insufficient_quota"}})";
    const std::size_t piece = GENERATE(0u, 1000u);
    test::ClientBench bench({{.answers = {answer_with(text)}, .piece = piece}});
    const auto error = test::model_error_of([&] { bench.chat_stream(); });
    CHECK(error.verdict().kind == sluice::Verdict::exhausted);
    CHECK(error.code() == "insufficient_quota");
    bench.end();
}

TEST_CASE("A ModelError of the reader of a stream comes out as it is") {
    struct OfReader : sluice::ModelError {
        using ModelError::ModelError;
    };
    test::ClientBench bench({{.answers = {stream_of(two_pieces, false)}}}, {.api_key = "sk-0123456789"});
    const auto ask = [&] {
        return bench.client->chat_stream(
            test::short_question(),
            [](std::string_view) { throw OfReader("not\nthis", {.kind = sluice::Verdict::throttled}); }, bench.attempt);
    };
    try {
        bench.result_of(ask);
        FAIL("nothing was thrown");
    } catch (const OfReader& error) {
        CHECK(std::string_view(error.what()) == "not\nthis");
        CHECK(error.verdict().kind == sluice::Verdict::throttled);
    }
    bench.run_until([&] { return bench.server.open() == 0; });
    bench.end();
}

TEST_CASE("What the reader of a stream throws ends it") {
    test::ClientBench bench({{.answers = {stream_of(two_pieces, false)}}});
    bench.throws_at_piece = true;
    CHECK_THROWS_WITH(bench.chat_stream(), "enough");
    CHECK(bench.pieces.size() == 1);
    bench.run_until([&] { return bench.server.open() == 0; });
    bench.end();
}
