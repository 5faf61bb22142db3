// SPDX-License-Identifier: BSL-1.0
// A Client behind an endpoint, a stage and a pipeline, and the ScriptedServer that it talks to.
#pragma once

#include "dead_letter_queue.hpp"
#include "openai/client.hpp"
#include "openai/scripted_server.hpp"

#include "support/task.hpp"

#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_observer.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <cstddef>
#include <functional>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace test {

using namespace std::chrono_literals;

/// Asks the client, whole or streamed.
struct ChatModel {
    openai::Client* client;
    bool stream = false;

    boost::asio::awaitable<std::string> operator()(const std::string& text, sluice::Attempt& attempt) const {
        return ask(*client, stream, text, attempt);
    }

    static boost::asio::awaitable<std::string> ask(openai::Client& client, bool stream, const std::string& text,
                                                   sluice::Attempt& attempt) {
        openai::ChatRequest request{.model = "m", .messages = {{"user", text}}};
        openai::ChatAnswer answer;
        if (stream) {
            std::string pieces;
            openai::OnPiece on_piece = [&pieces](std::string_view piece) { pieces += piece; };
            answer = co_await client.chat_stream(std::move(request), std::move(on_piece), attempt);
            CHECK(pieces == answer.text);
        } else {
            answer = co_await client.chat(std::move(request), attempt);
        }
        co_return std::move(answer.text);
    }
};

struct ChatRecord {
    std::optional<std::string> answer;
};

struct ChatRoute {
    sluice::Stage<ChatModel> stage;

    boost::asio::awaitable<void> operator()(sluice::Run<ChatRecord>& run) const { return ask(stage, run); }
    static boost::asio::awaitable<void> ask(const sluice::Stage<ChatModel>& stage, sluice::Run<ChatRecord>& run) {
        co_await run.step(&ChatRecord::answer, stage, run.query().text);
    }
};

struct PauseCounter : sluice::EndpointObserver {
    int pauses = 0;
    void on_paused(const sluice::SharedString&, std::chrono::nanoseconds, std::chrono::nanoseconds) noexcept override {
        ++pauses;
    }
};

/// How a ClientScene is made.
struct ClientSetup {
    openai::ScriptedServerOptions server = {};
    std::ptrdiff_t limit = 4;
    sluice::StageOptions stage = {};
    openai::HttpOptions http = {};
    bool stream = false;
    std::string host = "127.0.0.1";
    std::string scheme = {};  ///< Default: that of the server.
};

/// The text that the server answers to a question.
inline std::string scripted_reply(const std::string& text) {
    return "You said: \"" + text + "\" This is a scripted answer; no model has read it.";
}

class ClientScene {
public:
    using Result = sluice::RecordResult<ChatRecord>;
    using Results = std::vector<Result>;

    explicit ClientScene(ClientSetup its) : setup(std::move(its)), server(context.get_executor(), setup.server) {
        client.emplace(context.get_executor(), url(), openai::ClientOptions{.http = setup.http});
    }

    /// Starts a batch of queries, "question 1" and so on.
    Task<Results> start(std::size_t queries) {
        std::vector<sluice::Query> batch;
        for (std::size_t i = 1; i <= queries; ++i) {
            batch.emplace_back("q-" + std::to_string(i), "question " + std::to_string(i));
        }
        const sluice::Endpoint endpoint(context.get_executor(), "server",
                                        sluice::EndpointOptions{.limit = setup.limit, .observer = &pauses});
        const sluice::Stage stage(endpoint, "ask", ChatModel{&*client, setup.stream}, setup.stage);
        sluice::Pipeline pipeline(context.get_executor(), ChatRoute{stage}, dead_letters, 64);
        return Task<Results>(context.get_executor(),
                             [pipeline = std::move(pipeline), batch = std::move(batch)]() mutable {
                                 return pipeline.process_batch(std::move(batch));
                             });
    }

    /// Runs a batch. Each query ends in exactly one way, at most `limit` are at the server at once, and in the end
    /// nothing is in work.
    Results run(std::size_t queries) {
        auto task = start(queries);
        run_until([&] { return task.ends() > 0; });
        REQUIRE(task.succeeded());
        Results results = std::move(task.value());
        CHECK(results.size() == queries);
        std::set<std::string> lost;
        for (const auto& [query, why] : dead_letters.drain()) {
            CHECK(lost.insert(query.id.str()).second);
        }
        for (const auto& result : results) {
            CHECK(result.completed != lost.contains(result.query.id.str()));
            if (result.completed) {
                CHECK(result.record.answer == scripted_reply(result.query.text));
            }
        }
        run_until([&] { return server.counts().working == 0; });
        CHECK(server.counts().most_working <= static_cast<std::size_t>(setup.limit));
        return results;
    }

    void run_until(const std::function<bool()>& done) {
        while (!done()) {
            const auto handlers = context.run_one_for(20s);
            REQUIRE(handlers == 1);
        }
    }

    /// Destroys the client: its connections close, and when the server is closed too nothing is left to do.
    void finish() {
        client.reset();
        run_until([&] { return server.counts().open_connections == 0; });
        CHECK(server.counts().working == 0);
        server.close();
        context.run_for(20s);
        CHECK(context.stopped());
    }

    std::string url() const {
        const std::string scheme = setup.server.tls != nullptr ? "https" : "http";
        return (setup.scheme.empty() ? scheme : setup.scheme) + "://" + setup.host + ":" +
               std::to_string(server.port()) + "/v1";
    }

    const ClientSetup setup;
    PauseCounter pauses;
    support::DeadLetterQueue dead_letters;
    boost::asio::io_context context{1};
    openai::ScriptedServer server;
    std::optional<openai::Client> client;
};

}  // namespace test
