// SPDX-License-Identifier: BSL-1.0
// The code that README.md shows, compiled and, where it can be, run. What it calls BAD is only compiled.
#include "support/task.hpp"

#include <sluice/sluice.hpp>
#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/thread_pool.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

template <class Timer>
asio::awaitable<void> wait(std::chrono::milliseconds duration) {
    Timer timer(co_await asio::this_coro::executor, duration);
    co_await timer.async_wait(asio::deferred);
}

asio::awaitable<int> call_model(std::string) { co_return 1; }

struct CollectingSink {
    std::vector<std::string> lost;
    void put(const sluice::Query& query, const sluice::StageResult<>& why) {
        lost.push_back(query.id.str() + " in " + why.stage.str() + ": " + why.error.message());
    }
};

struct Gauge : sluice::Observer {
    int waiting = 0;  // for a slot, now
    void on_queued(const sluice::StageResult<>&) noexcept override { ++waiting; }
    void on_started(const sluice::StageResult<>&) noexcept override { --waiting; }
    void on_finished(const sluice::StageResult<>&, Outcome, Event last) noexcept override {
        waiting -= last == Event::queued;  // it has left the line without a slot
    }
};

TEST_CASE("readme: an observer that counts who waits", "[readme]") {
    asio::io_context context;
    CollectingSink sink;
    Gauge gauge;
    int most = 0;
    auto model = [&](const std::string&) -> asio::awaitable<int> {
        most = std::max(most, gauge.waiting);
        co_await wait<sluice::testing::VirtualTimer>(1ms);
        co_return 1;
    };
    auto answer = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 2; };
    sluice::BasicInferencePipelineOptions<sluice::testing::VirtualTimer> options;
    options.observer = &gauge;
    sluice::InferencePipeline pipeline(context.get_executor(), model, model, answer, sluice::StageLimits{1, 1, 1}, sink,
                                       options);
    test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const std::vector<sluice::Query> queries{{"1", "one"}, {"2", "two"}, {"3", "three"}};
        (void)co_await pipeline.process_batch(queries);
    });
    sluice::testing::run(context);
    CHECK(most == 2);
    CHECK(gauge.waiting == 0);
}

std::size_t blocking_call(const std::string& text) { return text.size(); }

TEST_CASE("readme: a model on a pool, and a session that awaits the pipeline from elsewhere", "[readme]") {
    asio::io_context context;
    asio::thread_pool pool(2);
    const auto strand = asio::make_strand(pool);
    auto classify = [&pool](const std::string& text) {
        return sluice::run_on(pool.get_executor(), [text] { return blocking_call(text); });
    };
    auto answer = [](std::size_t, std::size_t, const std::string&) -> asio::awaitable<int> { co_return 2; };
    CollectingSink sink;
    sluice::InferencePipeline pipeline(asio::any_io_executor(strand), classify, classify, answer,
                                       sluice::StageLimits{1, 1, 1}, sink);
    const test::Task<> session(context.get_executor(), [&]() -> asio::awaitable<void> {
        const sluice::Query query("1", "four");
        const auto result = co_await sluice::run_on(strand, [&] { return pipeline.process_one(query); });
        CHECK(result.intent == 4);
        CHECK(result.response == 2);
    });
    context.run();
    CHECK(session.succeeded());
}

struct Log {
    std::vector<std::string> lines;
    asio::awaitable<void> write(std::string line) {
        lines.push_back(std::move(line));
        co_return;
    }
};

struct AwaitableSink {
    Log& log;

    asio::awaitable<void> put(const sluice::Query& query, const sluice::StageResult<>& why) {
        co_await log.write(query.id.str() + " in " + why.stage.str() + ": " + why.error.message());
    }
};
static_assert(sluice::DeadLetterSink<AwaitableSink>);

TEST_CASE("readme: a pipeline is tested on virtual time", "[readme]") {
    using sluice::testing::VirtualTimer;
    asio::io_context context;
    CollectingSink sink;

    auto model = [](const std::string& text) -> asio::awaitable<int> {
        co_await wait<VirtualTimer>(150ms);
        if (text == "fail") throw std::runtime_error("no");
        co_return 1;
    };
    auto answer = [](int, int, const std::string& text) -> asio::awaitable<std::string> { co_return text; };
    sluice::InferencePipeline pipeline(context.get_executor(), model, model, answer, sluice::StageLimits{1, 1, 1}, sink,
                                       sluice::BasicInferencePipelineOptions<VirtualTimer>());

    std::vector<sluice::Query> queries{{"1", "one"}, {"2", "fail"}, {"3", "three"}};
    asio::co_spawn(context, pipeline.process_batch(queries), [](std::exception_ptr, auto results) {
        CHECK(results[0].completed);
        CHECK(results[2].stage_results[0].queue_time == 300ms);
    });
    CHECK(sluice::testing::run(context) == 600ms);  // in no time at all
    CHECK(sink.lost == std::vector<std::string>{"2 in classify: no"});
}

struct Cache {
    sluice::StageSemaphore lock;
    std::map<std::string, int> known;
    int asked = 0;

    explicit Cache(asio::any_io_executor executor) : lock(std::move(executor), 1) {}

