// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "protocol_probes.hpp"
#include "raw_server.hpp"

#include <openai/client.hpp>

#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <type_traits>
#include <utility>
#include <vector>

namespace test {

inline openai::ChatRequest short_question() { return {.model = "small", .messages = {{"user", "Well?"}}}; }

/// A client of a server, and what one attempt of it has told.
struct ClientBench {
    explicit ClientBench(std::vector<RawScene> scenes, openai::ClientOptions options = {})
        : server(context, std::move(scenes)) {
        client.emplace(context.get_executor(), server.url(), std::move(options));
    }

    // Runs one operation, and keeps the server.
    template <class Operation>
    auto result_of(Operation operation) {
        using Result = typename std::invoke_result_t<Operation>::value_type;
        std::optional<Result> result;
        std::exception_ptr failure;
        asio::co_spawn(context, operation(), [&](std::exception_ptr error, Result value) {
            failure = error;
            result = std::move(value);
        });
        while (!result) {
            context.run_one();
        }
        if (failure) {
            std::rethrow_exception(failure);
        }
        return std::move(*result);
    }

    openai::ChatAnswer chat() {
        return result_of([&] { return client->chat(short_question(), attempt); });
    }
    openai::ChatAnswer chat_stream() {
        return result_of([&] {
            return client->chat_stream(short_question(), [this](std::string_view piece) { take(piece); }, attempt);
        });
    }

    void take(std::string_view piece) {
        pieces.emplace_back(piece);
        if (throws_at_piece) {
            throw std::logic_error("enough");
        }
    }

    template <class Condition>
    void run_until(Condition condition) {
        while (!condition()) {
            context.run_one();
        }
    }

    // Checks that nothing is left of the client.
    void end() {
        client.reset();
        run_until([&] { return server.open() == 0; });
        server.close();
        context.run();
    }

    asio::io_context context{1};
    RawServer server;
    std::optional<openai::Client> client;
    RecordingAttempt attempt;
    std::vector<std::string> pieces;
    bool throws_at_piece = false;
};

}  // namespace test
