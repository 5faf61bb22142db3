// SPDX-License-Identifier: BSL-1.0
// Also compiled with SLUICE_PORTABLE_AWAIT.
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/cancelled_by.hpp>
#include <sluice/sync/detail/canceller.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/every_step.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace {

namespace asio = boost::asio;
namespace this_coro = boost::asio::this_coro;
using namespace std::chrono_literals;
using asio::cancellation_type;
using boost::system::system_error;
using sluice::detail::cancelled_by;
using sluice::detail::Canceller;
using sluice::testing::run;
using test::Live;
using test::Steps;
using test::Task;
using test::VirtualTime;
using Void = asio::awaitable<void>;
using Log = std::vector<std::string>;
using Done = std::optional<std::monostate>;

std::string name_of(cancellation_type type) {
    std::string name;
    for (const auto& [bit, letter] :
         {std::pair(cancellation_type::terminal, 't'), std::pair(cancellation_type::partial, 'p'),
          std::pair(cancellation_type::total, 'a')}) {
        if ((type & bit) != cancellation_type::none) {
            name += letter;
        }
    }
    return name.empty() ? "none" : name;
}

// Says how the coroutine that awaits this has been cancelled, and whether that throws.
asio::awaitable<std::string> state_now() {
    const asio::cancellation_state state = co_await this_coro::cancellation_state;
    const bool throws = co_await this_coro::throw_if_cancelled();
    co_return name_of(state.cancelled()) + (throws ? "" : ", not thrown");
}

// Waits until it is cancelled, and returns how.
asio::awaitable<std::string> how_cancelled() {
    co_await this_coro::throw_if_cancelled(false);
    try {
        co_await test::sleep(1h);
    } catch (const system_error&) {
    }
    const asio::cancellation_state state = co_await this_coro::cancellation_state;
    co_return name_of(state.cancelled());
}

}  // namespace

TEST_CASE("cancelled_by: the body's value arrives in place", "[cancelled_by]") {
    struct Value {
        explicit Value(int n) : number(std::make_unique<int>(n)) {}
        std::unique_ptr<int> number;
    };
    const bool suspends = GENERATE(false, true);
    asio::io_context context;
    Task task(context.get_executor(), [&]() -> Void {
        const auto body = [&]() -> asio::awaitable<Value> {
            if (suspends) {
                co_await test::sleep(1ms);
            }
            co_return Value(4);
        };
        Canceller canceller;
        std::optional<Value> result;
        co_await cancelled_by(canceller, result, body());
        CHECK(*result.value().number == 4);
        Done done;
        co_await cancelled_by(canceller, done, test::yield());
        CHECK(done);
    });
    run(context);
    CHECK(task.succeeded());
}

TEST_CASE("cancelled_by: the body's exception is passed on, and its frame is gone by then", "[cancelled_by]") {
    const bool suspends = GENERATE(false, true);
    asio::io_context context;
    int alive = 0;
    Task task(context.get_executor(), [&]() -> Void {
        const auto body = [&]() -> Void {
            const Live live(alive);
            if (suspends) {
                co_await test::yield();
            }
            throw std::logic_error("body");
        };
        Canceller canceller;
        Done done;
        try {
            co_await cancelled_by(canceller, done, body());
        } catch (const std::logic_error&) {
            CHECK(alive == 0);
        }
        CHECK_FALSE(done);
        co_await test::yield();
    });
    run(context);
    CHECK(task.succeeded());
}

