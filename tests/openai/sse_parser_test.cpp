// SPDX-License-Identifier: BSL-1.0
#include "openai/sse_parser.hpp"

#include "protocol_probes.hpp"

#include <sluice/stage/verdict.hpp>

#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <random>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

namespace {

using openai::SseParser;
using Events = std::vector<std::string>;

Events sse_events(std::string_view stream) {
    Events events;
    SseParser parser;
    parser.feed(stream, [&](std::string_view data) {
        events.emplace_back(data);
        return true;
    });
    return events;
}

template <class NextSize>
Events sse_events(std::string_view stream, NextSize next_size) {
    Events events;
    SseParser parser;
    while (!stream.empty()) {
        const std::string part(stream.substr(0, next_size()));
        parser.feed(part, [&](std::string_view data) {
            events.emplace_back(data);
            return true;
        });
        stream.remove_prefix(part.size());
    }
    return events;
}

std::string sse_error(const std::string& stream) {
    const auto error = test::model_error_of([&] { sse_events(stream); });
    CHECK(error.verdict().kind == sluice::Verdict::transient);
    CHECK(error.status() == 200);
    return error.what();
}

}  // namespace

TEST_CASE("SseParser: lines end in LF, CRLF or CR", "[openai]") {
    for (const std::string_view stream :
         {"data: a\n\ndata: b\n\n", "data: a\r\n\r\ndata: b\r\n\r\n", "data: a\r\rdata: b\r\r",
          "data: a\r\n\ndata: b\n\r\n", "data: a\n\rdata: b\r\n\r"}) {
        CHECK(sse_events(stream) == Events{"a", "b"});
        CHECK(sse_events(stream, [] { return 1; }) == Events{"a", "b"});
    }
}

TEST_CASE("SseParser: data lines of an event are joined", "[openai]") {
    CHECK(sse_events("data: a\ndata: b\n\n") == Events{"a\nb"});
    CHECK(sse_events("data: a\r\ndata: b\r\n\r\n") == Events{"a\nb"});
    CHECK(sse_events("data: a\r\ndata: b\r\n\r\n", [] { return 1; }) == Events{"a\nb"});
    CHECK(sse_events("data: a\rdata: b\r\r", [] { return 1; }) == Events{"a\nb"});
    CHECK(sse_events("data\ndata\n\n") == Events{"\n"});
    CHECK(sse_events("data: a\n: comment\nid: 1\ndata:b\n\n") == Events{"a\nb"});
}

TEST_CASE("SseParser: one space after the colon is not part of the data", "[openai]") {
    CHECK(sse_events("data:a\n\ndata: a\n\ndata:  a\n\ndata: a:b \n\n") == Events{"a", "a", " a", "a:b "});
    CHECK(sse_events("data:\n\ndata\n\n") == Events{"", ""});
}

TEST_CASE("SseParser: comments and other fields are ignored", "[openai]") {
    CHECK(sse_events(": ping\n\n:\n\nevent: x\nid: 1\nretry: 5\n\nDATA: a\n\ndatas: a\n\n data: a\n\n").empty());
    CHECK(sse_events("event: x\ndata: a\nretry: 5\n\n") == Events{"a"});
}

TEST_CASE("SseParser: a byte order mark at the start is ignored, and only there", "[openai]") {
    CHECK(sse_events("\xEF\xBB\xBF"
                     "data: a\n\n") == Events{"a"});
    CHECK(sse_events("\xEF\xBB\xBF"
                     "data: a\n\n",
                     [] { return 1; }) == Events{"a"});
    CHECK(sse_events("\xEF\xBB\xBF\xEF\xBB\xBF"
                     "data: a\n\n")
              .empty());
    CHECK(sse_events("\n\xEF\xBB\xBF"
                     "data: a\n\n")
              .empty());
    CHECK(sse_events("data: a\n\n\xEF\xBB\xBF"
                     "data: b\n\n") == Events{"a"});
}

TEST_CASE("SseParser: an event that has not ended is none", "[openai]") {
    CHECK(sse_events("data: a\n\ndata: b\n") == Events{"a"});
    CHECK(sse_events("data: a\n\ndata: b") == Events{"a"});
    CHECK(sse_events("").empty());
}

TEST_CASE("SseParser: a line is bounded", "[openai]") {
    const std::string longest(SseParser::max_size - 6, 'x');
    CHECK(sse_events("data: " + longest + "\n\n") == Events{longest});
    CHECK(sse_error("data: x" + longest) == "the stream has a line of more than 1048576 bytes");
    CHECK(sse_error("data: x" + longest + "\n") == "the stream has a line of more than 1048576 bytes");
    CHECK(sse_error(":" + longest + "xxxxxx") == "the stream has a line of more than 1048576 bytes");
    const std::string in_pieces = "data: x" + longest;
    CHECK_THROWS_AS(sse_events(in_pieces, [] { return 1000; }), sluice::ModelError);
}

TEST_CASE("SseParser: the data of an event are bounded", "[openai]") {
    const std::string half(SseParser::max_size / 2 - 1, 'x');
    const std::string two = "data:" + half + "\ndata:" + half + "\n";
    CHECK(sse_events(two + "\n").front().size() == SseParser::max_size - 1);
    CHECK(sse_events(two + "data\n\n").front().size() == SseParser::max_size);
    CHECK(sse_error(two + "data:x\n\n") == "the stream has an event of more than 1048576 bytes");
    CHECK_THROWS_AS(sse_events(two + "data\ndata\n"), sluice::ModelError);
}

TEST_CASE("SseParser: the rest after the last event is ignored", "[openai]") {
    Events events;
    SseParser parser;
    parser.feed("data: a\n\ndata: b\n\ndata: c\n\n" + std::string(2'000'000, 'x'), [&](std::string_view data) {
        events.emplace_back(data);
        return data != "b";
    });
    CHECK(events == Events{"a", "b"});
}

TEST_CASE("SseParser: an exception of the callback comes out", "[openai]") {
    SseParser parser;
    CHECK_THROWS_AS(parser.feed("data: a\n\n", [](std::string_view) -> bool { throw std::runtime_error("no"); }),
                    std::runtime_error);
}

TEST_CASE("SseParser: it does not matter where the stream is split", "[openai]") {
    std::mt19937 random(2);
    constexpr std::string_view parts[] = {"data: a",
                                          "data:",
                                          "data",
                                          "\n",
                                          "\r",
                                          "\r\n",
                                          "\n\n",
                                          "\r\n\r\n",
                                          ": c",
                                          "id: 1",
                                          "x",
                                          "\xEF\xBB\xBF",
                                          "data: {\"a\": 1}",
                                          " ",
                                          ":"};
    for (int round = 0; round != 5000; ++round) {
        std::string stream;
        for (std::size_t count = random() % 20; count != 0; --count) {
            stream += parts[random() % std::size(parts)];
        }
        const Events expected = sse_events(stream);
        REQUIRE(sse_events(stream, [] { return 1; }) == expected);
        REQUIRE(sse_events(stream, [&] { return 1 + random() % 7; }) == expected);
    }
}
