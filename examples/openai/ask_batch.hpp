// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "../json_lines.hpp"
#include "../progress.hpp"
#include "ask_answers.hpp"
#include "ask_lines.hpp"
#include "ask_options.hpp"
#include "ask_prompts.hpp"
#include "ask_source.hpp"
#include "client.hpp"
#include "seconds.hpp"
#include "text.hpp"

#include <sluice/observer.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/task_group.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/signal_set.hpp>

#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstddef>
#include <exception>
#include <ios>
#include <iostream>
#include <optional>
#include <string>
#include <utility>

namespace openai {

/// The files of a batch. The constructor reads them, and throws a std::runtime_error that names the file, and the line,
/// that is wrong.
struct BatchFiles {
    explicit BatchFiles(const AskOptions& options)
        : prompts(options.batch),
          answers(options.output, prompts, options.resume),
          failures(options.failed, std::ios::trunc, std::cerr) {}

    Prompts prompts;
    Answers answers;
    support::LineWriter failures;
};

/// Stores the prompts that failed: the dead-letter sink.
class FailureSink {
public:
    FailureSink(support::LineWriter& file, support::Progress& progress) : file_(file), progress_(progress) {}

    void put(const sluice::Query& query, const sluice::StageResult<>& failure) {
        progress_.erase();  // standard error may be the file
        file_.write(failed_line(query, failure));
        ++count_;
    }

    std::size_t count() const noexcept { return count_; }

private:
    support::LineWriter& file_;
    support::Progress& progress_;
    std::size_t count_ = 0;
};

/// What is known of a prompt.
struct AskRecord {
    std::optional<ChatAnswer> answer;
};

/// The pipeline that asks: one stage behind an endpoint with the limits of the options.
inline auto make_ask_pipeline(const boost::asio::any_io_executor& executor, Client& client, const AskOptions& options,
                              FailureSink& failures, sluice::Observer* observer) {
    using std::chrono::milliseconds;
    using std::chrono::minutes;
    sluice::EndpointOptions limits{.limit = options.at_once};
    if (options.rate) limits.requests = sluice::Rate(*options.rate, minutes(1));
    const sluice::Endpoint endpoint(executor, "model", limits);
    const auto ask = [&client, model = options.name](const std::string& prompt, sluice::Attempt& attempt) {
        return client.chat({.model = model, .messages = {{"user", prompt}}}, attempt);
    };
    const sluice::Stage answer(
        endpoint, "answer", ask,
        sluice::StageOptions{.timeout = options.timeout,
                             .retry = {.max_retries = options.retries, .backoff = {.initial = milliseconds(500)}}});
    // NOLINTNEXTLINE(cppcoreguidelines-avoid-capturing-lambda-coroutines): the pipeline stores it
    auto route = [answer](sluice::Run<AskRecord>& run) -> boost::asio::awaitable<void> {
        co_await run.step(&AskRecord::answer, answer, run.query().text);
    };
    return sluice::Pipeline(executor, std::move(route), failures, options.at_once,
                            sluice::PipelineOptions{.observer = observer});
}

/// Asks for each prompt that has no answer.
///
/// The first signal drains: no other prompt is begun, and what is not answered when the grace is over is left to
/// --resume. Any other signal ends the grace. An error after which no request will work, such as that of a wrong key,
/// drains as well, and so does a server that asks to wait for longer than the client would.
///
/// @par Lifetime
/// It must live until the executor has nothing left to run, even after an exception.
class AskBatch {
public:
    /// @param client, options, files Must outlive this.
    AskBatch(const boost::asio::any_io_executor& executor, Client& client, const AskOptions& options, BatchFiles& files)
        : options_(options),
          files_(files),
          resumed_(files.answers.size()),
          source_(executor, files.prompts, files.answers, max_ahead + options.at_once),
          progress_(std::cerr, source_.size(), "answer",
                    [start = Clock::now()] { return std::chrono::nanoseconds(Clock::now() - start); }),
          signals_(executor, SIGINT, SIGTERM),
          failures_(files.failures, progress_),
          pipeline_(
              make_ask_pipeline(executor, client, options, failures_, isatty(STDERR_FILENO) ? &progress_ : nullptr)) {}

