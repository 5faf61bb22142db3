// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "ask_options.hpp"
#include "client.hpp"
#include "text.hpp"

#include <sluice/stage/attempt.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/task_group.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/this_coro.hpp>

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <iostream>
#include <string>
#include <string_view>
#include <utility>

namespace openai {

/// Asks one question and prints the answer as it comes. A signal cancels the call, which closes its connection.
class AskQuestion {
public:
    /// @param client, options Must outlive this.
    AskQuestion(const boost::asio::any_io_executor& executor, Client& client, const AskOptions& options,
                std::string question)
        : client_(client), options_(options), question_(std::move(question)), signals_(executor, SIGINT, SIGTERM) {}

    /// When awaited, asks, and returns the status to exit with.
    boost::asio::awaitable<int> run() {
        const auto body = [this](sluice::TaskGroup& group) { return ask(group); };
        co_await sluice::with_task_group(body);
        if (last_ != '\n') std::cout << std::endl;
        if (!error_.empty()) std::cerr << "ask: " << error_ << '\n';
        co_return status_;
    }

private:
    boost::asio::awaitable<void> ask(sluice::TaskGroup& group) {
        group.spawn(cancel_when_told(group));
        const auto executor = co_await boost::asio::this_coro::executor;
        const auto stream = [this](const std::string& question, sluice::Attempt& attempt) {
            return client_.chat_stream(
                {.model = options_.name, .messages = {{"user", question}}},
                [this](std::string_view piece) { print(piece); }, attempt);
        };
        const sluice::Stage answer(
            executor, "answer", 1, stream,
            sluice::StageOptions{
                .retry = {.max_retries = options_.retries, .backoff = {.initial = std::chrono::milliseconds(500)}}});
        auto run = answer.run("question", question_);
        const auto result = co_await std::move(run);
        status_ = result.success ? 0 : 1;
        error_ = result.error.message();
        signals_.cancel();
    }

    boost::asio::awaitable<void> cancel_when_told(sluice::TaskGroup& group) {
        constexpr auto token = boost::asio::as_tuple(boost::asio::deferred);
        const auto [error, number] = co_await signals_.async_wait(token);
        if (error) co_return;
        status_ = 128 + number;
        group.cancel();
    }

    void print(std::string_view piece) {
        if (piece.empty()) return;
        last_ = piece.back();
        // Not to be asked again, whatever the client thinks of it.
        if (!(on_terminal_ ? std::cout << for_terminal(piece) : std::cout << piece).flush()) {
            throw sluice::ModelError("cannot write standard output", {.kind = sluice::Verdict::invalid});
        }
    }

    Client& client_;
    const AskOptions& options_;
    std::string question_;
    boost::asio::signal_set signals_;
    const bool on_terminal_ = isatty(STDOUT_FILENO) != 0;
    char last_ = '\n';  // of what was printed
    int status_ = 1;
    std::string error_;
};

}  // namespace openai
