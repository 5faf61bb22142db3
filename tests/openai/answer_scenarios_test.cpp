// SPDX-License-Identifier: BSL-1.0
// The whole client against answers that break off, are none or are errors; see also scenarios_test.cpp.
#include "client_scene.hpp"
#include "protocol_probes.hpp"
#include "scenario.hpp"
#include "scripts.hpp"
#include "support/task.hpp"

#include "openai/embeddings.hpp"
#include "openai/http_options.hpp"
#include "openai/scripted_server.hpp"

#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

namespace {

using namespace std::chrono_literals;
using openai::Behaviour;
using sluice::Verdict;
using test::all_completed;
using test::all_have_attempts;
using test::always;
using test::ClientScene;
using test::first_time;
using test::kind_of;
using test::the_failure;
using test::with_retries;

}  // namespace

TEST_CASE("scenario: drops of bytes are an answer in the end", "[openai][scenario]") {
    ClientScene scene(
        {.server = {.script = always({.piece_delay = 1us, .piece_bytes = 5})}, .stream = GENERATE(false, true)});
    CHECK(all_completed(scene.run(10)));
    CHECK(scene.server.counts().connections == 4);
    scene.finish();
}

TEST_CASE("scenario: embeddings come in the order of their texts", "[openai][scenario]") {
    ClientScene scene({.server = {.script = always({})}});
    const std::vector<std::string> texts{"a cat", "a dog", "a cat"};
    test::RecordingAttempt attempt;
    test::Task<openai::Embeddings> task(scene.context.get_executor(),
                                        [&] { return scene.client->embed("m", texts, attempt); });
    scene.run_until([&] { return task.ends() > 0; });
    REQUIRE(task.succeeded());
    const auto& vectors = task.value().vectors;
    REQUIRE(vectors.size() == 3);
    CHECK(vectors[0].size() == 8);
    CHECK(vectors[0] == vectors[2]);
    CHECK(vectors[0] != vectors[1]);
    CHECK(attempt.usages == std::vector{sluice::Cost{.input_tokens = 6}});
    scene.finish();
}

TEST_CASE("scenario: a server that dies in mid-answer", "[openai][scenario]") {
    const auto stop_after = GENERATE(std::size_t{0}, 20, 150, 250);
    CAPTURE(stop_after);
    SECTION("of a whole answer: it is asked again") {
        ClientScene scene({.server = {.script = first_time({.stop_after = stop_after})}, .stage = with_retries(1)});
        const auto results = scene.run(10);
        CHECK(all_completed(results));
        // On a connection that was used before, a server that has said nothing is asked again at once.
        CHECK((stop_after == 0 || all_have_attempts(results, 2)));
        CHECK(scene.server.counts().requests == 20);
        scene.finish();
    }
    SECTION("of a stream before its first piece: it is asked again") {
        ClientScene scene(
            {.server = {.script = first_time({.stop_after = stop_after})}, .stage = with_retries(1), .stream = true});
        CHECK(all_completed(scene.run(10)));
        CHECK(scene.server.counts().requests == 20);
        scene.finish();
    }
}

TEST_CASE("scenario: a stream that breaks off after its first piece is not asked for again", "[openai][scenario]") {
    const Behaviour behaviour =
        GENERATE(Behaviour{.words = 3, .last_event = ""},
                 Behaviour{.words = 3, .last_event = R"({"error":{"message":"out of memory"}})"},
                 Behaviour{.stop_after = 1200}, Behaviour{.words = 3, .last_event = "{"});
    ClientScene scene({.server = {.script = always(behaviour)}, .stage = with_retries(3), .stream = true});
    const auto results = scene.run(10);
    const auto failure = the_failure(results);
    CHECK(failure.attempts == 1);
    CHECK_FALSE(sluice::verdict_of(failure.error.exception()).retryable());
    CAPTURE(failure.error.message());
    CHECK(failure.error.message().find(" bytes") != std::string::npos);
    CHECK(scene.server.counts().requests == 10);
    scene.finish();
}

TEST_CASE("scenario: answers that are none are tried again, as often as the stage allows", "[openai][scenario]") {
    const bool stream = GENERATE(false, true);
    const auto html = [](int status) {
        return Behaviour{
            .status = status, .headers = {{"Content-Type", "text/html"}}, .body = "<html>Bad gateway</html>"};
    };
    const Behaviour behaviour = GENERATE_COPY(
        html(200), html(502), Behaviour{.raw = "SSH-2.0-OpenSSH\r\n", .close = true},
        Behaviour{.raw = std::string(100'000, '\xff'), .close = true}, Behaviour{.body = "{\"choices\":[{\"mess"},
        Behaviour{.body = "[]"}, Behaviour{.body = ""}, Behaviour::error(500, "internal", "broken"),
        Behaviour{.status = 200, .body = R"({"error":{"message":"the worker died"}})"});
    CAPTURE(stream, behaviour.body.value_or("-"), behaviour.status.value_or(0));
    ClientScene scene({.server = {.script = always(behaviour)}, .stage = with_retries(2), .stream = stream});
    const auto failure = the_failure(scene.run(6));
    CHECK(kind_of(failure) == Verdict::transient);
    CHECK(failure.attempts == 3);
    CHECK(failure.error.message().size() <= 1024);
    scene.finish();
}

TEST_CASE("scenario: errors that no retry can help", "[openai][scenario]") {
    const auto [behaviour, kind] = GENERATE(table<Behaviour, Verdict::Kind>({
        {Behaviour::error(429, "insufficient_quota", "You exceeded your current quota"), Verdict::exhausted},
        {Behaviour::error(401, "invalid_api_key", "Incorrect API key"), Verdict::exhausted},
        {Behaviour::error(400, "context_length_exceeded", "too long"), Verdict::invalid},
        {Behaviour::error(404, "model_not_found", "no such model"), Verdict::invalid},
    }));
    ClientScene scene(
        {.server = {.script = always(behaviour)}, .stage = with_retries(3), .stream = GENERATE(false, true)});
    const auto failure = the_failure(scene.run(6));
    CHECK(failure.attempts == 1);
    CHECK(kind_of(failure) == kind);
    CHECK(scene.server.counts().requests == 6);
    CHECK(scene.server.counts().connections == 4);  // an error that was read to its end leaves its connection usable
    scene.finish();
}

TEST_CASE("scenario: bodies that are too long are not read", "[openai][scenario]") {
    openai::HttpOptions http;
    http.max_body = 100'000;
    const bool stream = GENERATE(false, true);
    const Behaviour behaviour = GENERATE(Behaviour{.headers = {{"Content-Length", "1000000000"}}, .body = "{"},
                                         Behaviour{.body = std::string(1000, ' '), .endless = true});
    ClientScene scene(
        {.server = {.script = always(behaviour)}, .stage = with_retries(1), .http = http, .stream = stream});
    const auto results = scene.run(6);
    CHECK(std::ranges::none_of(results, [](const auto& result) { return result.completed; }));
    scene.finish();
}
