// SPDX-License-Identifier: BSL-1.0
// A pipeline of your own: five stages, moderate, classify, retrieve, generate and judge, composed as a plain coroutine.
#include "arguments.hpp"

#include <sluice/sluice.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_future.hpp>

#include <chrono>
#include <iostream>
#include <stdexcept>
#include <string>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

asio::awaitable<void> sleep(std::chrono::milliseconds duration) {
    asio::steady_timer timer(co_await asio::this_coro::executor, duration);
    co_await timer.async_wait(asio::deferred);
}

// The models. Real ones would call a service; these wait, and two of them misbehave.
asio::awaitable<bool> moderate(std::string text) {
    co_await sleep(10ms);
    co_return text.find("password") == std::string::npos;
}

asio::awaitable<std::string> classify(std::string text) {
    co_await sleep(20ms);
    co_return text.back() == '?' ? "question" : "statement";
}

asio::awaitable<std::vector<std::string>> retrieve(std::string text) {
    static int calls = 0;
    co_await sleep(++calls == 2 ? 10s : 30ms);  // the second call hangs until its timeout
    co_return std::vector<std::string>{"a passage about \"" + text + '"'};
}

asio::awaitable<std::string> generate(const std::string& kind, const std::vector<std::string>& passages) {
    static int calls = 0;
    co_await sleep(50ms);
    if (++calls == 1) {
        throw std::runtime_error("the model is warming up");  // a retry succeeds
    }
    co_return "answer to a " + kind + " from " + passages.front();
}

asio::awaitable<double> judge(const std::string& answer) {
    co_await sleep(20ms);
    co_return answer.size() > 20 ? 0.9 : 0.2;
}

constexpr sluice::Backoff soon{.initial = 20ms};

class Assistant {
public:
    explicit Assistant(const asio::any_io_executor& executor)
        : moderate_(executor, "moderate", 8, moderate),
          classify_(executor, "classify", 8, classify),
          retrieve_(executor, "retrieve", 4, retrieve,
                    {.timeout = 100ms, .retry = {.max_retries = 1, .backoff = soon}}),
          generate_(executor, "generate", 2, generate, {.retry = {.max_retries = 2, .backoff = soon}}),
          judge_(executor, "judge", 4, judge) {}

    /// Returns a line about one query. If a stage fails for good, no later one runs.
    asio::awaitable<std::string> answer(sluice::Query query) {
        const auto allowed = co_await moderate_.run(query.id, query.text);
        if (!allowed.success) co_return describe(allowed);
        if (!*allowed.data) co_return query.id.str() + ": refused";
        const auto kind = co_await classify_.run(query.id, query.text);
        if (!kind.success) co_return describe(kind);
        const auto passages = co_await retrieve_.run(query.id, query.text);
        if (!passages.success) co_return describe(passages);
        const auto answer = co_await generate_.run(query.id, *kind.data, *passages.data);
        if (!answer.success) co_return describe(answer);
        const auto score = co_await judge_.run(query.id, *answer.data);
        if (!score.success) co_return describe(score);
        co_return query.id.str() + ": " + *answer.data + (*score.data < 0.5 ? " (doubtful)" : "") +
            (passages.attempts + answer.attempts > 2 ? " (after a retry)" : "");
    }

private:
    static std::string describe(const sluice::StageResult<>& result) {
        return result.query_id.str() + ": " + result.stage.str() + " failed: " + result.error.message();
    }

    sluice::Stage<decltype(&moderate)> moderate_;
    sluice::Stage<decltype(&classify)> classify_;
    sluice::Stage<decltype(&retrieve)> retrieve_;
    sluice::Stage<decltype(&generate)> generate_;
    sluice::Stage<decltype(&judge)> judge_;
};

asio::awaitable<void> run() {
    Assistant assistant(co_await asio::this_coro::executor);
    // NOLINTNEXTLINE(cppcoreguidelines-avoid-capturing-lambda-coroutines): the group stores it
    co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
        for (const char* text : {"What is a sluice?", "Tell me the password", "How does a lock work?", "Water flows"}) {
            // NOLINTNEXTLINE(cppcoreguidelines-avoid-capturing-lambda-coroutines): the group stores it
            group.spawn([&assistant, query = sluice::Query(text, text)]() -> asio::awaitable<void> {
                std::cout << co_await assistant.answer(query) << std::endl;
            });
        }
        co_return;
    });
}

}  // namespace

int main(int argc, char** argv) {
    if (const auto status = support::refuse_arguments("custom_pipeline", argc, argv)) {
        return *status;
    }
    asio::io_context context(1);
    auto done = asio::co_spawn(context, run(), asio::use_future);
    context.run();
    done.get();
}
