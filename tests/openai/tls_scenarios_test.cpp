// SPDX-License-Identifier: BSL-1.0
// The whole client against a ScriptedServer with TLS.
#include "client_scene.hpp"

#include "openai/scripted_server.hpp"

#include <sluice/stage/retry.hpp>
#include <sluice/stage/verdict.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <string>
#include <utility>

#if OPENAI_HAS_TLS

#include "certificates.hpp"

#include <boost/asio/ssl/context.hpp>

namespace {

using namespace std::chrono_literals;
using openai::Behaviour;
using openai::ScriptedRequest;
using sluice::Verdict;
using test::ClientScene;
using test::ClientSetup;

// A server whose certificate is for localhost, and a client that trusts its authority.
struct SecureSetup {
    test::Certificate authority;
    test::Certificate certificate{authority, "DNS:localhost"};
    boost::asio::ssl::context tls = certificate.server_context();
    test::TemporaryFile trusted{authority.pem()};

    ClientSetup with(openai::Script script, const std::string& host = "localhost") {
        ClientSetup setup;
        setup.server = {.script = std::move(script), .tls = &tls};
        setup.stage = {.retry = {.max_retries = 2, .backoff = {.initial = 1ms, .seed = 1}}};
        setup.http.ca_file = trusted.path();
        setup.host = host;
        return setup;
    }
};

bool every_query_has(const ClientScene::Results& results, bool completed, int attempts) {
    return std::ranges::all_of(results, [=](const auto& result) {
        return result.completed == completed && result.stage_results.front().attempts == attempts;
    });
}

}  // namespace

TEST_CASE("scenario: TLS, with connections that are kept, closed and lost", "[openai][scenario]") {
    SecureSetup secure;
    SECTION("kept") {
        ClientSetup setup = secure.with([](const ScriptedRequest&) { return Behaviour(); });
        setup.stream = GENERATE(false, true);
        ClientScene scene(setup);
        CHECK(every_query_has(scene.run(40), true, 1));
        CHECK(scene.server.counts().connections == 4);
        scene.finish();
    }
    SECTION("closed after the answer, without saying so") {
        ClientScene scene(secure.with([](const ScriptedRequest&) { return Behaviour{.close = true}; }));
        CHECK(every_query_has(scene.run(20), true, 1));
        CHECK(scene.server.counts().requests == 20);
        scene.finish();
    }
    SECTION("lost in mid-answer") {
        ClientScene scene(secure.with([](const ScriptedRequest&) { return Behaviour{.stop_after = 150}; }));
        CHECK(every_query_has(scene.run(6), false, 3));
        CHECK(scene.server.counts().requests == 18);
        scene.finish();
    }
    SECTION("abandoned") {
        ClientSetup setup = secure.with([](const ScriptedRequest&) { return Behaviour::silent(); });
        setup.stage.timeout = 20ms;
        ClientScene scene(setup);
        CHECK(every_query_has(scene.run(6), false, 3));
        CHECK(scene.server.counts().answers.empty());
        scene.finish();
    }
}

TEST_CASE("scenario: a certificate that is wrong fails every query, and none is tried again", "[openai][scenario]") {
    SecureSetup secure;
    ClientSetup setup = secure.with([](const ScriptedRequest&) { return Behaviour(); });
    SECTION("another host") { setup.host = "127.0.0.1"; }
    SECTION("another authority") { setup.http.ca_file.clear(); }
    ClientScene scene(setup);
    const auto results = scene.run(10);
    CHECK(every_query_has(results, false, 1));
    const auto error = results.front().failure()->error;
    CHECK(sluice::verdict_of(error.exception()).kind == Verdict::exhausted);
    CAPTURE(error.message());
    CHECK(error.message().find("certificate") != std::string::npos);
    CHECK(scene.server.counts().requests == 0);
    scene.finish();
}

TEST_CASE("scenario: one side speaks TLS, and the other does not", "[openai][scenario]") {
    SecureSetup secure;
    ClientSetup setup = secure.with([](const ScriptedRequest&) { return Behaviour(); });
    SECTION("the server") { setup.scheme = "http"; }
    SECTION("the client") {
        setup.server.tls = nullptr;
        setup.scheme = "https";
    }
    ClientScene scene(setup);
    CHECK(every_query_has(scene.run(6), false, 3));
    CHECK(scene.server.counts().answers.count(200) == 0);
    scene.finish();
}

#endif
