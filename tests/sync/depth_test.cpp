// SPDX-License-Identifier: BSL-1.0
// 100,000 of everything on a small stack: CTest runs this program with a stack of 256 KiB. The last test checks that
// ten times the work takes ten times the handlers.
#include "support/task.hpp"

#include <sluice/sluice.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <optional>
#include <ranges>
#include <stdexcept>
#include <string>
#include <utility>

namespace asio = boost::asio;

namespace {

constexpr std::size_t many = 100'000;

asio::awaitable<void> pass_through(sluice::StageSemaphore& semaphore, std::size_t& passed) {
    const auto slot = co_await semaphore.acquire();
    ++passed;
}

// Starts `n` coroutines that count themselves once they have had a slot, and runs them as far as possible.
void start_waiters(asio::io_context& context, sluice::StageSemaphore& semaphore, std::size_t& passed, std::size_t n) {
    for (std::size_t i = 0; i < n; ++i) {
        asio::co_spawn(context, pass_through(semaphore, passed), asio::detached);
    }
    context.poll();
}

// The number of handlers that it takes to serve `n` waiters one after the other.
std::size_t cascade(std::size_t n) {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    std::size_t passed = 0;
    auto first = semaphore.try_acquire();
    start_waiters(context, semaphore, passed, n);
    REQUIRE(semaphore.waiting() == n);
    first.release();
    const std::size_t handlers = context.poll();
    REQUIRE(passed == n);
    return handlers;
}

std::size_t meet(std::size_t parties) {
    asio::io_context context;
    sluice::Barrier barrier(context.get_executor(), static_cast<std::ptrdiff_t>(parties));
    std::size_t met = 0;
    for (std::size_t i = 0; i < parties; ++i) {
        asio::co_spawn(
            context,
            [](sluice::Barrier& b, std::size_t& count) -> asio::awaitable<void> {
                for (int phase = 0; phase < 2; ++phase) {
                    co_await b.arrive_and_wait();
                    ++count;
                }
            }(barrier, met),
            asio::detached);
    }
    const std::size_t handlers = context.poll();
    REQUIRE(met == 2 * parties);
    return handlers;
}

std::size_t children(std::size_t n) {
    asio::io_context context;
    std::size_t ran = 0;
    test::Task<> task(context.get_executor(), [&] {
        return sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
            for (std::size_t i = 0; i < n; ++i) {
                group.spawn([&ran]() -> asio::awaitable<void> {
                    ++ran;
                    co_return;
                });
            }
            co_return;
        });
    });
    const std::size_t handlers = context.poll();
    REQUIRE(task.succeeded());
    REQUIRE(ran == n);
    return handlers;
}

struct DiscardingSink {
    void put(const sluice::Query&, const sluice::StageResult<>&) {}
};

std::size_t batch(std::size_t n) {
    asio::io_context context;
    DiscardingSink sink;
    const auto model = [](const std::string&) -> asio::awaitable<int> {
        co_await test::yield();
        co_return 1;
    };
    const auto generate = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 1; };
    sluice::InferencePipeline pipeline(context.get_executor(), model, model, generate, sluice::StageLimits{20, 10, 5},
                                       sink);
    test::Task<std::size_t> task(context.get_executor(), [&]() -> asio::awaitable<std::size_t> {
        const auto results = co_await pipeline.process_batch(
            std::views::iota(std::size_t{0}, n) |
            std::views::transform([](std::size_t i) { return sluice::Query(std::to_string(i), "text"); }));
        co_return results.size();
    });
    const std::size_t handlers = context.poll();
    REQUIRE(task.value() == n);
    return handlers;
}

struct Counted {
    std::optional<int> number;
    std::optional<int> other;
};

auto numbers(std::size_t n) {
    return std::views::iota(std::size_t{0}, n) |
           std::views::transform([](std::size_t i) { return sluice::Query(std::to_string(i), "text"); });
}

constexpr auto answer_at_once = [](const std::string&) -> asio::awaitable<int> { co_return 1; };

