// SPDX-License-Identifier: BSL-1.0
// What the errors of a server say; failure_test.cpp has what they mean.
#include "openai/failure.hpp"

#include "protocol_probes.hpp"

#include <sluice/stage/verdict.hpp>

#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <string>
#include <string_view>

namespace {

using openai::Headers;
using test::headers_of;

sluice::ModelError failure_with(int status, std::string_view body = "", const Headers& headers = {}) {
    return openai::error_of(status, headers, body, std::chrono::system_clock::time_point());
}

std::string message_with(int status, std::string_view body = "", const Headers& headers = {}) {
    return failure_with(status, body, headers).what();
}

}  // namespace

TEST_CASE("error_of(): status, code and the server's words", "[openai]") {
    CHECK(message_with(429, R"({"error":{"message":"Slow.","type":"requests","param":null,"code":"rate_limit"}})") ==
          "status 429 (rate_limit): Slow.");
    CHECK(message_with(400, R"({"error":{"code":400,"message":"Bad.","type":"invalid_request_error"}})") ==
          "status 400 (invalid_request_error): Bad.");
    CHECK(message_with(400, R"({"error":{"code":"400","message":"Bad.","type":"BadRequest"}})") ==
          "status 400 (BadRequest): Bad.");
    CHECK(message_with(401, R"({"error":{"message":"Key?","type":"auth","code":null}})") == "status 401 (auth): Key?");
    CHECK(message_with(400, R"({"error":{"message":"Bad.","code":17}})") == "status 400 (17): Bad.");
    CHECK(message_with(400, R"({"error":{"message":"Bad."}})") == "status 400: Bad.");
    CHECK(message_with(400, R"({"object":"error","message":"Bad.","type":"BadRequestError","code":400})") ==
          "status 400 (BadRequestError): Bad.");
    CHECK(message_with(404, R"({"error":"model 'm' not found"})") == "status 404: model 'm' not found");
    CHECK(message_with(403, R"({"message":"Forbidden"})") == "status 403: Forbidden");
    CHECK(message_with(404, R"({"detail":"Not Found"})") == "status 404: Not Found");
    CHECK(message_with(422, R"({"detail":[{"msg":"field required"}]})") == R"(status 422: [{"msg":"field required"}])");
    CHECK(message_with(429, R"([{"error":{"code":429,"message":"Quota.","status":"RESOURCE_EXHAUSTED"}}])") ==
          "status 429 (429): Quota.");
    CHECK(message_with(500, R"({"error":{"oops":1}})") == R"(status 500: {"oops":1})");
    CHECK(message_with(500, R"({"error":{"message":null,"code":"x"}})") ==
          R"(status 500 (x): {"message":null,"code":"x"})");
}

TEST_CASE("error_of(): the code", "[openai]") {
    const auto code_with = [](std::string_view error) {
        return failure_with(400, R"({"error":)" + std::string(error) + "}").code();
    };
    CHECK(code_with(R"({"code":"c","type":"t"})") == "c");
    CHECK(code_with(R"({"code":null,"type":"t"})") == "t");
    CHECK(code_with(R"({"code":"","type":"t"})") == "t");
    CHECK(code_with(R"({"code":400,"type":"t"})") == "t");
    CHECK(code_with(R"({"code":400})") == "400");
    CHECK(code_with(R"({"code":"a\nb\u0085"})") == "a\\nb\\u0085");
    CHECK(code_with(R"("text")").empty());
    const auto longest = code_with(R"({"code":")" + std::string(1000, 'x') + "\"}");
    CHECK(longest == std::string(61, 'x') + "...");
}

TEST_CASE("error_of(): a body that is no JSON", "[openai]") {
    CHECK(message_with(500, "Internal\n error") == "status 500: Internal\\n error");
    CHECK(message_with(502, " \r\n<html>\n<body>Bad") ==
          "status 502: a page of HTML, which begins with <html>\\n<body>Bad");
    CHECK(message_with(429, "Too many", headers_of({{"Content-Type", "Text/HTML; charset=utf-8"}})) ==
          "status 429: a page of HTML, which begins with Too many");
    CHECK(message_with(502, "<html>" + std::string(5000, 'x')).size() < 300);
    CHECK(message_with(500, R"({"error":{"message":"cut o)") == R"(status 500: {"error":{"message":"cut o)");
    CHECK(message_with(500, "[]") == "status 500: []");
    CHECK(message_with(500, R"({"ok":false})") == R"(status 500: {"ok":false})");
    CHECK(message_with(500, std::string(1000, '[')) == "status 500: " + std::string(1000, '['));
    CHECK(message_with(503) == "status 503: Service Unavailable");
    CHECK(message_with(503, " \r\n") == "status 503: Service Unavailable");
    CHECK(message_with(555) == "status 555: no more is known");
}

TEST_CASE("error_of(): a redirection names where it leads to", "[openai]") {
    CHECK(message_with(308, "<html>", headers_of({{"Location", "https://b.example/v1"}})) ==
          "status 308: the server redirects to 'https://b.example/v1', which is not followed");
    CHECK(message_with(301, "", headers_of({{"Location", "/\x1B[31m"}})) ==
          "status 301: the server redirects to '/\\x1b[31m', which is not followed");
    CHECK(message_with(304) == "status 304: the server redirects to '', which is not followed");
    const std::string far(60'000, 'x');
    CHECK(message_with(301, "", headers_of({{"Location", far}})).ends_with("x...', which is not followed"));
}

TEST_CASE("error_of(): the message is printable, and has at most 1 kB", "[openai]") {
    const auto in_json = [](const std::string& text) {
        return R"({"error":{"code":")" + std::string(900, 'c') + R"(","message":")" + text + "\"}}";
    };
    std::string euros;
    for (int i = 0; i != 1000; ++i) {
        euros += "\xE2\x82\xAC";
    }
    for (const std::string& body : {std::string(5000, 'x'), in_json(std::string(5000, 'x')), in_json(euros), euros,
                                    'x' + euros, 'x' + std::string(5000, '\n'), std::string(5000, '\xFF')}) {
        const std::string message = message_with(400, body);
        CHECK(message.size() <= 1024);
        CHECK(message.size() > 1018);
        CHECK(message.ends_with("..."));
        CHECK(test::is_printable(message));
    }
    CHECK(message_with(400, R"({"error":{"message":"a\u0000\u001b\u007f\u0085\u00a0b"}})") ==
          "status 400: a\\x00\\x1b\\x7f\\u0085\xC2\xA0"
          "b");
    CHECK(message_with(400, "a\xFF\xC2\x85") == "status 400: a\\xff\\u0085");
    CHECK(message_with(400, std::string(1012, 'x')) == "status 400: " + std::string(1012, 'x'));
}
