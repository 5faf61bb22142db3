// SPDX-License-Identifier: BSL-1.0
// The whole client, behind an endpoint with a limit of 4, against servers in trouble. Every run also checks that each
// query ends exactly once, that the server never has more than 4 requests in work, and that nothing stays open.
#include "client_scene.hpp"
#include "scenario.hpp"
#include "scripts.hpp"

#include "openai/http_options.hpp"
#include "openai/scripted_server.hpp"

#include <sluice/reason.hpp>
#include <sluice/stage/verdict.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <cstddef>
#include <map>
#include <string>

namespace {

using namespace std::chrono_literals;
using openai::Behaviour;
using openai::ScriptedRequest;
using sluice::Verdict;
using std::chrono::steady_clock;
using test::all_completed;
using test::all_have_attempts;
using test::always;
using test::ClientScene;
using test::first_time;
using test::kind_of;
using test::the_failure;
using test::with_retries;

}  // namespace

TEST_CASE("scenario: bursts of 429 with the time to wait pause the endpoint, and every query completes",
          "[openai][scenario]") {
    // From request 10 and from request 40 on, for 50 ms each, the server refuses whatever comes.
    const bool stream = GENERATE(false, true);
    steady_clock::time_point until;
    std::size_t bursts = 0;
    const auto script = [&](const ScriptedRequest& request) {
        const auto now = steady_clock::now();
        if (bursts < 2 && request.number >= (bursts == 0 ? 10U : 40U)) {
            ++bursts;
            until = now + 50ms;
        }
        return now < until ? Behaviour::throttled(std::chrono::ceil<std::chrono::milliseconds>(until - now))
                           : Behaviour();
    };
    ClientScene scene({.server = {.script = script}, .stream = stream});
    CHECK(all_completed(scene.run(80)));
    CHECK(bursts == 2);
    const auto& answers = scene.server.counts().answers;
    CHECK(answers.at(200) == 80);
    CHECK(answers.at(429) >= 2);
    CHECK(answers.at(429) <= 8);  // those that were under way, and none during the pause
    CHECK(scene.pauses.pauses >= 2);
    scene.finish();
}

TEST_CASE("scenario: a server with a rate of its own, and retry-after in seconds", "[openai][scenario]") {
    SECTION("rate") {
        ClientScene scene({.server = {.script = always({}), .rate = 500, .burst = 10}});
        CHECK(all_completed(scene.run(60)));
        CHECK(scene.server.counts().answers.at(200) == 60);
        scene.finish();
    }
    SECTION("retry-after") {
        Behaviour throttled = Behaviour::error(429, "rate_limit_exceeded", "slow down");
        throttled.headers.emplace_back("Retry-After", "0.02");
        ClientScene scene({.server = {.script = first_time(throttled)}});
        CHECK(all_completed(scene.run(10)));
        CHECK(scene.server.counts().answers == std::map<int, std::size_t>{{200, 10}, {429, 10}});
        CHECK(scene.pauses.pauses > 0);
        scene.finish();
    }
}

TEST_CASE("scenario: a server that never answers has its slot back after the timeout", "[openai][scenario]") {
    ClientScene scene({.server = {.script = always(Behaviour::silent()), .slots = 4},
                       .stage = with_retries(1, 30ms),
                       .stream = GENERATE(false, true)});
    const auto results = scene.run(12);
    CHECK(the_failure(results).reason == sluice::Reason::timeout);
    CHECK(all_have_attempts(results, 2));
    CHECK(scene.server.counts().requests <= 24);  // fewer if the time was up before a request was sent
    CHECK(scene.server.counts().requests > 0);
    CHECK(scene.server.counts().gone == scene.server.counts().requests);
    scene.finish();
}

