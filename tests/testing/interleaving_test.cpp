// SPDX-License-Identifier: BSL-1.0
#include <sluice/testing/interleaving_context.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/execution/blocking.hpp>
#include <boost/asio/execution/context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/query.hpp>
#include <boost/asio/require.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/error_code.hpp>
#include <catch2/catch_message.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>

#include <chrono>
#include <cstddef>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using boost::system::error_code;
using sluice::testing::InterleavingContext;
using sluice::testing::VirtualTime;
using sluice::testing::VirtualTimer;
using test::Live;
using test::refusal_of;
using test::Task;
using Void = asio::awaitable<void>;
using Sequence = std::vector<int>;

std::size_t first(std::size_t) { return 0; }
std::size_t last(std::size_t n) { return n - 1; }

TEST_CASE("interleaving: a function chooses which handler is next, and 0 is the one that was submitted first",
          "[interleaving]") {
    Sequence asked;
    Sequence order;
    const auto run = [&](std::vector<std::size_t> choices) {
        asked.clear();
        order.clear();
        InterleavingContext context([&](std::size_t n) {
            asked.push_back(static_cast<int>(n));
            return choices[asked.size() - 1];
        });
        for (int i = 0; i != 4; ++i) {
            asio::post(context.get_executor(), [&order, i] { order.push_back(i); });
        }
        context.run();
        return order;
    };
    CHECK(run({0, 0, 0}) == Sequence{0, 1, 2, 3});
    CHECK(run({3, 2, 1}) == Sequence{3, 2, 1, 0});
    CHECK(run({2, 0, 1}) == Sequence{2, 0, 3, 1});
    CHECK(asked == Sequence{4, 3, 2});  // a single handler is not a choice
}

TEST_CASE("interleaving: no handler runs inside the call that submits it", "[interleaving]") {
    InterleavingContext context(first);
    const auto executor = context.get_executor();
    Sequence order;
    asio::dispatch(executor, [&] {
        asio::dispatch(executor, [&] { order.push_back(2); });
        asio::dispatch(asio::any_io_executor(executor), [&] { order.push_back(3); });
        order.push_back(1);
    });
    CHECK(order.empty());
    CHECK(context.ready() == 1);
    context.run();
    CHECK(order == Sequence{1, 2, 3});
}

TEST_CASE("interleaving: run_one() runs one handler, and returns whether there was one", "[interleaving]") {
    InterleavingContext context(first);
    Sequence order;
    CHECK_FALSE(context.run_one());
    for (int i = 0; i != 2; ++i) {
        asio::post(context.get_executor(), [&order, i] { order.push_back(i); });
    }
    CHECK(context.ready() == 2);
    CHECK(context.run_one());
    CHECK(order == Sequence{0});
    CHECK(context.ready() == 1);
    CHECK(context.run_one());
    CHECK_FALSE(context.run_one());
    CHECK(order == Sequence{0, 1});
}

TEST_CASE("interleaving: when nothing is ready, time advances to the next wait", "[interleaving]") {
    InterleavingContext context(last);
    Sequence order;
    const auto sleeper = [&](std::chrono::milliseconds time) {
        return Task(context.get_executor(), [&order, time]() -> Void {
            co_await test::sleep(time);
            order.push_back(static_cast<int>(time.count()));
        });
    };
    const std::vector<Task<>> tasks{sleeper(3ms), sleeper(1ms), sleeper(2ms)};
    CHECK(context.run() == 3ms);
    CHECK(order == Sequence{1, 2, 3});
    CHECK(VirtualTime::of(context).now().time_since_epoch() == 3ms);
    CHECK(context.run() == 0ms);
}

// The order in which ten coroutines take three turns each.
Sequence turns(unsigned seed) {
    std::mt19937 random(seed);
    InterleavingContext context([&](std::size_t n) { return random() % n; });
    Sequence order;
    std::vector<Task<>> tasks;
    for (int i = 0; i != 10; ++i) {
        tasks.emplace_back(context.get_executor(), [&order, i]() -> Void {
            for (int turn = 0; turn != 3; ++turn) {
                order.push_back(i);
                co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
            }
        });
    }
    context.run();
    return order;
}

TEST_CASE("interleaving: the same seed leads to the same order, another seed to another", "[interleaving]") {
    for (unsigned seed = 0; seed != 20; ++seed) {
        CAPTURE(seed);
        CHECK(turns(seed).size() == 30);
        CHECK(turns(seed) == turns(seed));
        CHECK(turns(seed) != turns(seed + 1));
    }
}

TEST_CASE("interleaving: choosing a handler that does not exist is an error, and loses none", "[interleaving]") {
    std::size_t choice = 2;
    InterleavingContext context([&](std::size_t) { return choice; });
    Sequence order;
    for (int i = 0; i != 2; ++i) {
        asio::post(context.get_executor(), [&order, i] { order.push_back(i); });
    }
    CHECK_THROWS_WITH(context.run(), "InterleavingContext: the chosen handler must be less than 2, got 2");
    CHECK(context.ready() == 2);
    choice = 1;
    context.run();
    CHECK(order == Sequence{1, 0});
}

