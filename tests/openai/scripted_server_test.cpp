// SPDX-License-Identifier: BSL-1.0
#include "raw_client.hpp"
#include "scripted_scene.hpp"

#include "openai/scripted_server.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <sys/resource.h>

#include <chrono>
#include <cmath>
#include <cstddef>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace asio = boost::asio;
namespace json = boost::json;

namespace {

using namespace std::chrono_literals;
using openai::Behaviour;
using openai::ScriptedRequest;
using test::always;
using test::chat_request;
using test::http_request;
using test::RawClient;
using test::ScriptedScene;

// The data of the events in the body of a stream.
std::vector<std::string> scripted_events(std::string_view body) {
    std::vector<std::string> events;
    for (std::size_t begin = 0, end = 0; (end = body.find("\n\n", begin)) != body.npos; begin = end + 2) {
        const std::string_view event = body.substr(begin, end - begin);
        REQUIRE(event.starts_with("data: "));
        events.emplace_back(event.substr(6));
    }
    return events;
}

std::string streamed_text(const std::vector<std::string>& events) {
    std::string text;
    for (const auto& event : events) {
        if (event == "[DONE]") continue;
        const json::value chunk = json::parse(event);
        for (const auto& choice : chunk.at("choices").as_array()) {
            const auto* content = choice.at("delta").as_object().if_contains("content");
            if (content != nullptr && content->is_string()) text += content->get_string();
        }
    }
    return text;
}

const std::string said_hello = "You said: \"Hello there.\" This is a scripted answer; no model has read it.";

// UBSan needs a pipe to look at an object of a type that it has not met before.
void use_timer(asio::io_context& context) {
    asio::steady_timer timer(context, 0ms);
    bool expired = false;
    timer.async_wait([&](auto) { expired = true; });
    while (!expired) {
        context.run_one();
    }
}

// Takes away all descriptors that are not used yet, as long as it lives.
class NoDescriptors {
public:
    NoDescriptors() {
        REQUIRE(getrlimit(RLIMIT_NOFILE, &before_) == 0);
        const rlimit none{.rlim_cur = 0, .rlim_max = before_.rlim_max};
        REQUIRE(setrlimit(RLIMIT_NOFILE, &none) == 0);
    }
    ~NoDescriptors() { setrlimit(RLIMIT_NOFILE, &before_); }
    NoDescriptors(const NoDescriptors&) = delete;
    NoDescriptors& operator=(const NoDescriptors&) = delete;

private:
    rlimit before_{};
};

// Lets the server meet a client while there is no descriptor for the connection.
RawClient probe_without_descriptors(ScriptedScene& scene) {
    use_timer(scene.context);
    RawClient client = scene.probe();
    const NoDescriptors none;
    scene.context.run_one();
    scene.context.poll();
    return client;
}

}  // namespace

TEST_CASE("ScriptedServer: without a descriptor for a connection it waits for one", "[openai]") {
    ScriptedScene scene;
    RawClient client = probe_without_descriptors(scene);
    CHECK(scene.server.counts().connections == 0);
    CHECK(scene.ask(client, chat_request("Hello there.")).result_int() == 200);
    scene.finish();
}

TEST_CASE("ScriptedServer: it can be closed while it has no descriptor", "[openai]") {
    ScriptedScene scene;
    RawClient client = probe_without_descriptors(scene);
    client.close();
    scene.finish();
    CHECK(scene.server.counts().connections == 0);
}

TEST_CASE("ScriptedServer: a chat repeats the last message", "[openai][scripted]") {
    ScriptedScene scene;
    const auto answer = scene.ask(chat_request("Hello there."));
    CHECK(answer.result_int() == 200);
    CHECK(answer["Content-Type"] == "application/json");
    const auto body = json::parse(answer.body());
    CHECK(body.at("model") == "m");
    CHECK(body.at("choices").at(0).at("message").at("content") == json::value(said_hello));
    CHECK(body.at("choices").at(0).at("finish_reason") == "stop");
    CHECK(body.at("usage") == json::parse(R"({"prompt_tokens":2,"completion_tokens":14,"total_tokens":16})"));
    CHECK(scene.server.counts().answers == std::map<int, std::size_t>{{200, 1}});
    scene.finish();
}

TEST_CASE("ScriptedServer: a stream has the same text, word by word", "[openai][scripted]") {
    ScriptedScene scene;
    const bool usage = GENERATE(false, true);
    CAPTURE(usage);
    const std::string more = usage ? R"(,"stream":true,"stream_options":{"include_usage":true})" : R"(,"stream":true)";
    const auto answer = scene.ask(chat_request("Hello there.", more));
    CHECK(answer["Content-Type"] == "text/event-stream");
    CHECK(answer.chunked());
    const auto events = scripted_events(answer.body());
    REQUIRE(events.size() == (usage ? 18 : 17));  // role, 14 words, finish, perhaps usage, [DONE]
    CHECK(json::parse(events.front()).at("choices").at(0).at("delta") ==
          json::parse(R"({"role":"assistant","content":null})"));
    CHECK(json::parse(events[2]).at("choices").at(0).at("delta").at("content") == " said:");
    CHECK(streamed_text(events) == said_hello);
    CHECK(json::parse(events[15]).at("choices").at(0).at("finish_reason") == "stop");
    if (usage) {
        const auto last = json::parse(events[16]);
        CHECK(last.at("choices").as_array().empty());
        CHECK(last.at("usage").at("total_tokens") == 16);
    }
    CHECK(events.back() == "[DONE]");
    scene.finish();
}

