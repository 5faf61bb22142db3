// SPDX-License-Identifier: BSL-1.0
#include "openai/rates.hpp"

#include "openai/header_values.hpp"
#include "openai/retry_after.hpp"
#include "protocol_probes.hpp"

#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace {

using namespace std::chrono_literals;
using openai::date_of;
using openai::duration_of;
using openai::longest_time;
using test::headers_of;
using Pauses = std::vector<std::chrono::nanoseconds>;

// 1994-11-06 08:49:37
constexpr std::chrono::sys_seconds famous{784111777s};

std::optional<std::chrono::nanoseconds> wait_of(const openai::Headers& headers) {
    return openai::retry_after(headers, famous + 500ms);
}

std::optional<std::chrono::nanoseconds> wait_of(std::string_view text) {
    return wait_of(headers_of({{"Retry-After", text}}));
}

Pauses pauses_of(const openai::Headers& headers) {
    test::RecordingAttempt attempt;
    openai::report_rates(headers, attempt);
    CHECK(attempt.usages.empty());
    return attempt.pauses;
}

Pauses pauses_of(std::string_view limit, std::string_view remaining, std::string_view reset) {
    return pauses_of(headers_of({{"x-ratelimit-limit-requests", limit},
                                 {"x-ratelimit-remaining-requests", remaining},
                                 {"x-ratelimit-reset-requests", reset}}));
}

}  // namespace

TEST_CASE("value_of(): any case, and no spaces", "[openai]") {
    const auto headers = headers_of({{"Retry-After", " \t7 "}, {"X-Empty", "  "}, {"X-Twice", "1"}, {"X-Twice", "2"}});
    CHECK(openai::value_of(headers, "retry-after") == "7");
    CHECK(openai::value_of(headers, "x-empty").empty());
    CHECK(openai::value_of(headers, "x-missing").empty());
    CHECK(openai::value_of(headers, "x-twice") == "1");
}

TEST_CASE("number_of(): decimal numbers that are not negative", "[openai]") {
    CHECK(openai::number_of("0") == 0);
    CHECK(openai::number_of("1.5") == 1.5);
    CHECK(openai::number_of(".5") == 0.5);
    CHECK(openai::number_of("7.") == 7);
    CHECK(openai::number_of(std::string(300, '9')) > 1e299);
    for (const std::string_view text :
         {"", "-1", "-0", "+1", "1e3", "0x10", "nan", "NaN", "inf", "infinity", "1,5", "1 ", " 1", "1s", "."}) {
        INFO(text);
        CHECK_FALSE(openai::number_of(text));
    }
    CHECK_FALSE(openai::number_of(std::string(400, '9')));
}

TEST_CASE("time_of(): rounded, and at most the longest time", "[openai]") {
    CHECK(openai::time_of(0) == 0ns);
    CHECK(openai::time_of(1.5) == 1500ms);
    CHECK(openai::time_of(0.0035) == 3500us);
    CHECK(openai::time_of(1.1) == 1100ms);
    CHECK(openai::time_of(1e300) == longest_time);
}

TEST_CASE("duration_of(): durations as providers write them", "[openai]") {
    CHECK(duration_of("1s") == 1s);
    CHECK(duration_of("6m0s") == 6min);
    CHECK(duration_of("20ms") == 20ms);
    CHECK(duration_of("1h2m3.5s") == 1h + 2min + 3500ms);
    CHECK(duration_of("2m59.56s") == 2min + 59560ms);
    CHECK(duration_of("1d2h") == 26h);
    CHECK(duration_of("5us") == 5us);
    CHECK(duration_of("5\xC2\xB5s") == 5us);
    CHECK(duration_of("5ns") == 5ns);
    CHECK(duration_of("1m30s500ms") == 90500ms);
    CHECK(duration_of("17") == 17s);
    CHECK(duration_of("0.25") == 250ms);
    CHECK(duration_of("0s") == 0s);
    CHECK(duration_of("99999999h") == longest_time);
    CHECK(duration_of(std::string(300, '9') + "d") == longest_time);
    for (const std::string_view text : {"", "-1", "-1s", "s", "1x", "1s2", "1 s", "1s ", "nan", "nans", "infs", "1e3s",
                                        "2026-11-26T22:00:00Z", "1m-2s", "1.2.3s"}) {
        INFO(text);
        CHECK_FALSE(duration_of(text));
    }
}

