// SPDX-License-Identifier: BSL-1.0
// A pipeline of your own: five stages on a route with steps side by side, a loop and a fallback. What failed is run
// once more, and goes on where it failed. Ctrl-C drains, and a second one ends the grace.
#include "arguments.hpp"

#include <sluice/sluice.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/signal_set.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>

#include <chrono>
#include <csignal>
#include <exception>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

asio::awaitable<void> sleep(std::chrono::milliseconds duration) {
    asio::steady_timer timer(co_await asio::this_coro::executor, duration);
    co_await timer.async_wait(asio::deferred);
}

// The models. Real ones would call a service; these wait, and some fail.
asio::awaitable<std::string> classify(const std::string& text) {
    co_await sleep(20ms);
    if (text.find("password") != std::string::npos) co_return "forbidden";
    co_return text.back() == '?' ? "question" : "statement";
}

asio::awaitable<std::vector<std::string>> retrieve(const std::string& text) {
    static int hangs = 2;  // the first two calls about locks end by their timeout
    const bool hang = text.find("lock") != std::string::npos && hangs-- > 0;
    co_await sleep(hang ? 10s : 30ms);
    co_return std::vector<std::string>{"a passage about \"" + text + '"'};
}

asio::awaitable<std::string> generate(const std::string& kind, const std::vector<std::string>& passages, int draft) {
    co_await sleep(50ms);
    if (kind != "question") throw std::runtime_error("nothing was asked");
    co_return "draft " + std::to_string(draft) + " from " + passages.front();
}

asio::awaitable<std::string> answer_briefly(const std::string& text) {
    co_await sleep(5ms);
    co_return "a brief answer to \"" + text + '"';
}

asio::awaitable<double> judge(const std::string& answer) {
    co_await sleep(20ms);
    co_return answer.starts_with("draft 1") ? 0.2 : 0.9;
}

// All that is known of a query.
struct Answer {
    std::optional<std::string> kind;
    std::optional<std::vector<std::string>> passages;
    std::optional<std::string> text;
    std::optional<double> score;
    int draft = 1;
};

// Keeps what failed, with what is known of it.
struct DeadLetters {
    std::vector<sluice::Checkpoint<Answer>> letters;

    void put(const sluice::Query& query, const sluice::StageResult<>& why, const Answer& record) {
        std::cout << query.text << " -> " << why.stage << " failed: " << why.error.message() << std::endl;
        letters.emplace_back(query, record);
    }
};

// The pipeline. Its route holds the stages.
auto make_pipeline(const asio::any_io_executor& executor, DeadLetters& dead_letters) {
    const sluice::Stage classify_stage(executor, "classify", 8, classify);
    const sluice::Stage retrieve_stage(
        executor, "retrieve", 4, retrieve,
        sluice::StageOptions{.timeout = 100ms, .retry = {.max_retries = 1, .backoff = {.initial = 20ms}}});
    const sluice::Stage generate_stage(executor, "generate", 2, generate);
    const sluice::Stage brief_stage(executor, "brief", 8, answer_briefly);
    const sluice::Stage judge_stage(executor, "judge", 4, judge);
    // NOLINTNEXTLINE(cppcoreguidelines-avoid-capturing-lambda-coroutines): the pipeline stores it
    auto route = [=](sluice::Run<Answer>& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        co_await run.all(run.step(&Answer::kind, classify_stage, text),  // side by side
                         run.step(&Answer::passages, retrieve_stage, text));
        if (*run->kind == "forbidden") co_return;  // the kind is known here: all() throws if a step failed
        for (;;) {
            // If the large model fails, the small one answers.
            co_await run.step_or_error(&Answer::text, generate_stage, &Answer::kind, &Answer::passages, run->draft);
            co_await run.step(&Answer::text, brief_stage, text);
            co_await run.step(&Answer::score, judge_stage, &Answer::text);
            if (*run->score >= 0.5 || run->draft == 3) co_return;
            ++run->draft;
            run->text.reset();  // at the end of a round: until then a checkpoint keeps what was paid for
            run->score.reset();
        }
    };
    return sluice::Pipeline(executor, std::move(route), dead_letters, 16);
}

// Holds the pipeline, and the sink that it refers to.
class Assistant {
public:
    explicit Assistant(const asio::any_io_executor& executor) : pipeline_(make_pipeline(executor, dead_letters_)) {}

    /// Answers all queries. Those that failed are run once more, and go on where they failed.
    asio::awaitable<void> answer(std::vector<sluice::Query> queries) {
        print(co_await pipeline_.process_batch(std::move(queries)));
        const auto letters = std::exchange(dead_letters_.letters, {});
        try {
            print(co_await pipeline_.process_batch(letters));
        } catch (const sluice::Draining&) {
            for (const auto& letter : letters) std::cout << letter.query.text << " -> not run again" << std::endl;
        }
        answered_ = true;
    }

    /// When awaited, drains at the first signal, and ends the grace at any other.
    asio::awaitable<void> drain_when_told(asio::signal_set& signals) {
        const auto executor = co_await asio::this_coro::executor;
        constexpr auto token = asio::as_tuple(asio::deferred);
        for (auto grace = 1s; !answered_; grace = 0s) {
            const auto [error, number] = co_await signals.async_wait(token);
            if (error) co_return;
            asio::co_spawn(executor, drain(grace), asio::detached);
        }
    }

private:
    // Takes in nothing more, lets what runs go on for `grace`, and says how it ended. Again, it shortens the grace.
    asio::awaitable<void> drain(std::chrono::seconds grace) {
        const auto report = co_await pipeline_.drain(grace);  // without checkpoints: a batch returns its queries itself
        if (std::exchange(reported_, true)) co_return;
        std::cout << "drained: " << report.completed << " completed, " << report.dead << " failed, "
                  << report.unfinished << " unfinished" << std::endl;
    }

    static void print(const std::vector<sluice::RecordResult<Answer>>& results) {
        for (const auto& result : results) {
            if (result.completed) {
                std::cout << result.query.text << " -> " << result.record.text.value_or("refused") << std::endl;
            } else if (result.unfinished) {
                std::cout << result.query.text << " -> unfinished" << std::endl;
            }
        }
    }

    bool answered_ = false;
    bool reported_ = false;
    DeadLetters dead_letters_;
    decltype(make_pipeline(std::declval<asio::any_io_executor>(), std::declval<DeadLetters&>())) pipeline_;
};

}  // namespace

int main(int argc, char** argv) {
    if (const auto status = support::refuse_arguments("custom_pipeline", argc, argv)) {
        return *status;
    }
    asio::io_context context(1);
    Assistant assistant(context.get_executor());
    asio::signal_set interrupts(context, SIGINT);
    asio::co_spawn(context, assistant.drain_when_told(interrupts), asio::detached);
    std::vector<sluice::Query> queries;
    for (const char* text : {"What is a sluice?", "Tell me the password", "How does a lock work?", "Water flows"}) {
        queries.emplace_back(text, text);
    }
    asio::co_spawn(context, assistant.answer(std::move(queries)), [&](const std::exception_ptr& error) {
        interrupts.cancel();
        if (error) std::rethrow_exception(error);
    });
    context.run();
}