    AskBatch(const AskBatch&) = delete;
    AskBatch& operator=(const AskBatch&) = delete;

    /// When awaited, asks, and returns the status to exit with.
    boost::asio::awaitable<int> run() {
        const auto body = [this](sluice::TaskGroup& group) { return ask(group); };
        co_await sluice::with_task_group(body);
        lines_.put_rest([this](std::size_t index, const std::string& line) { write(index, line); });
        files_.answers.sort();
        const std::size_t answered = files_.answers.size() - resumed_;
        const std::size_t failed = failures_.count();
        std::cerr << "ask: " << answered << " answered, " << failed << " failed, " << source_.size() - answered - failed
                  << " not done";
        if (options_.resume) std::cerr << ", " << resumed_ << " answered before";
        std::cerr << '\n';
        co_return answered == source_.size() ? 0 : 1;
    }

private:
    using Clock = std::chrono::steady_clock;

    // How many answers may wait for that of an earlier prompt, and so be lost if the program is killed.
    static constexpr std::ptrdiff_t max_ahead = 1000;

    boost::asio::awaitable<void> ask(sluice::TaskGroup& group) {
        group.spawn(drain_when_told(group));
        auto results = pipeline_.process_stream(source_);
        while (auto item = co_await results.next()) {
            auto& [index, result] = *item;
            std::string line;
            if (result.completed) {
                line = answer_line(result.query, result.stage_results.front(), *std::move(result.record.answer));
            } else if (result.dead_letter_error) {
                std::rethrow_exception(result.dead_letter_error.exception());
            } else {
                stop_if_exhausted(group, *result.failure());
            }
            lines_.put(index, std::move(line), [this](std::size_t i, const std::string& text) { write(i, text); });
            source_.pass(lines_.passed());
        }
        ended_ = true;
        signals_.cancel();
    }

    void write(std::size_t index, const std::string& line) {
        if (on_terminal_) progress_.erase();
        files_.answers.write(source_.position(index), on_terminal_ ? for_terminal(line) : line);
    }

    boost::asio::awaitable<void> drain_when_told(sluice::TaskGroup& group) {
        constexpr auto token = boost::asio::as_tuple(boost::asio::deferred);
        for (auto grace = options_.grace; !ended_; grace = std::chrono::seconds(0)) {
            const auto [error, number] = co_await signals_.async_wait(token);
            if (error) co_return;
            drain(group, "draining", grace);
        }
    }

    void stop_if_exhausted(sluice::TaskGroup& group, const sluice::StageResult<>& failure) {
        const auto error = model_error_of(failure);
        if (!error || error->verdict().kind != sluice::Verdict::exhausted || std::exchange(exhausted_, true)) return;
        const auto wait = error->verdict().retry_after;
        const bool waits = wait > std::chrono::minutes(2) && (error->status() == 429 || error->status() == 503);
        const std::string why = waits ? "the server asks to wait for " + in_seconds(*wait) : "no request will work";
        drain(group, why + ", so draining: " + error->what(), options_.grace);
    }

    void drain(sluice::TaskGroup& group, const std::string& why, std::chrono::seconds grace) {
        progress_.erase();
        std::cerr << "ask: " << why << ", for at most " << grace.count() << " s\n";
        group.spawn(drained(grace));
    }

    boost::asio::awaitable<void> drained(std::chrono::seconds grace) { co_await pipeline_.drain(grace); }

    const AskOptions& options_;
    BatchFiles& files_;
    const std::size_t resumed_;
    PromptSource source_;
    support::LinesInOrder lines_;
    support::Progress progress_;
    boost::asio::signal_set signals_;
    FailureSink failures_;
    decltype(make_ask_pipeline({}, std::declval<Client&>(), {}, std::declval<FailureSink&>(), nullptr)) pipeline_;
    const bool on_terminal_ = options_.output.empty() && isatty(STDOUT_FILENO);  // that of the progress, maybe
    bool exhausted_ = false;
    bool ended_ = false;
};

}  // namespace openai
