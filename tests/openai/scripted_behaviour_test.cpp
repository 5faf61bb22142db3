// SPDX-License-Identifier: BSL-1.0
// The odd things that a ScriptedServer does on demand, and what it counts.
#include "raw_client.hpp"
#include "scripted_scene.hpp"
#include "support/task.hpp"

#include "openai/scripted_server.hpp"

#include <boost/asio/io_context.hpp>
#include <boost/json/parse.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <cstddef>
#include <list>
#include <map>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace json = boost::json;

namespace {

using namespace std::chrono_literals;
using openai::Behaviour;
using openai::ScriptedRequest;
using openai::ScriptedServer;
using test::always;
using test::chat_request;
using test::http_request;
using test::HttpAnswer;
using test::RawClient;
using test::ScriptedScene;
using test::Task;

const std::string streamed = R"(,"stream":true)";

// Sends a request and returns all that comes until the server closes the connection.
std::string read_all(ScriptedScene& scene, const std::string& request) {
    RawClient probe = scene.probe();
    scene.run([&] { return probe.send(request); });
    return scene.run([&] { return probe.read(); });
}

// Clients that each wait for an answer.
struct WaitingProbes {
    ScriptedScene& scene;
    std::list<RawClient> probes = {};
    std::list<Task<HttpAnswer>> answers = {};

    void ask() {
        RawClient& probe = probes.emplace_back(scene.context.get_executor(), scene.server.port());
        const std::size_t before = scene.server.counts().requests;
        answers.emplace_back(scene.context.get_executor(), [&] { return probe.ask(chat_request("a")); });
        scene.run_until([&] { return scene.server.counts().requests > before; });
    }
    unsigned status() {
        scene.run_until([&] { return answers.back().ends() > 0; });
        return answers.back().value().result_int();
    }
};

}  // namespace

TEST_CASE("Behaviour: status, headers and body instead of the correct ones", "[openai][scripted]") {
    ScriptedScene scene(
        {.script = always(
             {.status = 503, .headers = {{"content-type", "text/html"}, {"Retry-After", "7"}}, .body = "<html>"})});
    const std::string request = chat_request("a", GENERATE(std::string(), streamed));
    const auto answer = scene.ask(request);
    CHECK(answer.result_int() == 503);
    CHECK(answer.reason() == "Service Unavailable");
    CHECK(answer["Content-Type"] == "text/html");
    CHECK(answer.count("Content-Type") == 1);
    CHECK(answer["Retry-After"] == "7");
    CHECK(answer.body() == "<html>");
    CHECK(scene.server.counts().answers == std::map<int, std::size_t>{{503, 1}});
    scene.finish();
}

TEST_CASE("Behaviour: errors as OpenAI's, with retry-after-ms", "[openai][scripted]") {
    ScriptedScene scene({.script = always(Behaviour::throttled(1500ms))});
    const auto answer = scene.ask(chat_request("a", streamed));
    CHECK(answer.result_int() == 429);
    CHECK(answer["retry-after-ms"] == "1500");
    CHECK(json::parse(answer.body()) ==
          json::parse(R"({"error":{"message":"too many requests","type":"rate_limit_error","param":null,)"
                      R"("code":"rate_limit_exceeded"}})"));
    scene.finish();
}

TEST_CASE("Behaviour: a length that is wrong, and bytes that are no HTTP", "[openai][scripted]") {
    ScriptedScene lying({.script = always({.headers = {{"Content-Length", "1000000000"}}, .close = true})});
    const std::string bytes = read_all(lying, chat_request("a"));
    CHECK(bytes.find("\r\nContent-Length: 1000000000\r\n") != bytes.npos);
    CHECK(bytes.size() < 1000);
    lying.finish();

    ScriptedScene raw({.script = always({.raw = "SSH-2.0-OpenSSH\r\n", .close = true})});
    CHECK(read_all(raw, chat_request("a")) == "SSH-2.0-OpenSSH\r\n");
    raw.finish();
}

