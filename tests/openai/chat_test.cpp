// SPDX-License-Identifier: BSL-1.0
#include "openai/chat.hpp"

#include "protocol_probes.hpp"

#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <catch2/catch_test_macros.hpp>

#include <limits>
#include <string>
#include <string_view>

namespace {

using openai::chat_body;
using openai::ChatAnswer;
using openai::ChatRequest;
using openai::parse_chat;
using sluice::Verdict;

const ChatRequest small_request{.model = "m",
                                .messages = {{"system", "Be brief."}, {"user", "Why?\n\"\xE2\x82\xAC\""}}};

std::string with_message(std::string_view message) {
    return R"({"choices":[{"index":0,"message":)" + std::string(message) + R"(,"finish_reason":"stop"}]})";
}

std::string with_usage(std::string_view usage) {
    return R"({"choices":[{"message":{"content":"a"}}],"usage":)" + std::string(usage) + "}";
}

// The message of the error that a malformed answer is, which is transient.
std::string chat_error(std::string_view body) {
    const auto error = test::model_error_of([&] { parse_chat(body); });
    CHECK(error.verdict().kind == Verdict::transient);
    CHECK_FALSE(error.verdict().retry_after);
    CHECK(error.status() == 200);
    CHECK(error.code().empty());
    return error.what();
}

}  // namespace

TEST_CASE("chat_body(): a request as JSON", "[openai]") {
    CHECK(boost::json::parse(chat_body(small_request, false)) == boost::json::parse(R"({"model": "m", "messages": [
        {"role": "system", "content": "Be brief."}, {"role": "user", "content": "Why?\n\"€\""}]})"));
    ChatRequest request = small_request;
    request.max_tokens = 5;
    request.temperature = 0.25;
    const auto body = boost::json::parse(chat_body(request, false));
    CHECK(body.at("max_tokens") == 5);
    CHECK(body.at("temperature") == 0.25);
    request.model.clear();
    CHECK_FALSE(boost::json::parse(chat_body(request, false)).as_object().contains("model"));
}

TEST_CASE("chat_body(): a streamed answer is to report the usage", "[openai]") {
    const auto body = boost::json::parse(chat_body(small_request, true));
    CHECK(body.at("stream") == true);
    CHECK(body.at("stream_options") == boost::json::value{{"include_usage", true}});
    CHECK_FALSE(boost::json::parse(chat_body(small_request, false)).as_object().contains("stream"));
}

TEST_CASE("chat_body(): what cannot be sent is refused", "[openai]") {
    const auto error_of_request = [](const ChatRequest& request) {
        const auto error = test::model_error_of([&] { chat_body(request, false); });
        CHECK(error.verdict().kind == Verdict::invalid);
        return std::string(error.what());
    };
    ChatRequest request = small_request;
    request.messages[1].content = "ab\xFF";
    CHECK(error_of_request(request) == "messages[1].content is not UTF-8: byte 0xff at offset 2");
    request = small_request;
    request.messages[0].role = "\x80";
    CHECK(error_of_request(request) == "messages[0].role is not UTF-8: byte 0x80 at offset 0");
    request = small_request;
    request.model = "\x80";
    CHECK(error_of_request(request) == "the model's name is not UTF-8: byte 0x80 at offset 0");
    request = small_request;
    request.temperature = std::numeric_limits<double>::infinity();
    CHECK(error_of_request(request) == "temperature must be finite, got inf");
    request.temperature = std::numeric_limits<double>::quiet_NaN();
    CHECK(error_of_request(request) == "temperature must be finite, got nan");
}

TEST_CASE("parse_chat(): text, reason and usage", "[openai]") {
    const ChatAnswer answer = parse_chat(R"({"id":"x","object":"chat.completion","choices":[{"index":0,"message":
        {"role":"assistant","content":"Gr\u00fc\u00df dich.\n"},"logprobs":null,"finish_reason":"length"}],
        "usage":{"prompt_tokens":12,"completion_tokens":34,"total_tokens":46}})");
    CHECK(answer.text == "Gr\xC3\xBC\xC3\x9F dich.\n");
    CHECK(answer.finish_reason == "length");
    CHECK(answer.usage == sluice::Cost{.requests = 1, .input_tokens = 12, .output_tokens = 34});
}

TEST_CASE("parse_chat(): what may be missing", "[openai]") {
    CHECK(parse_chat(with_message(R"({"content":null})")).text.empty());
    CHECK(parse_chat(with_message("{}")).text.empty());
    const ChatAnswer answer = parse_chat(R"({"choices":[{"message":{"content":"a"}}], "error": null})");
    CHECK(answer.text == "a");
    CHECK(answer.finish_reason.empty());
    CHECK_FALSE(answer.usage);
    CHECK(parse_chat(R"({"choices":[{"message":{"content":"a"},"finish_reason":null}]})").finish_reason.empty());
}

