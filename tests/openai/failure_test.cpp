// SPDX-License-Identifier: BSL-1.0
// What the errors of a server mean; failure_message_test.cpp has what they say.
#include "openai/failure.hpp"

#include "protocol_probes.hpp"

#include <sluice/stage/verdict.hpp>

#include <boost/json/parse.hpp>
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <string>
#include <string_view>

namespace {

using namespace std::chrono_literals;
using openai::error_of;
using openai::Headers;
using sluice::ModelError;
using sluice::Verdict;
using test::headers_of;

constexpr std::chrono::sys_seconds answered_at{784111777s};  // 1994-11-06 08:49:37

ModelError error_with(int status, std::string_view body = "", const Headers& headers = {}) {
    return error_of(status, headers, body, answered_at);
}

Verdict::Kind kind_with(int status, std::string_view body = "", const Headers& headers = {}) {
    return error_with(status, body, headers).verdict().kind;
}

// The verdict on an error with this code, or with this type.
Verdict::Kind kind_of_code(int status, std::string_view code) {
    const std::string text(code);
    const auto by_code = kind_with(status, R"({"error":{"message":"x","type":"t","code":")" + text + "\"}}");
    CHECK(kind_with(status, R"({"error":{"message":"x","code":null,"type":")" + text + "\"}}") == by_code);
    return by_code;
}

sluice::ModelError error_in_stream(std::string_view answer) { return *openai::error_in(boost::json::parse(answer)); }

}  // namespace

TEST_CASE("error_of(): the verdict on a status", "[openai]") {
    for (const int status : {408, 409, 425, 500, 502, 504, 520, 599, 101, 204, 999, 0, -1}) {
        INFO(status);
        CHECK(kind_with(status) == Verdict::transient);
    }
    CHECK(kind_with(429) == Verdict::throttled);
    CHECK(kind_with(503) == Verdict::overloaded);
    CHECK(kind_with(529) == Verdict::overloaded);
    for (const int status : {401, 402, 403}) {
        CHECK(kind_with(status) == Verdict::exhausted);
    }
    for (const int status : {300, 301, 302, 307, 308, 400, 404, 405, 410, 413, 418, 422, 451, 499, 501}) {
        INFO(status);
        CHECK(kind_with(status) == Verdict::invalid);
    }
    CHECK(error_with(418).status() == 418);
}

TEST_CASE("error_of(): a code says more than the status", "[openai]") {
    for (const std::string_view code :
         {"insufficient_quota", "credit_balance_exhausted", "billing_hard_limit_reached", "billing_not_active",
          "insufficient_balance", "insufficient_credits", "insufficient_funds", "exceeded_current_quota_error",
          "spend_limit_exceeded", "usage_limit_reached", "INSUFFICIENT_QUOTA"}) {
        INFO(code);
        CHECK(kind_of_code(429, code) == Verdict::exhausted);
        CHECK(kind_of_code(400, code) == Verdict::exhausted);
    }
    for (const std::string_view code : {"rate_limit_exceeded", "slow_down", "requests", "tokens", ""}) {
        CHECK(kind_of_code(429, code) == Verdict::throttled);
    }
    for (const std::string_view code : {"context_length_exceeded", "exceed_context_size_error", "content_filter",
                                        "content_policy_violation", "moderation_blocked"}) {
        INFO(code);
        CHECK(kind_of_code(400, code) == Verdict::invalid);
        CHECK(kind_of_code(403, code) == Verdict::invalid);
        CHECK(kind_of_code(500, code) == Verdict::invalid);
    }
    for (const std::string_view code : {"server_is_overloaded", "overloaded_error", "engine_overloaded_error"}) {
        CHECK(kind_of_code(503, code) == Verdict::overloaded);
        CHECK(kind_of_code(429, code) == Verdict::overloaded);
        CHECK(kind_of_code(500, code) == Verdict::overloaded);
    }
    CHECK(kind_of_code(401, "invalid_api_key") == Verdict::exhausted);
    CHECK(kind_of_code(403, "unsupported_country_region_territory") == Verdict::exhausted);
    CHECK(kind_of_code(404, "model_not_found") == Verdict::invalid);
    // Only code and type count.
    CHECK(kind_with(429, R"({"error":{"message":"insufficient_quota"}})") == Verdict::throttled);
}

