// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/stage.hpp>
#include <sluice/testing/run.hpp>

#include "support/models.hpp"
#include "support/stage_bench.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <concepts>
#include <cstddef>
#include <exception>
#include <functional>
#include <memory>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::Stage;
using sluice::StageResult;
using test::increment;
using test::retries;
using test::run_one;
using test::StageOptions;
using test::VirtualTimer;

TEST_CASE("stage: const arguments stay const", "[stage][typed]") {
    asio::io_context context;
    Stage stage(
        test::timed(context.get_executor()), "s", 1,
        [](const std::string& text) -> asio::awaitable<std::size_t> { co_return text.size(); }, StageOptions{});
    const std::string text = "four";
    CHECK(run_one(context, stage, text).data == 4);
}

TEST_CASE("stage: a result may be move-only and have no default constructor", "[stage][typed]") {
    struct Only {
        std::unique_ptr<int> number;
        explicit Only(int n) : number(std::make_unique<int>(n)) {}
    };
    asio::io_context context;
    StageOptions options;
    if (GENERATE(false, true)) {
        options.timeout = 1s;
    }
    Stage stage(
        test::timed(context.get_executor()), "s", 1,
        [](int n) -> asio::awaitable<Only> {
            co_await test::yield();
            co_return Only(n);
        },
        options);
    int argument = 3;
    const auto result = run_one(context, stage, argument);
    static_assert(std::same_as<decltype(result), const StageResult<Only>>);
    REQUIRE(result.data);
    CHECK(*result.data->number == 3);
}

TEST_CASE("stage: the model function may be any callable", "[stage][typed]") {
    asio::io_context context;
    const auto ex = context.get_executor();
    int one = 1;
    SECTION("a function pointer") {
        Stage stage(test::timed(ex), "s", 1, &increment, StageOptions{});
        CHECK(run_one(context, stage, one).data == 2);
    }
    SECTION("a std::function") {
        Stage stage(test::timed(ex), "s", 1, std::function<asio::awaitable<int>(int)>(&increment), StageOptions{});
        CHECK(run_one(context, stage, one).data == 2);
    }
    SECTION("a functor with state") {
        struct Counter {
            std::unique_ptr<int> move_only = std::make_unique<int>(0);
            asio::awaitable<int> operator()(int n) { return increment(n + 10 * ++*move_only); }
        };
        Stage stage(test::timed(ex), "s", 1, Counter(), StageOptions{});
        CHECK(run_one(context, stage, one).data == 12);
        CHECK(run_one(context, stage, one).data == 22);
    }
    SECTION("a generic lambda") {
        Stage stage(
            test::timed(ex), "s", 1,
            [](const auto& value) -> asio::awaitable<std::decay_t<decltype(value)>> { co_return value + value; },
            StageOptions{});
        std::string text = "ab";
        CHECK(run_one(context, stage, one).data == 2);
        CHECK(run_one(context, stage, text).data == "abab");
    }
    SECTION("a member function") {
        struct Client {
            int base;
            asio::awaitable<int> ask(int n) { co_return base + n; }
        };
        Client client{40};
        Client* pointer = &client;
        Stage stage(test::timed(ex), "s", 1, &Client::ask, StageOptions{});
        CHECK(run_one(context, stage, client, one).data == 41);
        CHECK(run_one(context, stage, pointer, one).data == 41);
    }
    SECTION("a callable that owns the data of its coroutine") {
        const auto text = std::make_shared<std::string>("kept");
        Stage stage(
            test::timed(ex), "s", 1,
            [text](int) -> asio::awaitable<std::string> {
                co_await test::sleep(1ms);
                co_return *text;
            },
            StageOptions{});
        CHECK(run_one(context, stage, one).data == "kept");
    }
    SECTION("no arguments") {
        Stage stage(test::timed(ex), "s", 1, []() -> asio::awaitable<int> { co_return 5; }, StageOptions{});
        CHECK(run_one(context, stage).data == 5);
    }
}

TEST_CASE("stage: a run uses the executor of the model's coroutine", "[stage][typed]") {
    const auto check = [](asio::io_context& context, auto executor) {
        using Executor = decltype(executor);
        int calls = 0;
        const auto model = [&calls](int n) -> asio::awaitable<int, Executor> {
            VirtualTimer timer(co_await asio::this_coro::executor, 10ms);
            co_await timer.async_wait(asio::deferred);
            if (++calls == 2) {
                throw n;
            }
            co_return n;
        };
        Stage stage(test::timed(executor), "s", 1, model, StageOptions{.timeout = 1s, .retry = retries(1, 5ms)});
        static_assert(std::same_as<decltype(stage.run("q", 1)), asio::awaitable<StageResult<int>, Executor>>);
        std::vector<StageResult<int>> results;
        for (int i = 0; i != 2; ++i) {
            asio::co_spawn(executor, stage.run("q", int(i)), [&](std::exception_ptr error, StageResult<int> result) {
                CHECK_FALSE(error);
                results.push_back(std::move(result));
            });
        }
        CHECK(sluice::testing::run(context) == 35ms);
        REQUIRE(results.size() == 2);
        CHECK(results[0].data == 0);
        CHECK(results[1].data == 1);
        CHECK(results[1].queue_time == 10ms);
        CHECK(results[1].attempts == 2);
    };
    asio::io_context context;
    SECTION("the executor type of io_context") { check(context, context.get_executor()); }
    SECTION("a strand") { check(context, asio::make_strand(context.get_executor())); }
    SECTION("any_io_executor") { check(context, asio::any_io_executor(context.get_executor())); }
}

TEST_CASE("stage: the timer is asio::steady_timer by default", "[stage][typed]") {
    asio::io_context context;
    Stage stage(context.get_executor(), "s", 1, &increment);
    static_assert(std::same_as<decltype(stage), Stage<asio::awaitable<int> (*)(int), asio::steady_timer>>);
    int one = 1;
    CHECK(run_one(context, stage, one).data == 2);
    static_assert(std::copyable<decltype(stage)>);
}