// Steps in a row in the loop of one route, of a model that never suspends: alone, side by side, or failing.
enum class Steps { alone, side_by_side, failing };
std::size_t loop_of_steps(std::size_t n, Steps steps) {
    asio::io_context context;
    DiscardingSink sink;
    const auto fail_at_once = [](const std::string&) -> asio::awaitable<int> {
        throw std::runtime_error("no");
        co_return 1;
    };
    const sluice::Stage stage(context.get_executor(), "s", 2, answer_at_once);
    const sluice::Stage failing(context.get_executor(), "f", 2, fail_at_once);
    sluice::Pipeline pipeline(
        context.get_executor(),
        [=](sluice::Run<Counted>& run) -> asio::awaitable<void> {
            for (std::size_t i = 0; i != n; ++i) {
                const std::string& text = run.query().text;
                if (steps == Steps::alone) {
                    co_await run.step(&Counted::number, stage, text);
                } else if (steps == Steps::side_by_side) {
                    co_await run.all(run.step(&Counted::number, stage, text), run.step(&Counted::other, stage, text));
                } else {
                    co_await run.step_or_error(&Counted::number, failing, text);
                }
                *run = {};
            }
        },
        sink, 1);
    test::Task<std::size_t> task(context.get_executor(), [&]() -> asio::awaitable<std::size_t> {
        const auto result = co_await pipeline.process_one(sluice::Query("q", "text"));
        co_return result.completed ? result.stage_results.size() : 0;
    });
    context.poll();
    return task.value();
}

// A batch of a route that never suspends.
std::size_t batch_at_once(std::size_t n) {
    asio::io_context context;
    DiscardingSink sink;
    const sluice::Stage stage(context.get_executor(), "s", 2, answer_at_once);
    sluice::Pipeline pipeline(
        context.get_executor(),
        [=](sluice::Run<Counted>& run) -> asio::awaitable<void> {
            co_await run.step(&Counted::number, stage, run.query().text);
            co_await run.step(&Counted::other, stage, run.query().text);
        },
        sink, 8);
    test::Task<std::size_t> task(context.get_executor(), [&]() -> asio::awaitable<std::size_t> {
        std::size_t completed = 0;
        for (const auto& result : co_await pipeline.process_batch(numbers(n))) {
            completed += result.completed;
        }
        co_return completed;
    });
    const std::size_t handlers = context.poll();
    REQUIRE(task.value() == n);
    return handlers;
}

// A drain at once of `n` queries that wait for one slot, half of them in a batch.
std::size_t drain_of(std::size_t n) {
    asio::io_context context;
    DiscardingSink sink;
    sluice::Stage stage(context.get_executor(), "s", 1, answer_at_once);
    stage.endpoint().set_limit(0);
    sluice::Pipeline pipeline(
        context.get_executor(),
        [=](sluice::Run<Counted>& run) -> asio::awaitable<void> {
            co_await run.step(&Counted::number, stage, run.query().text);
        },
        sink, static_cast<std::ptrdiff_t>(n));
    asio::co_spawn(context, pipeline.process_batch(numbers(n / 2)), [](const std::exception_ptr&, const auto&) {});
    for (std::size_t i = n / 2; i != n; ++i) {
        asio::co_spawn(context, pipeline.process_one(sluice::Query("q", "text")),
                       [](const std::exception_ptr&, const auto&) {});
    }
    context.poll();
    REQUIRE(stage.endpoint().waiting() == n);
    test::Task<std::size_t> task(context.get_executor(), [&]() -> asio::awaitable<std::size_t> {
        const auto report = co_await pipeline.drain(std::chrono::nanoseconds(0));
        co_return report.unfinished;
    });
    while (!task.done() && context.run_one() != 0) {  // the timer of a grace is no handler that is ready
    }
    return task.value();
}

// A sink that resends a failed query through the pipeline, for a number of levels.
struct ResendingSink {
    using Resend = std::function<asio::awaitable<void>(sluice::Query)>;

    std::size_t levels;
    std::size_t dead_letters = 0;
    Resend resend;

    explicit ResendingSink(std::size_t n) : levels(n) {}

    asio::awaitable<void> put(const sluice::Query& query, const sluice::StageResult<>&) {
        if (levels-- > 0) {
            co_await resend(query);
        }
        ++dead_letters;
    }
};

std::size_t resend_from_sink(std::size_t levels) {
    asio::io_context context;
    ResendingSink sink(levels);
    const auto fails = [](const std::string&) -> asio::awaitable<int> {
        throw std::runtime_error("no");
        co_return 1;
    };
    const auto generate = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 1; };
    sluice::InferencePipeline pipeline(context.get_executor(), fails, fails, generate, sluice::StageLimits{1, 1, 1},
                                       sink);
    sink.resend = [&](sluice::Query query) -> asio::awaitable<void> {
        co_await pipeline.process_one(std::move(query));
    };
    const test::Task<> task(context.get_executor(), [&] { return sink.resend({"q", "text"}); });
    context.poll();
    REQUIRE(task.succeeded());
    return sink.dead_letters;
}