TEST_CASE("error_of(): x-should-retry overrules status and code", "[openai]") {
    const auto yes = headers_of({{"x-should-retry", "true"}});
    const auto no = headers_of({{"X-Should-Retry", "False"}});
    constexpr std::string_view quota = R"({"error":{"code":"insufficient_quota"}})";
    CHECK(kind_with(429, "", yes) == Verdict::throttled);
    CHECK(kind_with(429, quota, yes) == Verdict::throttled);
    CHECK(kind_with(503, quota, yes) == Verdict::overloaded);
    CHECK(kind_with(503, "", yes) == Verdict::overloaded);
    CHECK(kind_with(500, "", yes) == Verdict::transient);
    CHECK(kind_with(400, "", yes) == Verdict::transient);
    CHECK(kind_with(401, "", yes) == Verdict::transient);
    CHECK(kind_with(429, "", no) == Verdict::exhausted);
    CHECK(kind_with(500, "", no) == Verdict::invalid);
    CHECK(kind_with(503, "", no) == Verdict::invalid);
    CHECK(kind_with(400, "", no) == Verdict::invalid);
    CHECK(kind_with(401, "", no) == Verdict::exhausted);
    CHECK(kind_with(500, "", headers_of({{"x-should-retry", "perhaps"}})) == Verdict::transient);
}

TEST_CASE("error_of(): the time to wait", "[openai]") {
    const auto wait_with = [](int status, std::string_view text) {
        return error_with(status, "", headers_of({{"retry-after", text}})).verdict();
    };
    CHECK(wait_with(429, "7").retry_after == 7s);
    CHECK(wait_with(503, "Sun, 06 Nov 1994 08:49:57 GMT").retry_after == 20s);
    CHECK(wait_with(500, "0.5").retry_after == 500ms);
    CHECK_FALSE(wait_with(429, "soon").retry_after);
    CHECK_FALSE(error_with(429).verdict().retry_after);
    CHECK(wait_with(429, "120").kind == Verdict::throttled);
}

TEST_CASE("error_of(): nothing waits for more than 2 min", "[openai]") {
    for (const int status : {429, 500, 503}) {
        const auto verdict = error_with(status, "", headers_of({{"retry-after", "120.5"}})).verdict();
        CHECK(verdict.kind == Verdict::exhausted);
        CHECK(verdict.retry_after == 120500ms);
    }
    CHECK(kind_with(400, "", headers_of({{"retry-after", "121"}})) == Verdict::invalid);
    CHECK(kind_with(429, "", headers_of({{"retry-after", "121"}, {"x-should-retry", "true"}})) == Verdict::throttled);
    CHECK(kind_with(503, "", headers_of({{"retry-after", "121"}, {"x-should-retry", "false"}})) == Verdict::invalid);
}

TEST_CASE("error_in(): an answer without an error", "[openai]") {
    for (const std::string_view answer : {"{}", R"({"error":null})", "[]", "[{}]", "7", "null", R"({"message":"x"})"}) {
        CHECK_FALSE(openai::error_in(boost::json::parse(answer)));
    }
}

TEST_CASE("error_in(): a code that is a number is the status", "[openai]") {
    const auto error = error_in_stream(R"({"error":{"code":502,"message":"Provider lost","metadata":{}}})");
    CHECK(std::string(error.what()) == "the answer reports an error (502): Provider lost");
    CHECK(error.status() == 502);
    CHECK(error.verdict().kind == Verdict::transient);
    CHECK(error_in_stream(R"({"error":{"code":"429"}})").verdict().kind == Verdict::throttled);
    CHECK(error_in_stream(R"({"error":{"code":401}})").verdict().kind == Verdict::exhausted);
    CHECK(error_in_stream(R"([{"error":{"code":400}}])").status() == 400);
    for (const std::string_view code : {"200", "399", "600", "1e300", "-5", "17", "null", "\"x\""}) {
        const auto odd = error_in_stream(R"({"error":{"code":)" + std::string(code) + "}}");
        CHECK(odd.status() == 200);
        CHECK(odd.verdict().kind == Verdict::transient);
    }
    CHECK(error_in_stream(R"({"error":{"code":429,"type":"insufficient_quota"}})").verdict().kind ==
          Verdict::exhausted);
}

TEST_CASE("error_in(): without a status, code or type say what it means", "[openai]") {
    const auto kind_in = [](std::string_view type) {
        return error_in_stream(R"({"error":{"message":"x","type":")" + std::string(type) + "\"}}").verdict().kind;
    };
    CHECK(kind_in("rate_limit_error") == Verdict::throttled);
    CHECK(kind_in("authentication_error") == Verdict::exhausted);
    CHECK(kind_in("invalid_api_key") == Verdict::exhausted);
    CHECK(kind_in("permission_error") == Verdict::exhausted);
    CHECK(kind_in("unavailable_error") == Verdict::overloaded);
    CHECK(kind_in("overloaded_error") == Verdict::overloaded);
    CHECK(kind_in("invalid_request_error") == Verdict::invalid);
    CHECK(kind_in("not_found_error") == Verdict::invalid);
    CHECK(kind_in("context_length_exceeded") == Verdict::invalid);
    CHECK(kind_in("insufficient_quota") == Verdict::exhausted);
    CHECK(kind_in("server_error") == Verdict::transient);
    CHECK(kind_in("") == Verdict::transient);
    CHECK(error_in_stream(R"({"error":""})").verdict().kind == Verdict::transient);
}