TEST_CASE("interleaving: the choosing function must not be empty", "[interleaving]") {
    CHECK(refusal_of([] { const InterleavingContext context(nullptr); }) ==
          "InterleavingContext: choose must not be empty");
}

TEST_CASE("interleaving: waits that are due at the same time end in any order, and their coroutines are interleaved",
          "[interleaving]") {
    std::set<std::string> orders;
    for (unsigned seed = 0; seed != 2000; ++seed) {
        std::mt19937 random(seed);
        InterleavingContext context([&](std::size_t n) { return random() % n; });
        std::string order;
        std::vector<Task<>> tasks;
        for (const char name : {'a', 'b'}) {
            tasks.emplace_back(context.get_executor(), [&order, name]() -> Void {
                co_await test::sleep(1ms);
                for (int turn = 0; turn != 2; ++turn) {
                    order += name;
                    co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
                }
            });
        }
        context.run();
        orders.insert(order);
    }
    CHECK(orders == std::set<std::string>{"aabb", "abab", "abba", "baab", "baba", "bbaa"});
}

TEST_CASE("interleaving: the waits that end at the same time, expired or cancelled, end in each possible order",
          "[interleaving]") {
    const bool cancelled = GENERATE(false, true);
    const bool one_timer = GENERATE(false, true);
    std::set<Sequence> orders;
    for (std::size_t choice = 0; choice != 6; ++choice) {
        InterleavingContext context([choice](std::size_t n) { return n == 3 ? choice / 2 : choice % 2; });
        VirtualTimer timer(context.get_executor(), 1ms);
        VirtualTimer other(context.get_executor(), 1ms);
        Sequence order;
        for (int i = 0; i != 3; ++i) {
            (i == 1 && !one_timer ? other : timer).async_wait([&order, i](error_code) { order.push_back(i); });
        }
        if (cancelled) {
            CHECK(timer.cancel() + other.cancel() == 3);
            CHECK(context.ready() == 3);
        }
        CHECK(context.run() == (cancelled ? 0ms : 1ms));
        orders.insert(order);
    }
    CHECK(orders == std::set<Sequence>{{0, 1, 2}, {0, 2, 1}, {1, 0, 2}, {1, 2, 0}, {2, 0, 1}, {2, 1, 0}});
}

TEST_CASE("interleaving: an exception of a handler leaves run(), and the remaining handlers run the next time",
          "[interleaving]") {
    InterleavingContext context(first);
    bool ran = false;
    asio::post(context.get_executor(), [] { throw std::runtime_error("handler"); });
    asio::post(context.get_executor(), [&] { ran = true; });
    CHECK_THROWS_WITH(context.run(), "handler");
    CHECK_FALSE(ran);
    context.run();
    CHECK(ran);
}

TEST_CASE("interleaving: the context may be destroyed with handlers ready and coroutines waiting", "[interleaving]") {
    int live = 0;
    bool ran = false;
    for (int steps = 0; steps != 8; ++steps) {
        CAPTURE(steps);
        InterleavingContext context(last);
        std::vector<Task<>> tasks;
        for (int i = 0; i != 3; ++i) {
            tasks.emplace_back(context.get_executor(), [held = Live(live), &ran]() -> Void {
                co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
                co_await test::sleep(1ms);
                ran = true;
            });
        }
        for (int step = 0; step != steps; ++step) {
            context.run_one();
        }
    }
    CHECK(live == 0);
    CHECK_FALSE(ran);
}

TEST_CASE("interleaving: a handler that is destroyed with the context may submit another", "[interleaving]") {
    struct Submits {
        InterleavingContext::executor_type executor;
        std::optional<Live> held;

        Submits(const InterleavingContext::executor_type& home, int& live) : executor(home), held(live) {}
        Submits(Submits&& other) noexcept : executor(other.executor), held(std::exchange(other.held, std::nullopt)) {}
        ~Submits() {
            if (held) {
                asio::post(executor, [left = *held] {});
            }
        }

        void operator()() const {}
    };
    int live = 0;
    {
        InterleavingContext context(first);
        asio::post(context.get_executor(), Submits(context.get_executor(), live));
        CHECK(live == 1);
    }
    CHECK(live == 0);
}

TEST_CASE("interleaving: its executor never blocks, and provides its context", "[interleaving]") {
    InterleavingContext context(first);
    InterleavingContext other(first);
    const auto executor = context.get_executor();
    CHECK(executor == asio::require(executor, asio::execution::blocking.never));
    CHECK(executor != other.get_executor());
    CHECK(asio::query(executor, asio::execution::blocking) == asio::execution::blocking.never);
    CHECK(&asio::query(asio::any_io_executor(executor), asio::execution::context) == &context);
}

}  // namespace