TEST_CASE("Behaviour: it stops after some bytes", "[openai][scripted]") {
    const auto stop_after = GENERATE(std::size_t{0}, 1, 40, 300);
    CAPTURE(stop_after);
    SECTION("and closes the connection") {
        ScriptedScene scene({.script = always({.stop_after = stop_after})});
        CHECK(read_all(scene, chat_request("a", streamed)).size() == stop_after);
        CHECK(scene.server.counts().answers.empty());
        CHECK(scene.server.counts().gone == 0);
        scene.finish();
    }
    SECTION("and hangs until the client closes it") {
        ScriptedScene scene({.script = always({.stop_after = stop_after, .hang = true})});
        RawClient probe = scene.probe();
        scene.run([&] { return probe.send(chat_request("a", streamed)); });
        CHECK(scene.run([&] { return probe.read(stop_after); }).size() == stop_after);
        scene.run_until([&] { return scene.server.counts().working == 1; });
        probe.close();
        scene.run_until([&] { return scene.server.counts().open_connections == 0; });
        CHECK(scene.server.counts().gone == 1);
        CHECK(scene.server.counts().working == 0);
        CHECK(scene.server.counts().answers.empty());
        scene.finish();
    }
}

TEST_CASE("Behaviour: pieces of any size are the same answer", "[openai][scripted]") {
    const std::string request = chat_request("a", GENERATE(std::string(), streamed));
    ScriptedScene whole;
    ScriptedScene pieces({.script = always({.piece_delay = 1us, .piece_bytes = GENERATE(std::size_t{1}, 7)})});
    CHECK(pieces.ask(request).body() == whole.ask(request).body());
    CHECK(pieces.server.counts().gone == 0);
    whole.finish();
    pieces.finish();
}

TEST_CASE("Behaviour: a stream that ends too early, or with something else", "[openai][scripted]") {
    const auto body_with = [](Behaviour behaviour) {
        ScriptedScene scene({.script = always(std::move(behaviour))});
        std::string body = scene.ask(chat_request("a", streamed)).body();
        scene.finish();
        return body;
    };
    const std::string whole = body_with({});
    CHECK(whole.ends_with("\n\ndata: [DONE]\n\n"));
    CHECK(body_with({.last_event = ""}) + "data: [DONE]\n\n" == whole);
    CHECK(body_with({.last_event = "{}"}) + "data: [DONE]\n\n" == whole.substr(0, whole.size() - 14) +
                                                                      "data: {}\n\n"
                                                                      "data: [DONE]\n\n");
    const std::string two = body_with({.words = 2, .last_event = "{}"});
    CHECK(two.find("\"You\"") != two.npos);
    CHECK(two.find("\" said:\"") < two.find("data: {}"));
    CHECK(two.find("\"stop\"") == two.npos);
    CHECK(whole.starts_with(two.substr(0, two.find("data: {}"))));
}

TEST_CASE("Behaviour: a body without end, until the client has had enough", "[openai][scripted]") {
    const bool stream = GENERATE(false, true);
    Behaviour endless{.endless = true};
    if (!stream) endless.body = std::string(1000, 'x');
    ScriptedScene scene({.script = always(endless)});
    RawClient probe = scene.probe();
    scene.run([&] { return probe.send(chat_request("a", streamed)); });
    const std::string bytes = scene.run([&] { return probe.read(1'000'000); });
    CHECK(bytes.size() == 1'000'000);
    CHECK(bytes.find("\r\n0\r\n") == bytes.npos);
    CHECK(bytes.find("[DONE]") == bytes.npos);
    probe.close();
    scene.run_until([&] { return scene.server.counts().open_connections == 0; });
    CHECK(scene.server.counts().gone == 1);
    scene.finish();
}

TEST_CASE("Behaviour: an endless body that is empty is refused", "[openai][scripted]") {
    ScriptedScene scene({.script = always({.body = "", .endless = true})});
    RawClient probe = scene.probe();
    scene.run([&] { return probe.send(chat_request("a")); });
    CHECK_THROWS_AS(scene.run([&] { return probe.read(); }), std::invalid_argument);
    scene.finish();
}

TEST_CASE("ScriptedServer: a client that leaves frees its slot", "[openai][scripted]") {
    ScriptedScene scene({.script = always(Behaviour::silent()), .slots = 2});
    WaitingProbes waiting{scene};
    waiting.ask();
    waiting.ask();
    CHECK(scene.server.counts().working == 2);
    waiting.ask();
    CHECK(waiting.status() == 429);
    CHECK(scene.server.counts().most_working == 3);
    waiting.probes.front().close();
    scene.run_until([&] { return scene.server.counts().working == 1; });
    CHECK(scene.server.counts().gone == 1);
    waiting.ask();
    scene.run_until([&] { return scene.server.counts().working == 2; });
    CHECK_FALSE(waiting.answers.back().done());
    scene.finish();
}