TEST_CASE("date_of(): the three forms of HTTP", "[openai]") {
    CHECK(date_of("Sun, 06 Nov 1994 08:49:37 GMT", famous) == famous);
    CHECK(date_of("Sunday, 06-Nov-94 08:49:37 GMT", famous) == famous);
    CHECK(date_of("Sun Nov  6 08:49:37 1994", famous) == famous);
    CHECK(date_of("Thu, 29 Feb 2024 23:59:60 GMT", famous) == std::chrono::sys_days(2024y / 3 / 1));
    CHECK(date_of("Fri, 31 Dec 9999 23:59:59 GMT", famous) == std::chrono::sys_days(9999y / 12 / 31) + 24h - 1s);
    CHECK(date_of("Thu, 01 Jan 1970 00:00:00 GMT", famous) == std::chrono::sys_seconds{});
}

TEST_CASE("date_of(): a year of two digits is at most 50 years later", "[openai]") {
    const std::chrono::sys_seconds now = std::chrono::sys_days(2026y / 11 / 26);
    CHECK(date_of("Sunday, 06-Nov-76 08:49:37 GMT", now) > std::chrono::sys_days(2076y / 1 / 1));
    CHECK(date_of("Sunday, 06-Nov-77 08:49:37 GMT", now) < std::chrono::sys_days(1978y / 1 / 1));
    CHECK(date_of("Sunday, 06-Nov-26 08:49:37 GMT", now) > std::chrono::sys_days(2026y / 1 / 1));
}

TEST_CASE("date_of(): what is no date", "[openai]") {
    for (const std::string_view text : {"",
                                        "Sun",
                                        "GMT",
                                        "Sun, 06 Nov 1994 08:49:37",
                                        "Sun, 06 Nov 1994 08:49:37 CET",
                                        "Sun, 06 Nov 1994 08:49 GMT",
                                        "Sun, 31 Feb 1994 08:49:37 GMT",
                                        "Sun, 00 Nov 1994 08:49:37 GMT",
                                        "Sun, 257 Nov 1994 08:49:37 GMT",
                                        "Sun, 06 Foo 1994 08:49:37 GMT",
                                        "Sun, 06 Nov 1994 24:00:00 GMT",
                                        "Sun, 06 Nov 1994 08:60:00 GMT",
                                        "Sun, 06 Nov 1994 08:00:61 GMT",
                                        "Sun, 06 Nov 994 08:49:37 GMT",
                                        "Sun, 06 Nov 19940 08:49:37 GMT",
                                        "Sun, x6 Nov 1994 08:49:37 GMT",
                                        "Sun, 06 Nov 1994 08:49:37 GMT GMT",
                                        "1994-11-06T08:49:37Z",
                                        "Sun, 06 Nov 99999999999999 08:49:37 GMT",
                                        "Sun, 4294967302 Nov 1994 08:49:37 GMT",
                                        "Sun Nov 6 08:49:37 94 x",
                                        "a b c d e f g h"}) {
        INFO(text);
        CHECK_FALSE(date_of(text, famous));
    }
}