TEST_CASE("scenario: one byte at a time, and the stage or the client has had enough", "[openai][scenario]") {
    const Behaviour drip{.piece_delay = 1h, .piece_bytes = 1};
    const bool stream = GENERATE(false, true);
    SECTION("the timeout of the stage") {
        ClientScene scene(
            {.server = {.script = always(drip), .slots = 4}, .stage = with_retries(1, 30ms), .stream = stream});
        CHECK(the_failure(scene.run(6)).reason == sluice::Reason::timeout);
        CHECK(scene.server.counts().requests > 0);
        CHECK(scene.server.counts().gone == scene.server.counts().requests);
        scene.finish();
    }
    SECTION("the timeout of the stage, though the bytes do not cease") {
        const Behaviour steady{.piece_delay = 1ms, .piece_bytes = 1, .body = "{ ", .endless = true};
        ClientScene scene(
            {.server = {.script = always(steady), .slots = 4}, .stage = with_retries(1, 60ms), .stream = stream});
        CHECK(the_failure(scene.run(6)).reason == sluice::Reason::timeout);
        CHECK(scene.server.counts().requests > 0);
        CHECK(scene.server.counts().gone == scene.server.counts().requests);
        scene.finish();
    }
    SECTION("the timeouts of the client") {
        openai::HttpOptions http;
        http.first_byte_timeout = 10ms;
        http.idle_timeout = 10ms;
        ClientScene scene(
            {.server = {.script = always(drip), .slots = 4}, .stage = with_retries(1), .http = http, .stream = stream});
        CHECK(kind_of(the_failure(scene.run(6))) == Verdict::transient);
        CHECK(scene.server.counts().gone == 12);
        scene.finish();
    }
}

TEST_CASE("scenario: a server that closes idle connections costs no attempt", "[openai][scenario]") {
    const bool stream = GENERATE(false, true);
    SECTION("right after the answer") {
        ClientScene scene({.server = {.script = always({.close = true})}, .stream = stream});
        const auto results = scene.run(50);
        CHECK(all_completed(results));
        CHECK(all_have_attempts(results, 1));
        CHECK(scene.server.counts().requests == 50);
        CHECK(scene.server.counts().connections == 50);
        scene.finish();
    }
    SECTION("when the next request is on its way") {
        const auto script = [](const ScriptedRequest& request) {
            return request.on_connection > 1 ? Behaviour{.stop_after = 0} : Behaviour();
        };
        ClientScene scene({.server = {.script = script}, .stream = stream});
        const auto results = scene.run(50);
        CHECK(all_completed(results));
        CHECK(all_have_attempts(results, 1));
        CHECK(scene.server.counts().answers == std::map<int, std::size_t>{{200, 50}});
        CHECK(scene.server.counts().requests > 90);  // one more for each that was sent over a used connection
        scene.finish();
    }
    SECTION("after a while") {
        ClientScene scene({.server = {.script = always({}), .keep_alive = 1ms}, .stream = stream});
        for (int i = 0; i < 3; ++i) {
            const auto results = scene.run(4);
            CHECK(all_completed(results));
            CHECK(all_have_attempts(results, 1));
            scene.run_until([&] { return scene.server.counts().open_connections == 0; });
        }
        scene.finish();
    }
}

TEST_CASE("scenario: connections are kept", "[openai][scenario]") {
    ClientScene scene({.server = {.script = always({})}, .stream = GENERATE(false, true)});
    CHECK(all_completed(scene.run(100)));
    CHECK(scene.server.counts().connections == 4);
    CHECK(scene.server.counts().requests == 100);
    scene.finish();
}

TEST_CASE("scenario: cancelling a batch frees every slot of the server", "[openai][scenario]") {
    const Behaviour behaviour =
        GENERATE(Behaviour::silent(), Behaviour{.piece_delay = 1h, .piece_bytes = 300}, Behaviour{.delay = 1h});
    ClientScene scene({.server = {.script = always(behaviour), .slots = 4},
                       .stage = with_retries(3),
                       .stream = GENERATE(false, true)});
    auto task = scene.start(20);
    scene.run_until([&] { return scene.server.counts().working == 4; });
    task.cancel();
    scene.run_until([&] { return task.ends() > 0; });
    CHECK(task.aborted());
    scene.run_until([&] { return scene.server.counts().working == 0; });
    CHECK(scene.server.counts().gone == 4);
    CHECK(scene.server.counts().requests == 4);
    CHECK(scene.dead_letters.size() == 0);
    scene.finish();
}

TEST_CASE("scenario: a server that is destroyed, and one that is not there", "[openai][scenario]") {
    ClientScene scene({.server = {.script = always({})}, .stage = with_retries(1)});
    CHECK(all_completed(scene.run(8)));
    scene.server.close();
    const auto results = scene.run(8);
    const auto failure = the_failure(results);
    CHECK(kind_of(failure) == Verdict::transient);
    CHECK(failure.attempts == 2);
    CAPTURE(failure.error.message());
    CHECK(failure.error.message().find("127.0.0.1") != std::string::npos);
    scene.finish();
}
