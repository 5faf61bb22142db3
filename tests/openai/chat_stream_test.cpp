// SPDX-License-Identifier: BSL-1.0
#include "openai/chat_stream.hpp"

#include "protocol_probes.hpp"

#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace {

using openai::ChatStream;
using sluice::Verdict;
using test::stream_outcome;
using test::StreamOutcome;

std::string event(std::string_view data) { return "data: " + std::string(data) + "\n\n"; }

std::string delta_event(std::string_view delta) {
    return event(R"({"choices":[{"index":0,"delta":)" + std::string(delta) + R"(,"finish_reason":null}]})");
}

std::string piece_event(std::string_view text) { return delta_event(R"({"content":")" + std::string(text) + "\"}"); }

const std::string done_event = event("[DONE]");
const std::string usual_stream =
    delta_event(R"({"role":"assistant","content":null})") + piece_event("Gr\\u00fc\\u00df ") + piece_event("dich.") +
    event(R"({"choices":[{"index":0,"delta":{},"finish_reason":"stop"}]})") +
    event(R"({"choices":[],"usage":{"prompt_tokens":3,"completion_tokens":4,"total_tokens":7}})") + done_event;

// The text of a stream that must be a whole one.
std::string text_of_stream(const std::string& body) {
    const StreamOutcome outcome = stream_outcome(body);
    CHECK(outcome.error.empty());
    return outcome.answer ? outcome.answer->text : "no answer";
}

std::string error_of_stream(const std::string& body) { return stream_outcome(body).error; }

}  // namespace

TEST_CASE("ChatStream: the pieces, the text, the reason and the usage", "[openai]") {
    const StreamOutcome outcome = stream_outcome(usual_stream);
    CHECK(outcome.error.empty());
    CHECK(outcome.pieces == "Gr\xC3\xBC\xC3\x9F \ndich.\n");
    CHECK(outcome.done);
    CHECK(outcome.delivered == 12);
    REQUIRE(outcome.answer);
    CHECK(outcome.answer->text == "Gr\xC3\xBC\xC3\x9F dich.");
    CHECK(outcome.answer->finish_reason == "stop");
    CHECK(outcome.answer->usage == sluice::Cost{.requests = 1, .input_tokens = 3, .output_tokens = 4});
}

TEST_CASE("ChatStream: pieces come as soon as their event has ended", "[openai]") {
    ChatStream stream;
    std::string text;
    const openai::OnPiece on_piece = [&](std::string_view piece) { text += piece; };
    const std::string first = piece_event("a");
    stream.feed(first.substr(0, first.size() - 1), on_piece);
    CHECK(text.empty());
    CHECK(stream.delivered() == 0);
    stream.feed("\n", on_piece);
    CHECK(text == "a");
    CHECK(stream.delivered() == 1);
    CHECK_FALSE(stream.done());
    stream.feed(done_event, on_piece);
    CHECK(stream.done());
}

TEST_CASE("ChatStream: what an event may lack", "[openai]") {
    for (const std::string_view data :
         {R"({})", R"({"choices":null})", R"({"choices":[]})", R"({"choices":[{}]})", R"({"choices":[null]})",
          R"({"choices":[{"delta":null}]})", R"({"choices":[{"delta":{}}]})",
          R"({"choices":[{"delta":{"content":null}}]})", R"({"choices":[{"delta":{"content":""}}]})",
          R"({"error":null,"usage":null,"choices":[{"finish_reason":null}]})", "", " "}) {
        INFO(data);
        const StreamOutcome outcome = stream_outcome(piece_event("a") + event(data) + piece_event("b") + done_event);
        CHECK(outcome.error.empty());
        CHECK(outcome.pieces == "a\nb\n");
    }
    CHECK(text_of_stream(done_event).empty());
}