TEST_CASE("cancelled_by: bodies that do not suspend do not nest on the stack", "[cancelled_by]") {
    asio::io_context context;
    test::StackSpan stack;
    Task task(context.get_executor(), [&]() -> Void {
        const auto body = [&]() -> Void {
            stack.touch();
            co_return;
        };
        for (int i = 0; i != 1000; ++i) {
            Canceller canceller;
            Done done;
            co_await cancelled_by(canceller, done, body());
            stack.touch();
        }
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(stack.size() < 10'000);
}

TEST_CASE("cancelled_by: a coroutine whose body does not suspend still ends outside the call that spawned it",
          "[cancelled_by]") {
    asio::io_context context;
    bool spawning = false;
    bool ended = false;
    const auto coroutine = []() -> Void {
        const auto body = []() -> Void { co_return; };
        Canceller canceller;
        Done done;
        co_await cancelled_by(canceller, done, body());
    };
    asio::post(context, [&] {
        spawning = true;
        asio::co_spawn(context, coroutine, [&](const std::exception_ptr&) {
            CHECK_FALSE(spawning);
            ended = true;
        });
        spawning = false;
    });
    context.run();
    CHECK(ended);
}

TEST_CASE("cancelled_by: the canceller cancels the body with every type, and the awaiting coroutine not at all",
          "[cancelled_by][cancellation]") {
    asio::io_context context;
    Canceller canceller;
    Task<Log> task(context.get_executor(), [&]() -> asio::awaitable<Log> {
        std::optional<std::string> inside;
        co_await cancelled_by(canceller, inside, how_cancelled());
        const std::string outside = co_await state_now();
        co_return Log{inside.value(), outside};
    });
    test::poll(context);
    canceller.cancel();
    CHECK(run(context) == 0ms);
    REQUIRE(task.succeeded());
    CHECK(task.value() == Log{"tpa", "none"});
    CHECK_FALSE(canceller.cancelled_from_outside());
}

TEST_CASE("cancelled_by: a cancellation from outside cancels the body with every type, and is seen afterwards",
          "[cancelled_by][cancellation]") {
    const auto type = test::any_cancellation();
    asio::io_context context;
    Canceller canceller;
    std::string inside;
    std::string outside;
    Task task(context.get_executor(), [&]() -> Void {
        std::optional<std::string> result;
        co_await cancelled_by(canceller, result, how_cancelled());
        inside = result.value();
        const asio::cancellation_state state = co_await this_coro::cancellation_state;
        outside = name_of(state.cancelled());
        co_await test::yield();
    });
    test::poll(context);
    task.cancel(type);
    CHECK(run(context) == 0ms);
    CHECK(task.aborted());
    CHECK(inside == "tpa");
    CHECK(outside == name_of(type));
    CHECK(canceller.cancelled());
    CHECK(canceller.cancelled_from_outside());
}

TEST_CASE("cancelled_by: the body is cancelled once, and both causes are known", "[cancelled_by][cancellation]") {
    const bool outside_first = GENERATE(false, true);
    asio::io_context context;
    Canceller canceller;
    Task task(context.get_executor(), [&]() -> Void {
        const auto body = []() -> Void {
            try {
                co_await test::sleep(1h);
            } catch (const system_error&) {
            }
            co_await this_coro::reset_cancellation_state(asio::enable_total_cancellation());
            co_await test::sleep(7ms);
        };
        Done done;
        co_await cancelled_by(canceller, done, body());
    });
    const auto from_outside = [&] { task.cancel(); };
    const auto from_inside = [&] { canceller.cancel(); };
    test::poll(context);
    outside_first ? from_outside() : from_inside();
    test::poll(context);
    CHECK(canceller.cancelled_from_outside() == outside_first);
    outside_first ? from_inside() : from_outside();
    CHECK(run(context) == 7ms);
    CHECK(task.succeeded());
    CHECK(canceller.cancelled_from_outside());
}

TEST_CASE("cancelled_by: both cancellations may come in one turn, or when the body is about to end",
          "[cancelled_by][cancellation]") {
    const bool outside_first = GENERATE(false, true);
    const bool ending = GENERATE(false, true);
    asio::io_context context;
    Canceller canceller;
    Task task(context.get_executor(), [&]() -> Void {
        Done done;
        co_await cancelled_by(canceller, done, test::sleep(5ms));
    });
    test::poll(context);
    if (ending) {
        VirtualTime::of(context).advance();
    }
    if (outside_first) {
        task.cancel();
    }
    canceller.cancel();
    if (!outside_first) {
        task.cancel();
    }
    CHECK(run(context) == 0ms);
    CHECK(task.succeeded() == ending);
    CHECK(task.aborted() == !ending);
    CHECK(canceller.cancelled_from_outside());
}

TEST_CASE("cancelled_by: an earlier cancellation is not seen inside, and is kept", "[cancelled_by][cancellation]") {
    asio::io_context context;
    Canceller canceller;
    Task<Log> task(context.get_executor(), [&]() -> asio::awaitable<Log> {
        co_await this_coro::throw_if_cancelled(false);
        co_await test::yield();
        const auto body = []() -> asio::awaitable<std::string> {
            co_await test::sleep(5ms);
            co_return co_await state_now();
        };
        std::optional<std::string> inside;
        co_await cancelled_by(canceller, inside, body());
        const std::string outside = co_await state_now();
        co_return Log{inside.value(), outside};
    });
    context.poll_one();
    task.cancel();
    CHECK(run(context) == 5ms);
    REQUIRE(task.succeeded());
    CHECK(task.value() == Log{"none", "t, not thrown"});
    CHECK_FALSE(canceller.cancelled());
}

TEST_CASE("cancelled_by: a coroutine that was cancelled before does not begin the body",
          "[cancelled_by][cancellation]") {
    asio::io_context context;
    bool begun = false;
    Task task(context.get_executor(), [&]() -> Void {
        try {
            co_await test::sleep(1h);
        } catch (const system_error&) {
        }
        const auto body = [&]() -> Void {
            begun = true;
            co_return;
        };
        Canceller canceller;
        Done done;
        co_await cancelled_by(canceller, done, body());
    });
    test::poll(context);
    task.cancel();
    CHECK(run(context) == 0ms);
    CHECK(task.aborted());
    CHECK_FALSE(begun);
}

TEST_CASE("cancelled_by: what the body does to its cancellation state is undone at its end",
          "[cancelled_by][cancellation]") {
    const bool throws = GENERATE(false, true);
    const bool flag = GENERATE(false, true);
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        const auto body = [&]() -> Void {
            CHECK(co_await this_coro::throw_if_cancelled());
            co_await this_coro::throw_if_cancelled(!flag);
            co_await this_coro::reset_cancellation_state(asio::disable_cancellation());
            co_await test::yield();
            if (throws) {
                throw std::logic_error("body");
            }
        };
        co_await this_coro::throw_if_cancelled(flag);
        co_await this_coro::reset_cancellation_state(
            [](cancellation_type type) { return type & cancellation_type::partial; });
        Canceller canceller;
        Done done;
        try {
            co_await cancelled_by(canceller, done, body());
        } catch (const std::logic_error&) {
            log.emplace_back("thrown");
        }
        CHECK(co_await this_coro::throw_if_cancelled() == flag);
        try {
            co_await test::sleep(3ms);
        } catch (const system_error&) {
            log.emplace_back("cancelled");
        }
        log.push_back(co_await state_now());
    });
    sluice::testing::VirtualTimer first(context.get_executor(), 1ms);
    sluice::testing::VirtualTimer second(context.get_executor(), 2ms);
    first.async_wait([&](auto) { task.cancel(cancellation_type::total); });
    second.async_wait([&](auto) { task.cancel(cancellation_type::partial); });
    CHECK(run(context) == 2ms);
    Log expected;
    if (throws) {
        expected.emplace_back("thrown");
    }
    expected.emplace_back("cancelled");
    if (!flag) {
        expected.emplace_back("p, not thrown");
    }
    CHECK(log == expected);
    CHECK(task.aborted() == flag);  // by the co_await of state_now()
}

TEST_CASE("cancelled_by: what the awaiting coroutine's filter stops does not reach the body, which can be cancelled",
          "[cancelled_by][cancellation]") {
    asio::io_context context;
    Canceller canceller;
    std::string inside;
    Task task(context.get_executor(), [&]() -> Void {
        co_await this_coro::reset_cancellation_state(asio::disable_cancellation());
        std::optional<std::string> result;
        co_await cancelled_by(canceller, result, how_cancelled());
        inside = result.value();
    });
    test::poll(context);
    task.cancel();
    test::poll(context);
    CHECK_FALSE(canceller.cancelled());
    CHECK_FALSE(task.done());
    canceller.cancel();
    CHECK(run(context) == 0ms);
    CHECK(task.succeeded());
    CHECK(inside == "tpa");
}

TEST_CASE("cancelled_by: a coroutine without a cancellation slot can await it", "[cancelled_by][cancellation]") {
    asio::io_context context;
    Canceller canceller;
    std::string inside;
    const auto coroutine = [&]() -> Void {
        std::optional<std::string> result;
        co_await cancelled_by(canceller, result, how_cancelled());
        co_await test::yield();
        inside = result.value();
    };
    asio::co_spawn(context, coroutine, asio::detached);
    test::poll(context);
    canceller.cancel();
    CHECK(run(context) == 0ms);
    CHECK(inside == "tpa");
}

TEST_CASE("cancelled_by: it may be awaited inside the body of another", "[cancelled_by][cancellation]") {
    const std::string who = GENERATE("inner", "outer", "outside");
    asio::io_context context;
    Canceller outer;
    Canceller inner;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        const auto middle = [&]() -> Void {
            std::optional<std::string> result;
            co_await cancelled_by(inner, result, how_cancelled());
            log.push_back("inner " + result.value());
            co_await this_coro::throw_if_cancelled(false);
            log.push_back("middle " + co_await state_now());
        };
        Done done;
        co_await cancelled_by(outer, done, middle());
        co_await this_coro::throw_if_cancelled(false);
        log.push_back("outer " + co_await state_now());
    });
    test::poll(context);
    if (who == "outside") {
        task.cancel();
    } else {
        (who == "inner" ? inner : outer).cancel();
    }
    CHECK(run(context) == 0ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"inner tpa", std::string("middle ") + (who == "inner" ? "none" : "tpa") + ", not thrown",
                     std::string("outer ") + (who == "outside" ? "t" : "none") + ", not thrown"});
    CHECK(inner.cancelled_from_outside() == (who != "inner"));
    CHECK(outer.cancelled_from_outside() == (who == "outside"));
}