// A model that runs its own stage again, for a number of levels. Each level holds a slot, and a timeout if there is
// one.
std::size_t run_from_model(std::size_t levels, const sluice::StageOptions& options) {
    asio::io_context context;
    std::function<asio::awaitable<int>(const std::size_t&)> again;
    sluice::Stage stage(
        context.get_executor(), "s", static_cast<std::ptrdiff_t>(levels + 1),
        [&](const std::size_t& level) { return again(level); }, options);
    again = [&](const std::size_t& level) -> asio::awaitable<int> {
        if (level == 0) {
            co_return 0;
        }
        const auto inner = co_await stage.run("q", level - 1);
        co_return *inner.data + 1;
    };
    test::Task<int> task(context.get_executor(), [&]() -> asio::awaitable<int> {
        const auto outer = co_await stage.run("q", levels);
        co_return *outer.data;
    });
    context.poll();
    return static_cast<std::size_t>(task.value());
}

TEST_CASE("depth: a sink resends its query through the pipeline, 20,000 levels deep", "[depth]") {
    CHECK(resend_from_sink(20'000) == 20'001);
}

TEST_CASE("depth: a model runs its stage again, 20,000 levels deep", "[depth]") {
    CHECK(run_from_model(20'000, {}) == 20'000);
    CHECK(run_from_model(20'000, {.timeout = std::chrono::hours(1)}) == 20'000);
}

TEST_CASE("depth: 100,000 waiters, one after the other", "[depth]") { CHECK(cascade(many) > 0); }

TEST_CASE("depth: 100,000 waiters, all at once", "[depth]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 0);
    std::size_t passed = 0;
    start_waiters(context, semaphore, passed, many);
    semaphore.set_limit(many);
    context.poll();
    CHECK(passed == many);
}

TEST_CASE("depth: 100,000 waiters, cancelled by closing", "[depth]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 0);
    std::size_t passed = 0;
    start_waiters(context, semaphore, passed, many);
    semaphore.close();
    context.poll();
    CHECK(passed == 0);
    CHECK(semaphore.waiting() == 0);
}

TEST_CASE("depth: 100,000 waiters, destroyed with their context", "[depth]") {
    std::optional<asio::io_context> context(std::in_place);
    sluice::StageSemaphore semaphore(context->get_executor(), 0);
    std::size_t passed = 0;
    start_waiters(*context, semaphore, passed, many);
    context.reset();
    CHECK(semaphore.waiting() == 0);
}

TEST_CASE("depth: 100,000 parties", "[depth]") { CHECK(meet(many) > 0); }
TEST_CASE("depth: 100,000 children", "[depth]") { CHECK(children(many) > 0); }

TEST_CASE("depth: 100,000 children, each the parent of the next", "[depth]") {
    asio::io_context context;
    std::size_t ran = 0;
    test::Task<> task(context.get_executor(), [&] {
        return sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
            struct Next {
                sluice::TaskGroup& group;
                std::size_t& ran;
                asio::awaitable<void> operator()() const {
                    if (++ran < many) {
                        group.spawn(Next{group, ran});
                    }
                    co_return;
                }
            };
            group.spawn(Next{group, ran});
            co_return;
        });
    });
    context.poll();
    CHECK(task.succeeded());
    CHECK(ran == many);
}

TEST_CASE("depth: 100,000 queries", "[depth]") { CHECK(batch(many) > 0); }

TEST_CASE("depth: 100,000 steps in the loop of a route", "[depth]") {
    CHECK(loop_of_steps(many, Steps::alone) == many);
    CHECK(loop_of_steps(many, Steps::side_by_side) == 2 * many);
    CHECK(loop_of_steps(many, Steps::failing) == many);
}

TEST_CASE("depth: 100,000 queries of a route that never suspends", "[depth]") { CHECK(batch_at_once(many) > 0); }
TEST_CASE("depth: 100,000 queries, cut short by a drain", "[depth]") { CHECK(drain_of(many) == many); }

TEST_CASE("depth: ten times the work takes ten times the handlers", "[depth]") {
    const auto run = [](const std::function<std::size_t(std::size_t)>& work) {
        CHECK(work(10'000) <= 11 * work(1'000));
    };
    run(cascade);
    run(meet);
    run(children);
    run(batch);
    run(batch_at_once);
}

}  // namespace