TEST_CASE("ChatStream: nothing counts after [DONE]", "[openai]") {
    CHECK(text_of_stream(piece_event("a") + done_event + piece_event("b") + event("garbage")) == "a");
    CHECK(text_of_stream(piece_event("a") + done_event + "data: " + std::string(2'000'000, 'x')) == "a");
    ChatStream stream;
    const auto ignore = [](std::string_view) {};
    stream.feed(done_event, ignore);
    stream.feed(event(R"({"error":{}})") + std::string(2'000'000, 'x'), ignore);
    CHECK(std::move(stream).finish().text.empty());
}

TEST_CASE("ChatStream: the last event need not end", "[openai]") {
    for (const std::string_view end : {"data: [DONE]", "data: [DONE]\n", "data: [DONE]\r", "data: [DONE]\r\n",
                                       "data:[DONE]", "id: 1\ndata: [DONE]\r\n\r"}) {
        CHECK(text_of_stream(piece_event("a") + std::string(end)) == "a");
    }
}

TEST_CASE("ChatStream: a body that ends without [DONE] is a transient error", "[openai]") {
    constexpr std::string_view after_one = "the stream ended without [DONE], after 1 bytes of text|transient|200|";
    CHECK(error_of_stream(piece_event("a")) == after_one);
    CHECK(error_of_stream(piece_event("a") + piece_event("b").substr(0, 20)) == after_one);
    CHECK(error_of_stream(piece_event("a") + piece_event("b").substr(0, piece_event("b").size() - 1)) == after_one);
    CHECK(error_of_stream(piece_event("a") + "data: [DONE") == after_one);
    CHECK(error_of_stream(piece_event("a") + "[DONE]\n\n") == after_one);
    for (std::size_t size = piece_event("").size(); size != usual_stream.size() - done_event.size(); ++size) {
        REQUIRE(error_of_stream(usual_stream.substr(0, size)).find("without [DONE]") != std::string::npos);
    }
}

TEST_CASE("ChatStream: an error in the stream", "[openai]") {
    const StreamOutcome outcome =
        stream_outcome(piece_event("a") + event(R"({"error":{"message":"engine\nlost","code":503}})") + done_event);
    CHECK(outcome.error == "the answer reports an error (503): engine\\nlost|overloaded|503|503");
    CHECK(outcome.pieces == "a\n");
    CHECK(outcome.delivered == 1);
    CHECK_FALSE(outcome.done);
    CHECK(error_of_stream(event(R"({"error":{"message":"x","code":"insufficient_quota"},"choices":[]})")) ==
          "the answer reports an error (insufficient_quota): x|exhausted|200|insufficient_quota");
    CHECK(error_of_stream(event(R"({"error":"gone"})")) == "the answer reports an error: gone|transient|200|");
    CHECK(error_of_stream("event: error\n" + event(R"({"error":{"type":"rate_limit_error","message":"x"}})")) ==
          "the answer reports an error (rate_limit_error): x|throttled|200|rate_limit_error");
}

TEST_CASE("ChatStream: an error in the last event counts, though the event does not end", "[openai]") {
    const std::string data = R"(data: {"error":{"message":"too long","code":"context_length_exceeded"}})";
    for (const std::string_view end : {"", "\n", "\r\n"}) {
        const StreamOutcome outcome = stream_outcome(piece_event("a") + data + std::string(end));
        CHECK(outcome.error ==
              "the answer reports an error (context_length_exceeded): too long|invalid|200|"
              "context_length_exceeded");
        CHECK(outcome.pieces == "a\n");
    }
    CHECK(error_of_stream(data).find("too long|invalid") != std::string::npos);
    CHECK(error_of_stream(data.substr(0, data.size() - 1)).find("without [DONE]") != std::string::npos);
}