namespace {

Void pooled(sluice::detail::Pooled, Canceller& canceller, std::optional<std::string>& result) {
    co_await cancelled_by(canceller, result, how_cancelled());
}

using Io = asio::io_context::executor_type;

asio::awaitable<int, Io> typed_body() {
    sluice::testing::VirtualTimer timer(co_await this_coro::executor, 2ms);
    co_await timer.async_wait(asio::deferred);
    co_return 5;
}

asio::awaitable<void, Io> typed(sluice::detail::Pooled, std::optional<int>& result) {
    Canceller canceller;
    co_await cancelled_by(canceller, result, typed_body());
}

}  // namespace

TEST_CASE("cancelled_by: it works in coroutines with frames from the pool and with a typed executor",
          "[cancelled_by][typed]") {
    asio::io_context context;
    Canceller canceller;
    std::optional<std::string> inside;
    Task task(context.get_executor(), [&] { return pooled(sluice::detail::Pooled(), canceller, inside); });
    test::poll(context);
    canceller.cancel();
    CHECK(run(context) == 0ms);
    CHECK(task.succeeded());
    CHECK(inside == "tpa");

    std::optional<int> number;
    asio::co_spawn(context.get_executor(), typed(sluice::detail::Pooled(), number), asio::detached);
    CHECK(run(context) == 2ms);
    CHECK(number == 5);
}

