// SPDX-License-Identifier: BSL-1.0
#include "openai/text.hpp"

#include "protocol_probes.hpp"

#include <sluice/stage/verdict.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <random>
#include <string>
#include <string_view>

namespace {

using openai::printable;
using openai::require_utf8;

constexpr std::string_view not_utf8[] = {"\x80",              // a continuation
                                         "\xC0\x80",          // overlong
                                         "\xC1\xBF",          // overlong
                                         "\xE0\x9F\xBF",      // overlong
                                         "\xED\xA0\x80",      // a surrogate
                                         "\xF0\x8F\xBF\xBF",  // overlong
                                         "\xF4\x90\x80\x80",  // beyond U+10FFFF
                                         "\xF5\x80\x80\x80",
                                         "\xFF",
                                         "\xC3",  // cut off
                                         "\xE2\x82",
                                         "\xF0\x9F\x98",
                                         "\xE2\x28\xA1"};

}  // namespace

TEST_CASE("printable(): plain text is unchanged", "[openai]") {
    for (const std::string_view text : {"", "plain text", "a \\ and a \"", "gr\xC3\xBC\xC3\x9F", "\xE2\x82\xAC",
                                        "\xF0\x9F\x98\x80", "\xC2\xA0", "\xED\x9F\xBF\xEE\x80\x80\xF4\x8F\xBF\xBF"}) {
        CHECK(printable(text, 100) == text);
    }
}

TEST_CASE("printable(): control characters are escaped", "[openai]") {
    CHECK(printable("a\nb\rc\td", 100) == "a\\nb\\rc\\td");
    CHECK(printable(std::string_view("\0\x1B[31m\x7F", 7), 100) == "\\x00\\x1b[31m\\x7f");
    CHECK(printable("\xC2\x85|\xC2\x80|\xC2\x9F", 100) == "\\u0085|\\u0080|\\u009f");
}

TEST_CASE("printable(): bytes that are not UTF-8 are escaped", "[openai]") {
    CHECK(printable("\xFFz", 100) == "\\xffz");
    CHECK(printable("\xC3(", 100) == "\\xc3(");
    CHECK(printable("\xED\xA0\x80", 100) == "\\xed\\xa0\\x80");
    for (const std::string_view text : not_utf8) {
        CHECK(printable(text, 100).starts_with("\\x"));
        CHECK(test::is_printable(printable(text, 100)));
    }
}

TEST_CASE("printable(): a longer text is cut between characters and ends with three dots", "[openai]") {
    CHECK(printable("abcdef", 6) == "abcdef");
    CHECK(printable("abcdefg", 6) == "abc...");
    CHECK(printable("ab\xE2\x82\xAC\xE2\x82\xAC", 8) == "ab\xE2\x82\xAC\xE2\x82\xAC");
    CHECK(printable("ab\xE2\x82\xAC\xE2\x82\xAC!", 8) == "ab\xE2\x82\xAC...");
    CHECK(printable("ab\xE2\x82\xAC\xE2\x82\xAC", 7) == "ab...");
    CHECK(printable("ab\n\n\n", 7) == "ab\\n...");
    CHECK(printable("abcd", 3) == "...");
}

TEST_CASE("printable(): any bytes become printable and bounded", "[openai]") {
    std::mt19937 random(1);
    for (int round = 0; round != 20'000; ++round) {
        std::string text;
        for (std::size_t size = random() % 40; size != 0; --size) {
            constexpr std::string_view likely = "a\n\x7F\xC2\x85\xE2\x82\xAC\xF0\x9F\x98\x80\xED\xA0";
            text += random() % 2 == 0 ? static_cast<char>(random()) : likely[random() % likely.size()];
        }
        const std::size_t max = 3 + random() % 60;
        const std::string result = printable(text, max);
        REQUIRE(result.size() <= max);
        REQUIRE(test::is_printable(result));
    }
}

TEST_CASE("for_terminal(): lines and tabs stay, and nothing gives orders", "[openai]") {
    CHECK(openai::for_terminal("").empty());
    CHECK(openai::for_terminal("a\n\n\tb \xC3\xA9\n") == "a\n\n\tb \xC3\xA9\n");
    CHECK(openai::for_terminal("\x1b]0;\a\n\xC2\x9B"
                               "2J\r\x7F\t") == R"(\x1b]0;\x07)"
                                                "\n"
                                                R"(\u009b2J\r\x7f)"
                                                "\t");
    CHECK(openai::for_terminal(std::string(1000, '\b')).size() == 4000);
}

TEST_CASE("require_utf8() names what is wrong", "[openai]") {
    require_utf8("text", "");
    require_utf8("text", std::string_view("a\0\n\xC2\x80\xF4\x8F\xBF\xBF", 9));
    for (const std::string_view text : not_utf8) {
        CHECK_THROWS_AS(require_utf8("text", text), sluice::ModelError);
    }
    const auto error = test::model_error_of([] { require_utf8("messages[2].content", "ab\xC3("); });
    CHECK(std::string(error.what()) == "messages[2].content is not UTF-8: byte 0xc3 at offset 2");
    CHECK(error.verdict().kind == sluice::Verdict::invalid);
    CHECK(error.status() == 0);
}

TEST_CASE("require_utf8() finds the wrong byte wherever it is", "[openai]") {
    for (std::size_t size = 1; size != 30; ++size) {
        for (std::size_t at = 0; at != size; ++at) {
            std::string text(size, 'a');
            text[at] = '\xFF';
            const auto error = test::model_error_of([&] { require_utf8("texts", 12, ".text", text); });
            CHECK(std::string(error.what()) ==
                  "texts[12].text is not UTF-8: byte 0xff at offset " + std::to_string(at));
            text.replace(at, 1, "\xF0\x9F\x98\x80");
            require_utf8("texts", 12, ".text", text);
        }
    }
}