TEST_CASE("parse_chat(): only sensible usage is reported", "[openai]") {
    CHECK(parse_chat(with_usage(R"({"prompt_tokens":1e3,"completion_tokens":0})")).usage == sluice::Cost{1, 1000, 0});
    CHECK(parse_chat(with_usage(R"({"prompt_tokens":7})")).usage == sluice::Cost{1, 7, 0});
    CHECK(parse_chat(with_usage(R"({"prompt_tokens":1000000000000000})")).usage);
    for (const std::string_view usage :
         {"null", "7", "[]", "{}", R"({"completion_tokens":3})", R"({"prompt_tokens":-1,"completion_tokens":3})",
          R"({"prompt_tokens":1,"completion_tokens":-3})", R"({"prompt_tokens":1.5,"completion_tokens":3})",
          R"({"prompt_tokens":"1","completion_tokens":3})", R"({"prompt_tokens":1,"completion_tokens":"3"})",
          R"({"prompt_tokens":1e300,"completion_tokens":3})", R"({"prompt_tokens":1000000000000001})",
          R"({"prompt_tokens":18446744073709551615})"}) {
        INFO(usage);
        CHECK_FALSE(parse_chat(with_usage(usage)).usage);
    }
}

TEST_CASE("parse_chat(): what is no answer is a transient error that shows its beginning", "[openai]") {
    CHECK(chat_error("").ends_with("; it is empty"));
    CHECK(chat_error("<html>\n<title>502 Bad Gateway").starts_with("the answer is not JSON ("));
    CHECK(chat_error("<html>\n<title>502 Bad Gateway").ends_with("; it begins with <html>\\n<title>502 Bad Gateway"));
    CHECK(chat_error(with_message(R"({"content":"a"})").substr(0, 40)).starts_with("the answer is not JSON ("));
    CHECK(chat_error(with_message(R"({"content":"a"})") + "x").starts_with("the answer is not JSON ("));
    CHECK(chat_error(with_message("{\"content\":\"\xFF\"}")).starts_with("the answer is not JSON ("));
    CHECK(chat_error("[1]") == "the answer is not a JSON object; it begins with [1]");
    CHECK(chat_error("\"text\"") == "the answer is not a JSON object; it begins with \"text\"");
    CHECK(chat_error("{}") == "the answer has no choices; it begins with {}");
    CHECK(chat_error(R"({"choices":null})").starts_with("the answer has no choices; "));
    CHECK(chat_error(R"({"choices":[]})").starts_with("the answer has no choices; "));
    CHECK(chat_error(R"({"choices":{}})").starts_with("the answer has no choices; "));
    CHECK(chat_error(R"({"choices":[1]})").starts_with("the answer has no choices[0].message; "));
    CHECK(chat_error(R"({"choices":[{}]})").starts_with("the answer has no choices[0].message; "));
    CHECK(chat_error(with_message("[]")).starts_with("the answer has no choices[0].message; "));
    CHECK(chat_error(with_message(R"({"content":5})"))
              .starts_with("choices[0].message.content of the answer is not a string; "));
    const std::string message = chat_error(std::string(1'000'000, '\x1B'));
    CHECK(message.size() < 400);
    CHECK(test::is_printable(message));
}

TEST_CASE("parse_chat(): an answer that is nested too deeply is refused", "[openai]") {
    const std::string nested = std::string(30, '[') + std::string(30, ']');
    CHECK(parse_chat(R"({"choices":[{"message":{"content":"a"}}],"x":)" + nested + "}").text == "a");
    CHECK(chat_error(R"({"choices":[{"message":{"content":"a"}}],"x":[[)" + nested + "]]}").find("not JSON") !=
          std::string::npos);
    CHECK_THROWS_AS(parse_chat(std::string(1'000'000, '[')), sluice::ModelError);
    CHECK_THROWS_AS(parse_chat(R"({"a":)" + std::string(1'000'000, '[')), sluice::ModelError);
}

TEST_CASE("parse_chat(): the values of an answer are bounded", "[openai]") {
    std::string body = R"({"choices":[{"message":{"content":"a"}}],"x":[)";
    for (int i = 0; i != 8'388'610; ++i) {
        body += "0,";
    }
    CHECK(chat_error(body + "0]}").starts_with("the answer has more than 8388608 values; it begins with {"));
}

TEST_CASE("parse_chat(): an error with status 200 is the error", "[openai]") {
    const auto error = test::model_error_of(
        [] { parse_chat(R"({"error":{"message":"Slow down","code":429,"type":"too_many"},"choices":[]})"); });
    CHECK(std::string(error.what()) == "the answer reports an error (too_many): Slow down");
    CHECK(error.verdict().kind == Verdict::throttled);
    CHECK(error.status() == 429);
}