TEST_CASE("retry_after(): milliseconds, then seconds, then a date", "[openai]") {
    CHECK(wait_of(headers_of({{"retry-after-ms", "1500.5"}, {"retry-after", "7"}})) == 1500500us);
    CHECK(wait_of(headers_of({{"retry-after-ms", "soon"}, {"retry-after", "7"}})) == 7s);
    CHECK(wait_of(headers_of({{"retry-after-ms", "-5"}, {"retry-after", "7"}})) == 7s);
    CHECK(wait_of("7") == 7s);
    CHECK(wait_of("0.25") == 250ms);
    CHECK(wait_of("Sun, 06 Nov 1994 08:50:37 GMT") == 1min);
    CHECK(wait_of("Sunday, 06-Nov-94 08:50:37 GMT") == 1min);
    CHECK(wait_of("Sun Nov  6 08:50:37 1994") == 1min);
}

TEST_CASE("retry_after(): a date is relative to that of the answer", "[openai]") {
    constexpr std::string_view in_a_minute = "Sun, 06 Nov 1994 08:50:37 GMT";
    CHECK(wait_of(headers_of({{"Retry-After", in_a_minute}, {"Date", "Sun, 06 Nov 1994 08:50:27 GMT"}})) == 10s);
    CHECK(wait_of(headers_of({{"Retry-After", in_a_minute}, {"Date", "yesterday"}})) == 1min);
}

TEST_CASE("retry_after(): nonsense is ignored, and long times are cut", "[openai]") {
    for (const std::string_view text :
         {"", "0", "-1", "nan", "inf", "soon", "7 s", "Sun, 06 Nov 1994 08:49:37 GMT", "Sun, 06 Nov 1994 08:49:36 GMT",
          "Thu, 01 Jan 1970 00:00:00 GMT", "Mon, 01 Jan 0000 00:00:00 GMT"}) {
        INFO(text);
        CHECK_FALSE(wait_of(text));
    }
    CHECK_FALSE(wait_of(openai::Headers()));
    CHECK(wait_of("99999999999999999999") == longest_time);
    CHECK(wait_of("Fri, 31 Dec 9999 23:59:59 GMT") == longest_time);
    CHECK(wait_of(headers_of({{"retry-after-ms", "99999999999999999999"}})) == longest_time);
}

TEST_CASE("report_rates(): pauses until a limit is there again", "[openai]") {
    CHECK(pauses_of("60", "0", "1s") == Pauses{1s});
    CHECK(pauses_of("60", "1", "1s").empty());
    CHECK(pauses_of(headers_of({{"X-RateLimit-Remaining-Requests", "0"}, {"X-RateLimit-Reset-Requests", "20ms"}})) ==
          Pauses{20ms});
    CHECK(pauses_of(headers_of({{"x-ratelimit-remaining-requests", "0"},
                                {"x-ratelimit-reset-requests", "2"},
                                {"x-ratelimit-limit-tokens", "40000"},
                                {"x-ratelimit-remaining-tokens", "0"},
                                {"x-ratelimit-reset-tokens", "6m0s"}})) == Pauses{2s, 6min});
}

TEST_CASE("report_rates(): a pair that makes no sense is ignored", "[openai]") {
    CHECK(pauses_of(openai::Headers()).empty());
    CHECK(pauses_of(headers_of({{"x-ratelimit-remaining-requests", "0"}})).empty());
    CHECK(pauses_of(headers_of({{"x-ratelimit-reset-requests", "1s"}})).empty());
    CHECK(pauses_of(headers_of({{"x-ratelimit-remaining-requests", "0"}, {"x-ratelimit-reset-tokens", "1s"}})).empty());
    for (const std::string_view remaining : {"-1", "", "none", "0.5", "0 requests", "99999999999999999999"}) {
        CHECK(pauses_of("60", remaining, "1s").empty());
    }
    for (const std::string_view reset :
         {"-1", "", "soon", "0", "0s", "1h0m1s", "8759h", "1795730400", "2026-11-26T22:00:00Z"}) {
        CHECK(pauses_of("60", "0", reset).empty());
    }
    for (const std::string_view limit : {"-1", "0", "none"}) {
        CHECK(pauses_of(limit, "0", "1s").empty());
    }
}