TEST_CASE("ScriptedServer: an embedding is made of the letters of its text", "[openai][scripted]") {
    ScriptedScene scene;
    const auto vectors_of = [&](const std::string& input) {
        const auto answer = scene.ask(http_request("POST", "/v1/embeddings", R"({"model":"m","input":)" + input + "}"));
        REQUIRE(answer.result_int() == 200);
        std::vector<json::value> vectors;
        const json::value body = json::parse(answer.body());
        for (const auto& each : body.at("data").as_array()) {
            CHECK(each.at("index").to_number<std::size_t>() == vectors.size());
            vectors.push_back(each.at("embedding"));
        }
        return vectors;
    };
    const auto vectors = vectors_of(R"(["a cat","a dog","a cat"])");
    REQUIRE(vectors.size() == 3);
    CHECK(vectors[0] == vectors[2]);
    CHECK(vectors[0] != vectors[1]);
    CHECK(vectors_of(R"("a dog")") == std::vector{vectors[1]});
    CHECK(vectors_of(R"([""])").size() == 1);
    double squares = 0;
    for (const auto& number : vectors[0].as_array()) squares += std::pow(number.as_double(), 2);
    CHECK(std::abs(squares - 1) < 1e-9);
    scene.finish();
}

TEST_CASE("ScriptedServer: other paths, and requests that are wrong", "[openai][scripted]") {
    ScriptedScene scene;
    CHECK(scene.ask(http_request("GET", "/health")).body() == R"({"status":"ok"})");
    CHECK(json::parse(scene.ask(http_request("GET", "/v1/models")).body()).at("data").at(0).at("id") == "scripted");
    CHECK(scene.ask(http_request("GET", "/v2")).result_int() == 404);

    const auto [request, message] = GENERATE(table<std::string, std::string>({
        {http_request("GET", "/v1/chat/completions"), "the method must be POST"},
        {http_request("POST", "/v1/chat/completions", "{"), "the body is malformed: "},
        {http_request("POST", "/v1/chat/completions", "{}"), "the body is malformed: "},
        {http_request("POST", "/v1/chat/completions", R"({"messages":[]})"), "there are no messages"},
        {http_request("POST", "/v1/embeddings", R"({"input":[1]})"), "the body is malformed: "},
        {"garbage\r\n\r\n", "bad method"},
        {"POST /v1/embeddings HTTP/1.1\r\nContent-Length: 4194305\r\n\r\n", "body limit exceeded"},
    }));
    const auto answer = scene.ask(request);
    CHECK(answer.result_int() == 400);
    const auto error = json::parse(answer.body()).at("error");
    CHECK(error.at("type") == "invalid_request_error");
    CAPTURE(error);
    CHECK(error.at("message").as_string().starts_with(message));
    scene.finish();
}

TEST_CASE("ScriptedServer: a connection is kept until somebody says otherwise", "[openai][scripted]") {
    std::vector<std::pair<std::size_t, std::size_t>> numbers;
    ScriptedScene scene({.script = [&](const ScriptedRequest& request) {
        numbers.emplace_back(request.number, request.on_connection);
        return Behaviour{.close = request.texts.at(0) == "close"};
    }});
    RawClient first = scene.probe();
    RawClient second = scene.probe();
    CHECK(scene.ask(first, chat_request("a")).result_int() == 200);
    CHECK(scene.ask(second, chat_request("b")).result_int() == 200);
    CHECK(scene.ask(first, chat_request("c")).result_int() == 200);
    CHECK(numbers == std::vector<std::pair<std::size_t, std::size_t>>{{1, 1}, {2, 1}, {3, 2}});
    CHECK(scene.server.counts().connections == 2);
    CHECK(scene.server.counts().open_connections == 2);

    SECTION("the client asks for an end") {
        const std::string body = R"({"input":"d"})";
        const auto answer = scene.ask(first, http_request("POST", "/v1/embeddings", body, "Connection: close\r\n"));
        CHECK_FALSE(answer.keep_alive());
    }
    SECTION("the server closes after the answer, without saying so") {
        const auto answer = scene.ask(first, chat_request("close"));
        CHECK(answer.keep_alive());
    }
    CHECK(scene.run([&] { return first.read(); }).empty());
    CHECK(scene.server.counts().open_connections == 1);
    CHECK(scene.ask(second, chat_request("e")).result_int() == 200);
    scene.finish();
}

TEST_CASE("ScriptedServer: an idle connection is closed", "[openai][scripted]") {
    ScriptedScene scene({.script = always({}), .keep_alive = 1ms});
    RawClient probe = scene.probe();
    const std::string begin = GENERATE("", "POST /v1/chat");
    scene.run([&] { return probe.send(begin); });
    CHECK(scene.run([&] { return probe.read(); }).empty());
    CHECK(scene.server.counts().requests == 0);
    scene.finish();
}
