// SPDX-License-Identifier: BSL-1.0
#include "openai/embeddings.hpp"

#include "protocol_probes.hpp"

#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>

#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <string>
#include <string_view>
#include <vector>

namespace {

using openai::embeddings_body;
using openai::parse_embeddings;
using sluice::Verdict;

std::string with_data(std::string_view data) { return R"({"object":"list","data":[)" + std::string(data) + "]}"; }

std::string embeddings_error(std::string_view body, std::size_t texts) {
    const auto error = test::model_error_of([&] { parse_embeddings(body, texts); });
    CHECK(error.verdict().kind == Verdict::transient);
    CHECK(error.status() == 200);
    const std::string message = error.what();
    return message.substr(0, message.find("; it "));
}

}  // namespace

TEST_CASE("embeddings_body(): a request as JSON", "[openai]") {
    const std::vector<std::string> texts{"a\n", "\xE2\x82\xAC"};
    CHECK(boost::json::parse(embeddings_body("m", texts)) ==
          boost::json::parse(R"({"model":"m","input":["a\n","€"]})"));
    CHECK(boost::json::parse(embeddings_body("", texts)) == boost::json::parse(R"({"input":["a\n","€"]})"));
}

TEST_CASE("embeddings_body(): what is not UTF-8 is refused", "[openai]") {
    const std::vector<std::string> texts{"a", "b\xFF"};
    const auto error = test::model_error_of([&] { embeddings_body("m", texts); });
    CHECK(std::string(error.what()) == "texts[1] is not UTF-8: byte 0xff at offset 1");
    CHECK(error.verdict().kind == Verdict::invalid);
    CHECK_THROWS_AS(embeddings_body("\xFF", {}), sluice::ModelError);
}

TEST_CASE("parse_embeddings(): the vectors are in the order of the texts", "[openai]") {
    const auto result = parse_embeddings(R"({"data":[
        {"index":2,"embedding":[5,-6]},{"index":0,"embedding":[0.5,1e-3]},{"index":1,"embedding":[0,18446744073709551615]}],
        "model":"m","usage":{"prompt_tokens":9,"total_tokens":9}})",
                                         3);
    REQUIRE(result.vectors.size() == 3);
    CHECK(result.vectors[0] == std::vector<float>{0.5F, 0.001F});
    CHECK(result.vectors[1] == std::vector<float>{0, 18446744073709551615.0F});
    CHECK(result.vectors[2] == std::vector<float>{5, -6});
    CHECK(result.usage == sluice::Cost{.requests = 1, .input_tokens = 9, .output_tokens = 0});
    CHECK(parse_embeddings(with_data(""), 0).vectors.empty());
}

TEST_CASE("parse_embeddings(): each text must have one vector", "[openai]") {
    constexpr std::string_view two = R"({"index":0,"embedding":[1]},{"index":1,"embedding":[1]})";
    CHECK(embeddings_error(with_data(two), 3) == "the answer must have a vector for each of the 3 texts, got 2");
    CHECK(embeddings_error(with_data(two), 1) == "the answer must have a vector for each of the 1 texts, got 2");
    CHECK(embeddings_error(with_data(R"({"index":1,"embedding":[1]},{"index":1,"embedding":[1]})"), 2) ==
          "data[1] of the answer repeats index 1");
    for (const std::string_view index : {"2", "-1", "null", "0.5", "\"0\"", "1e300", "18446744073709551615"}) {
        CHECK(embeddings_error(
                  with_data(R"({"index":0,"embedding":[1]},{"embedding":[1],"index":)" + std::string(index) + "}"),
                  2) == "data[1] of the answer has no index of a text");
    }
    CHECK(embeddings_error(with_data(R"({"embedding":[1]})"), 1) == "data[0] of the answer has no index of a text");
    CHECK(embeddings_error(with_data("7"), 1) == "data[0] of the answer has no index of a text");
}

TEST_CASE("parse_embeddings(): the vectors have numbers, and one length", "[openai]") {
    const auto with_embedding = [](std::string_view embedding) {
        return with_data(R"({"index":0,"embedding":[1,2]},{"index":1,"embedding":)" + std::string(embedding) + "}");
    };
    for (const std::string_view embedding : {"null", "[]", "\"AACAPw==\"", "{}", "5"}) {
        CHECK(embeddings_error(with_embedding(embedding), 2) == "data[1] of the answer has no embedding");
    }
    CHECK(embeddings_error(with_embedding("[1]"), 2) ==
          "data[1].embedding of the answer must be as long as the others, got 1 numbers");
    CHECK(embeddings_error(with_embedding("[1,2,3]"), 2) ==
          "data[1].embedding of the answer must be as long as the others, got 3 numbers");
    for (const std::string_view number : {"null", "\"1\"", "[1]", "true", "1e39", "-1e300"}) {
        CHECK(embeddings_error(with_embedding("[1," + std::string(number) + "]"), 2) ==
              "data[1].embedding[1] of the answer is not a number that a float can hold");
    }
    CHECK(parse_embeddings(with_embedding("[3.4e38,1e-300]"), 2).vectors[1][1] == 0);
}

TEST_CASE("parse_embeddings(): what is no answer is a transient error", "[openai]") {
    CHECK(embeddings_error("", 1).starts_with("the answer is not JSON ("));
    CHECK(embeddings_error("<html>", 1).starts_with("the answer is not JSON ("));
    CHECK(embeddings_error(with_data(R"({"index":0,"embedding":[1]})").substr(0, 40), 1)
              .starts_with("the answer is not JSON ("));
    CHECK(embeddings_error("[]", 1) == "the answer is not a JSON object");
    CHECK(embeddings_error("{}", 1) == "the answer has no data");
    CHECK(embeddings_error(R"({"data":{}})", 1) == "the answer has no data");
    CHECK(embeddings_error(R"({"data":null})", 1) == "the answer has no data");
    CHECK_THROWS_AS(parse_embeddings(R"({"data":)" + std::string(1'000'000, '['), 1), sluice::ModelError);
}

TEST_CASE("parse_embeddings(): an error with status 200 is the error", "[openai]") {
    const auto error = test::model_error_of(
        [] { parse_embeddings(R"({"error":{"message":"too long","code":"context_length_exceeded"}})", 1); });
    CHECK(error.verdict().kind == Verdict::invalid);
    CHECK(error.code() == "context_length_exceeded");
}