TEST_CASE("ChatStream: malformed events are transient errors", "[openai]") {
    const auto problem_of = [](std::string_view data) {
        const std::string error = error_of_stream(piece_event("a") + event(data) + done_event);
        CHECK(error.ends_with("; it begins with " + std::string(data) + "|transient|200|"));
        return error.substr(0, error.rfind("; it"));
    };
    CHECK(problem_of("hello").starts_with("the answer is not JSON ("));
    CHECK(problem_of(R"({"choices":)").starts_with("the answer is not JSON ("));
    CHECK(problem_of("[DONE] ").starts_with("the answer is not JSON ("));
    CHECK(problem_of("[]") == "the answer is not a JSON object");
    CHECK(problem_of(R"({"choices":{}})") == "choices of an event is not an array");
    CHECK(problem_of(R"({"choices":[5]})") == "choices[0] of an event is no object");
    CHECK(problem_of(R"({"choices":[{"delta":"a"}]})") == "choices[0].delta of an event is no object");
    CHECK(problem_of(R"({"choices":[{"delta":{"content":["a"]}}]})") ==
          "choices[0].delta.content of an event is not a string");
}

TEST_CASE("ChatStream: a body that is no stream is a transient error", "[openai]") {
    CHECK(error_of_stream("<html>\n<body>Bad Gateway</body>").starts_with("the answer is not JSON ("));
    CHECK(error_of_stream("<html>\n<body>Bad Gateway</body>")
              .ends_with("; it begins with <html>\\n<body>Bad Gateway</body>|transient|200|"));
    CHECK(error_of_stream(R"({"choices":[{"message":{"content":"a"}}]})")
              .starts_with("the answer is not a stream of events; it begins with {\"choices\""));
    CHECK(error_of_stream("").ends_with("; it is empty|transient|200|"));
    CHECK(error_of_stream(": ping\n\n").find("it begins with : ping\\n\\n|transient") != std::string::npos);
    CHECK(error_of_stream(R"({"error":{"message":"no","type":"authentication_error"}})") ==
          "the answer reports an error (authentication_error): no|exhausted|200|authentication_error");
    CHECK(error_of_stream(std::string(2'000'000, '<')).starts_with("the stream has a line of more than"));
}

TEST_CASE("ChatStream: the text is bounded", "[openai]") {
    const std::string text(std::size_t{1} << 19, 'x');
    const std::string body = piece_event(text);
    ChatStream stream;
    const auto ignore = [](std::string_view) {};
    for (std::size_t size = 0; size != ChatStream::max_text; size += text.size()) {
        stream.feed(body, ignore);
    }
    CHECK(stream.delivered() == ChatStream::max_text);
    const auto error = test::model_error_of([&] { stream.feed(piece_event("x"), ignore); });
    CHECK(std::string(error.what()) == "the answer has more than 67108864 bytes of text");
    CHECK(error.verdict().kind == Verdict::invalid);
    CHECK(stream.delivered() == ChatStream::max_text);
}

TEST_CASE("ChatStream: an exception of the callback comes out, and its piece counts as delivered", "[openai]") {
    ChatStream stream;
    CHECK_THROWS_AS(stream.feed(piece_event("ab"), [](std::string_view) { throw std::runtime_error("no"); }),
                    std::runtime_error);
    CHECK(stream.delivered() == 2);
}

TEST_CASE("ChatStream: it does not matter where the body is split", "[openai]") {
    std::string crlf;
    for (const char c : usual_stream) {
        crlf += c == '\n' ? "\r\n" : std::string(1, c);
    }
    std::mt19937 random(3);
    for (const std::string& body :
         {usual_stream, crlf, "\xEF\xBB\xBF" + crlf, piece_event("a") + event(R"({"error":"x"})"), piece_event("a"),
          std::string("<html>\n\n</html>"), piece_event("a") + "data: [DONE]\r"}) {
        const StreamOutcome expected = stream_outcome(body);
        CHECK(stream_outcome(body, [] { return 1; }) == expected);
        for (std::size_t first = 1; first != body.size(); ++first) {
            bool second = false;
            const auto two = [&] { return std::exchange(second, true) ? body.size() : first; };
            REQUIRE(stream_outcome(body, two) == expected);
        }
        for (int round = 0; round != 300; ++round) {
            REQUIRE(stream_outcome(body, [&] { return 1 + random() % 50; }) == expected);
        }
    }
}