TEST_CASE("ScriptedServer: a client that sends more before its answer has gone", "[openai][scripted]") {
    ScriptedScene scene({.script = always(Behaviour::silent())});
    RawClient probe = scene.probe();
    scene.run([&] { return probe.send(chat_request("a")); });
    scene.run_until([&] { return scene.server.counts().working == 1; });
    scene.run([&] { return probe.send(chat_request("b")); });
    CHECK(scene.run([&] { return probe.read(); }).empty());
    CHECK(scene.server.counts().gone == 1);
    CHECK(scene.server.counts().requests == 1);
    scene.finish();
}

TEST_CASE("ScriptedServer: more requests than its rate are throttled", "[openai][scripted]") {
    ScriptedScene scene({.script = always({}), .rate = 1, .burst = 50});
    RawClient probe = scene.probe();
    HttpAnswer last;
    int allowed = -1;
    do {
        ++allowed;
        last = scene.ask(probe, chat_request("a"));
    } while (last.result_int() == 200);
    CHECK(allowed >= 50);
    CHECK(last.result_int() == 429);
    const int milliseconds = std::stoi(std::string(last["retry-after-ms"]));
    CHECK(milliseconds > 0);
    CHECK(milliseconds <= 1000);
    scene.finish();
}

TEST_CASE("ScriptedServer: without a script it answers after a while", "[openai][scripted]") {
    ScriptedScene scene(openai::ScriptedServerOptions{});
    const auto answer = scene.ask(chat_request("a", streamed));
    CHECK(answer.body().ends_with("data: [DONE]\n\n"));
    scene.finish();
}

TEST_CASE("ScriptedServer: closing ends whatever it does", "[openai][scripted]") {
    const Behaviour behaviour = GENERATE(Behaviour{.delay = 1h}, Behaviour{.piece_delay = 1h},
                                         Behaviour{.endless = true}, Behaviour::silent(), Behaviour{});
    ScriptedScene scene({.script = always(behaviour)});
    RawClient probe = scene.probe();
    scene.run([&] { return probe.send(chat_request("a", streamed)); });
    scene.run_until([&] { return scene.server.counts().requests == 1; });
    scene.finish();  // runs until there is nothing left
    scene.server.close();
    scene.finish();
}

TEST_CASE("ScriptedServer: it may be destroyed before its connections have ended, and after the context has stopped",
          "[openai][scripted]") {
    boost::asio::io_context context(1);
    auto server = std::make_unique<ScriptedServer>(
        context.get_executor(), openai::ScriptedServerOptions{.script = always(Behaviour{.delay = 1h})});
    RawClient probe(context.get_executor(), server->port());
    Task<HttpAnswer> task(context.get_executor(), [&] { return probe.ask(chat_request("a")); });
    while (server->counts().working == 0) {
        context.run_one();
    }
    SECTION("its coroutines end when the context runs") {
        server.reset();
        context.run();
        CHECK(task.failed_with<boost::system::system_error>());
    }
    SECTION("its coroutines are destroyed with the context") { server.reset(); }
    SECTION("nothing has run yet") {
        server = std::make_unique<ScriptedServer>(context.get_executor());
        server.reset();
    }
}

TEST_CASE("ScriptedServer: an exception of the script leaves the run() of the context", "[openai][scripted]") {
    ScriptedScene scene({.script = [](const ScriptedRequest&) -> Behaviour { throw std::runtime_error("no idea"); }});
    RawClient probe = scene.probe();
    scene.run([&] { return probe.send(chat_request("a")); });
    CHECK_THROWS_AS(scene.run([&] { return probe.read(); }), std::runtime_error);
    scene.finish();
}

TEST_CASE("ScriptedServer: options out of range are refused", "[openai][scripted]") {
    boost::asio::io_context context(1);
    const auto make = [&](openai::ScriptedServerOptions options) {
        try {
            const ScriptedServer server(context.get_executor(), std::move(options));
        } catch (const std::invalid_argument& error) {
            return std::string(error.what());
        }
        return std::string("none");
    };
    CHECK(make({.rate = -1}) == "ScriptedServer: rate must be from 0 to 1000000, got -1");
    CHECK(make({.burst = 0}) == "ScriptedServer: burst must be from 1 to 1000000, got 0");
    CHECK(make({.rate = 1'000'001}) == "ScriptedServer: rate must be from 0 to 1000000, got 1000001");
    CHECK(make({.rate = 1'000'000, .burst = 1'000'000}) == "none");
    CHECK(make({.keep_alive = 0ns}) == "ScriptedServer: keep_alive must be positive, got 0 ns");
    context.run();
}