namespace {

// A coroutine and the signal that it was spawned with, which may be destroyed before it.
struct Spawned {
    std::optional<asio::cancellation_signal> signal{std::in_place};
    bool done = false;

    template <class Function>
    Spawned(asio::io_context& context, Function function) {
        asio::co_spawn(context, std::move(function),
                       asio::bind_cancellation_slot(signal->slot(), [this](const std::exception_ptr& error) {
                           CHECK_FALSE(error);
                           done = true;
                       }));
    }
};

Void nested(Canceller& outer, int depth) {
    Canceller inner;
    Done done;
    if (depth == 0) {  // g++ 12 destroys the operands of a conditional operator once too often
        co_await cancelled_by(outer, done, test::sleep(2ms));
    } else {
        co_await cancelled_by(outer, done, nested(inner, depth - 1));
    }
    co_await test::yield();
}

}  // namespace

TEST_CASE("cancelled_by: context and signal may be destroyed at every step, in both orders",
          "[cancelled_by][shutdown]") {
    const bool signal_first = GENERATE(false, true);
    const bool is_nested = GENERATE(false, true);
    const auto run_and_destroy = [&](Steps& steps) {
        Canceller canceller;
        std::optional<asio::io_context> context(std::in_place);
        int alive = 0;
        Spawned spawned(*context, [&, is_nested]() -> Void {
            const Live live(alive);
            co_await nested(canceller, is_nested ? 1 : 0);
        });
        steps.take(*context);
        if (signal_first) {
            spawned.signal.reset();
            canceller.cancel();
        }
        context.reset();
        CHECK(alive == 0);
        canceller.cancel();
        if (spawned.signal) {
            spawned.signal->emit(cancellation_type::all);
        }
    };
    CHECK(test::for_every_step(run_and_destroy) > 3);
}

#if !defined(SLUICE_PORTABLE_AWAIT)  // an operation of Asio's must not be resumed after its signal was destroyed
TEST_CASE("cancelled_by: a coroutine whose signal is destroyed meanwhile goes on", "[cancelled_by][shutdown]") {
    asio::io_context context;
    std::string after;
    Spawned spawned(context, [&]() -> Void {
        Canceller canceller;
        Done done;
        co_await cancelled_by(canceller, done, test::sleep(2ms));
        after = co_await state_now();
        co_await test::sleep(2ms);
    });
    test::poll(context);
    spawned.signal.reset();
    CHECK(run(context) == 4ms);
    CHECK(spawned.done);
    CHECK(after == "none");
}
#endif

TEST_CASE("cancelled_by: cancelled at every step by either, it ends once", "[cancelled_by][cancellation]") {
    const bool from_outside = GENERATE(false, true);
    test::for_every_step(
        [&](Steps& steps) {
            asio::io_context context;
            Canceller canceller;
            int alive = 0;
            Task task(context.get_executor(), [&]() -> Void {
                const auto body = [&]() -> Void {
                    const Live live(alive);
                    co_await test::sleep(1ms);
                    co_await test::yield();
                };
                Done done;
                co_await cancelled_by(canceller, done, body());
            });
            steps.take(context);
            if (from_outside) {
                task.cancel();
            } else {
                canceller.cancel();
            }
            REQUIRE_NOTHROW(run(context));
            CHECK(task.succeeded() == !task.aborted());
            CHECK(alive == 0);
            CHECK(VirtualTime::of(context).pending() == 0);
        },
        1);
}