    asio::awaitable<int> operator()(const std::string& text) {
        const auto held = co_await lock.acquire();
        if (!known.contains(text)) {
            ++asked;
            co_await wait<sluice::testing::VirtualTimer>(1ms);
            known[text] = 1;
        }
        co_return known[text];
    }
};

TEST_CASE("readme: a pipeline is tested in many interleavings", "[readme]") {
    using sluice::testing::VirtualTimer;
    CollectingSink sink;
    auto answer = [](int, int, const std::string& text) -> asio::awaitable<std::string> { co_return text; };
    std::vector<sluice::Query> queries{{"1", "one"}, {"2", "two"}, {"3", "one"}, {"4", "two"}};

    for (unsigned seed = 0; seed != 1000; ++seed) {  // each another interleaving, and always the same
        CAPTURE(seed);
        std::mt19937 random(seed);
        sluice::testing::InterleavingContext context([&](std::size_t ready) { return random() % ready; });
        Cache cache(context.get_executor());
        sluice::InferencePipeline pipeline(context.get_executor(), std::ref(cache), std::ref(cache), answer,
                                           sluice::StageLimits{4, 4, 4}, sink,
                                           sluice::BasicInferencePipelineOptions<VirtualTimer>());
        asio::co_spawn(context.get_executor(), pipeline.process_batch(queries), asio::detached);
        context.run();
        CHECK(cache.asked == 2);
    }
    CHECK(sink.lost.empty());
}

template <class Pipeline, class Queries>
asio::awaitable<int> first_answers(Pipeline& pipeline, Queries& endless, int wanted) {
    auto stream = pipeline.process_stream(endless);
    int completed = 0;
    while (auto item = co_await stream.next()) {
        if (item->result.completed && ++completed == wanted) break;
    }
    co_await stream.close();  // what still runs is cancelled, and has ended
    co_return completed;
}

TEST_CASE("readme: a stream is left when there is enough", "[readme]") {
    asio::io_context context;
    CollectingSink sink;
    auto model = [](const std::string&) -> asio::awaitable<int> { co_return 1; };
    auto answer = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 2; };
    sluice::InferencePipeline pipeline(context.get_executor(), model, model, answer, sluice::StageLimits{4, 2, 1},
                                       sink);
    auto endless =
        std::views::iota(0) | std::views::transform([](int i) { return sluice::Query(std::to_string(i), "text"); });
    test::Task<int> task(context.get_executor(), [&] { return first_answers(pipeline, endless, 10); });
    sluice::testing::run(context);
    CHECK(task.value() == 10);
}

TEST_CASE("readme: an awaitable sink", "[readme]") {
    asio::io_context context;
    Log log;
    AwaitableSink sink{log};
    auto model = [](const std::string&) -> asio::awaitable<int> { throw std::runtime_error("no"); };
    auto answer = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 2; };
    sluice::InferencePipeline pipeline(context.get_executor(), model, model, answer, sluice::StageLimits{4, 2, 1},
                                       sink);
    test::Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const sluice::Query query("1", "one");
        (void)co_await pipeline.process_one(query);
    });
    sluice::testing::run(context);
    CHECK(log.lines == std::vector<std::string>{"1 in classify: no"});
}

// Pitfalls. Compiled, never run.

[[maybe_unused]] void bad_lambda(asio::io_context& context, std::string text) {
    // BAD: the lambda dies at the end of the statement, and its captures with it; the coroutine goes on without them.
    asio::co_spawn(context, [text]() -> asio::awaitable<void> { co_await call_model(text); }(), asio::detached);
}

[[maybe_unused]] asio::awaitable<void> good_lambda(std::string text) {
    co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
        // GOOD: spawn() is given the callable itself and keeps it as long as its coroutine.
        group.spawn([text]() -> asio::awaitable<void> { co_await call_model(text); });
        co_return;
    });
}

template <class StageType>
[[maybe_unused]] asio::awaitable<void> bad_reference(StageType& stage, sluice::TaskGroup& group) {
    for (int i = 0; i < 3; ++i) {
        sluice::Query query(std::to_string(i), "text");
        group.spawn(stage.run(query.id, query.text));  // BAD: query.text dies before the stage runs
    }
    co_return;
}

template <class StageType>
[[maybe_unused]] asio::awaitable<void> good_reference(StageType& stage, sluice::TaskGroup& group) {
    for (int i = 0; i < 3; ++i) {
        sluice::Query query(std::to_string(i), "text");
        group.spawn(stage.run(query.id, std::move(query.text)));  // GOOD: what is moved in is kept
    }
    co_return;
}

[[maybe_unused]] asio::awaitable<void> bad_conditional(sluice::StageSemaphore& semaphore, bool free) {
    // BAD: g++ 12 destroys such a temporary twice.
    auto slot = free ? sluice::Slot() : co_await semaphore.acquire();
    (void)slot;
}

[[maybe_unused]] asio::awaitable<void> good_conditional(sluice::StageSemaphore& semaphore, bool free) {
    // GOOD
    sluice::Slot slot;
    if (!free) slot = co_await semaphore.acquire();
}

[[maybe_unused]] asio::awaitable<void> bad_operation(sluice::StageSemaphore& semaphore) {
    {
        auto slot = semaphore.acquire();  // BAD: holds no slot
    }
    {
        const sluice::Slot slot = co_await semaphore.acquire();  // GOOD
    }
}

}  // namespace
