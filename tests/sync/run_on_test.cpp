// SPDX-License-Identifier: BSL-1.0
// run_on() step by step on one thread, which runs both contexts; `away` stands for the pool. threads_test.cpp tests it
// with several threads.
#include <sluice/stage/stage.hpp>
#include <sluice/sync/run_on.hpp>
#include <sluice/sync/task_group.hpp>

#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution/blocking.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/require.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
namespace this_coro = boost::asio::this_coro;
using sluice::run_on;
using test::Live;
using test::Task;
using test::wait_forever;

// Destroyed in the order that run_on() requires: `away` first.
struct Contexts {
    asio::io_context home;
    asio::io_context away;

    // Runs both until neither has anything to do.
    void run() {
        home.restart();
        away.restart();
        while (home.poll() + away.poll() != 0) {
            home.restart();
            away.restart();
        }
    }

    // Runs until only the work is left to run.
    void begin() { home.poll(); }

    template <class Function>
    auto task(Function function) {
        using Value = typename decltype(run_on(away.get_executor(), std::move(function)))::value_type;
        return Task<Value>(home.get_executor(), [this, function = std::move(function)]() mutable {
            return run_on(away.get_executor(), std::move(function));
        });
    }
};

// Waits until it is cancelled; shows whether it is waiting, and how it was cancelled.
struct Waiting {
    bool& waits;
    asio::cancellation_type& cancelled;

    asio::awaitable<void> operator()() const {
        waits = true;
        try {
            co_await wait_forever();
        } catch (const boost::system::system_error&) {
            waits = false;
        }
        cancelled = (co_await this_coro::cancellation_state).cancelled();
        throw boost::system::system_error(asio::error::operation_aborted);
    }
};

struct NotDefaultConstructible {
    explicit NotDefaultConstructible(int n) : number(n) {}
    int number;
};

TEST_CASE("run_on: returns the value of a plain function", "[run_on]") {
    Contexts contexts;
    SECTION("a value") {
        auto task = contexts.task([] { return 7; });
        contexts.run();
        CHECK(task.value() == 7);
    }
    SECTION("nothing") {
        bool called = false;
        auto task = contexts.task([&] { called = true; });
        contexts.run();
        CHECK(task.succeeded());
        CHECK(called);
    }
    SECTION("a move-only value, from a move-only function") {
        auto task = contexts.task([owned = std::make_unique<int>(7)]() mutable { return std::move(owned); });
        contexts.run();
        CHECK(*task.value() == 7);
    }
    SECTION("a value without a default constructor") {
        auto task = contexts.task([] { return NotDefaultConstructible(7); });
        contexts.run();
        CHECK(task.value().number == 7);
    }
    SECTION("from a pointer to a function") {
        auto task = contexts.task(+[] { return std::string("seven"); });
        contexts.run();
        CHECK(task.value() == "seven");
    }
}

TEST_CASE("run_on: returns the value of a coroutine", "[run_on]") {
    Contexts contexts;
    SECTION("a value, after a wait") {
        auto task = contexts.task([]() -> asio::awaitable<int> {
            co_await test::yield();
            co_return 7;
        });
        contexts.run();
        CHECK(task.value() == 7);
    }
    SECTION("nothing, without suspending") {
        bool called = false;
        auto task = contexts.task([&]() -> asio::awaitable<void> {
            called = true;
            co_return;
        });
        contexts.run();
        CHECK(task.succeeded());
        CHECK(called);
    }
    SECTION("a move-only value, from a lambda with captures") {
        auto task =
            contexts.task([owned = std::make_unique<int>(7)]() mutable -> asio::awaitable<std::unique_ptr<int>> {
                co_await test::yield();
                co_return std::move(owned);
            });
        contexts.run();
        CHECK(*task.value() == 7);
    }
    SECTION("a value without a default constructor") {
        auto task =
            contexts.task([]() -> asio::awaitable<NotDefaultConstructible> { co_return NotDefaultConstructible(7); });
        contexts.run();
        CHECK(task.value().number == 7);
    }
}

TEST_CASE("run_on: rethrows the exception of the function", "[run_on]") {
    Contexts contexts;
    SECTION("a plain function") {
        auto task = contexts.task([]() -> int { throw std::runtime_error("no"); });
        contexts.run();
        CHECK(task.failed_with<std::runtime_error>());
    }
    SECTION("a plain function without a value") {
        auto task = contexts.task([] { throw std::runtime_error("no"); });
        contexts.run();
        CHECK(task.failed_with<std::runtime_error>());
    }
    SECTION("a coroutine") {
        auto task = contexts.task([]() -> asio::awaitable<int> {
            co_await test::yield();
            throw std::runtime_error("no");
        });
        contexts.run();
        CHECK(task.failed_with<std::runtime_error>());
    }
    SECTION("before the function returns an awaitable") {
        auto task = contexts.task([]() -> asio::awaitable<int> { throw std::runtime_error("no"); });
        contexts.run();
        CHECK(task.failed_with<std::runtime_error>());
    }
}

TEST_CASE("run_on: works with typed executors on either side", "[run_on]") {
    using Home = asio::io_context::executor_type;
    using Away = asio::strand<asio::io_context::executor_type>;
    Contexts contexts;
    int got = 0;
    const auto work = []() -> asio::awaitable<int, Away> {
        co_await asio::post(co_await this_coro::executor, asio::deferred);
        co_return 7;
    };
    const auto caller = [&]() -> asio::awaitable<void, Home> {
        got += co_await run_on<Home>(contexts.away.get_executor(), work);
        got += co_await run_on<Home>(contexts.away.get_executor(), [] { return 7; });
        co_await run_on<Home>(asio::any_io_executor(contexts.away.get_executor()), [&] { got *= 2; });
    };
    asio::co_spawn(contexts.home, caller(), asio::detached);
    contexts.run();
    CHECK(got == 28);
}

TEST_CASE("run_on: the function is called on the given executor, and the coroutine resumes on its own", "[run_on]") {
    Contexts contexts;
    int called = 0;
    auto task = contexts.task([&] { return ++called; });
    contexts.begin();
    CHECK(called == 0);
    contexts.away.poll();
    CHECK(called == 1);
    CHECK_FALSE(task.done());
    contexts.home.poll();
    CHECK(task.value() == 1);
}

TEST_CASE("run_on: the function is not called inside the awaiting call, even on the same executor", "[run_on]") {
    asio::io_context context;
    std::vector<std::string> log;
    Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        asio::post(context, [&] { log.push_back("other handler"); });
        co_await run_on(context.get_executor(), [&] { log.push_back("function"); });
    });
    context.run();
    CHECK(log == std::vector<std::string>{"other handler", "function"});
    CHECK(task.succeeded());
}

TEST_CASE("run_on: each call has its own strand", "[run_on]") {
    Contexts contexts;
    std::vector<asio::any_io_executor> executors;
    const auto work = [&]() -> asio::awaitable<void> { executors.push_back(co_await this_coro::executor); };
    auto first = contexts.task(work);
    auto second = contexts.task(work);
    contexts.run();
    using Strand = asio::strand<asio::io_context::executor_type>;
    REQUIRE(executors.size() == 2);
    REQUIRE(executors[0].target<Strand>());
    CHECK(executors[0].target<Strand>()->get_inner_executor() == contexts.away.get_executor());
    CHECK(executors[0] != executors[1]);
}

TEST_CASE("run_on: the function and its coroutine are destroyed before the awaiting coroutine resumes", "[run_on]") {
    Contexts contexts;
    int alive = 0;
    const auto check_ends = [&](const Task<>& task) {
        contexts.begin();
        CHECK(alive == 1);
        contexts.away.poll();
        CHECK(alive == 0);
        CHECK_FALSE(task.done());
        contexts.home.poll();
        CHECK(task.done());
    };
    SECTION("a plain function") {
        check_ends(contexts.task([live = std::make_unique<Live>(alive)] {}));
    }
    SECTION("a coroutine that fails") {
        check_ends(contexts.task([&, live = std::make_unique<Live>(alive)]() -> asio::awaitable<void> {
            const Live local(alive);
            co_await test::yield();
            throw std::runtime_error("no");
        }));
    }
}

TEST_CASE("run_on: a cancellation of any type reaches the coroutine on its strand, and its end is waited for",
          "[run_on][cancellation]") {
    const auto type = test::any_cancellation();
    Contexts contexts;
    bool waits = false;
    auto cancelled = asio::cancellation_type::none;
    auto task = contexts.task(Waiting{waits, cancelled});
    contexts.begin();
    contexts.away.poll();
    CHECK(waits);
    task.cancel(type);
    contexts.home.poll();
    CHECK(waits);  // the cancellation is on its way
    contexts.away.restart();
    contexts.away.poll();
    CHECK_FALSE(waits);
    CHECK(cancelled == type);
    CHECK_FALSE(task.done());
    contexts.run();
    CHECK(task.aborted());
}

TEST_CASE("run_on: a coroutine started by co_spawn lets only terminal cancellation through", "[run_on][cancellation]") {
    Contexts contexts;
    bool waits = false;
    auto cancelled = asio::cancellation_type::none;
    asio::cancellation_signal signal;
    bool ended = false;
    asio::co_spawn(contexts.home, run_on(contexts.away.get_executor(), Waiting{waits, cancelled}),
                   asio::bind_cancellation_slot(signal.slot(), [&](const std::exception_ptr&) { ended = true; }));
    contexts.begin();
    contexts.away.poll();
    signal.emit(asio::cancellation_type::total);
    contexts.run();
    CHECK(waits);
    signal.emit(asio::cancellation_type::all);
    contexts.run();
    CHECK(cancelled == asio::cancellation_type::terminal);
    CHECK(ended);
}

TEST_CASE("run_on: cancelled while the pool is busy, the function is not called", "[run_on][cancellation]") {
    const auto type = test::any_cancellation();
    Contexts contexts;
    int alive = 0;
    int called = 0;
    SECTION("a plain function") {
        auto task = contexts.task([&, live = std::make_unique<Live>(alive)] { return ++called; });
        contexts.begin();
        task.cancel(type);
        contexts.run();  // no exception escapes
        CHECK(task.aborted());
    }
    SECTION("a coroutine") {
        auto task =
            contexts.task([&, live = std::make_unique<Live>(alive)]() -> asio::awaitable<int> { co_return ++called; });
        contexts.begin();
        task.cancel(type);
        contexts.run();
        CHECK(task.aborted());
    }
    CHECK(called == 0);
    CHECK(alive == 0);
}

TEST_CASE("run_on: cancelled at any step, no exception escapes and everything ends", "[run_on][cancellation]") {
    const auto check = [](auto executor_of, int steps) {
        CAPTURE(steps);
        Contexts contexts;
        int alive = 0;
        bool called = false;
        Task<> task(contexts.home.get_executor(), [&] {
            auto work = [&, live = std::make_unique<Live>(alive)]() -> asio::awaitable<void> {
                called = true;
                co_await wait_forever();
            };
            return run_on(executor_of(contexts.away), std::move(work));
        });
        contexts.begin();
        for (int i = 0; i != steps; ++i) {
            contexts.away.poll_one();
        }
        const bool was_called = called;
        task.cancel();
        contexts.run();
        CHECK(task.aborted());
        CHECK(called == was_called);
        CHECK(alive == 0);
    };
    for (int steps = 0; steps != 6; ++steps) {
        check([](asio::io_context& away) { return away.get_executor(); }, steps);
        const auto never_at_once = [](asio::io_context& away) {
            return asio::require(away.get_executor(), asio::execution::blocking.never);
        };
        check(never_at_once, steps);
    }
}

TEST_CASE("run_on: a coroutine that was cancelled earlier does not start the work", "[run_on][cancellation]") {
    Contexts contexts;
    int called = 0;
    Task<> task(contexts.home.get_executor(), [&]() -> asio::awaitable<void> {
        co_await test::yield();
        co_await run_on(contexts.away.get_executor(), [&] { ++called; });
    });
    contexts.home.poll_one();
    task.cancel();
    contexts.run();
    CHECK(task.aborted());
    CHECK(called == 0);
}

TEST_CASE("run_on: the result of a function is kept although it was cancelled", "[run_on][cancellation]") {
    const auto type = test::any_cancellation();
    Contexts contexts;
    SECTION("a function that has returned before the coroutine resumes") {
        auto task = contexts.task([] { return 7; });
        contexts.begin();
        contexts.away.poll();
        task.cancel(type);
        contexts.run();
        CHECK(task.value() == 7);
    }
    SECTION("a function that is cancelled while it runs") {
        std::optional<Task<int>> task;
        task.emplace(contexts.task([&] {
            task->cancel(type);
            return 7;
        }));
        contexts.run();
        CHECK(task->value() == 7);
    }
    SECTION("a coroutine that is cancelled while it runs, without suspending") {
        std::optional<Task<int>> task;
        task.emplace(contexts.task([&]() -> asio::awaitable<int> {
            task->cancel(type);
            co_return 7;
        }));
        contexts.run();
        CHECK(task->value() == 7);
    }
    SECTION("a coroutine that catches its cancellation") {
        auto task = contexts.task([]() -> asio::awaitable<int> {
            try {
                co_await wait_forever();
            } catch (const boost::system::system_error&) {
                co_return 7;
            }
            co_return 0;
        });
        contexts.begin();
        contexts.away.poll();
        task.cancel(type);
        contexts.run();
        CHECK(task.value() == 7);
    }
    SECTION("a coroutine that fails when it is cancelled") {
        auto task = contexts.task([]() -> asio::awaitable<int> {
            try {
                co_await wait_forever();
            } catch (const boost::system::system_error&) {
                throw std::runtime_error("no");
            }
            co_return 0;
        });
        contexts.begin();
        contexts.away.poll();
        task.cancel(type);
        contexts.run();
        CHECK(task.failed_with<std::runtime_error>());
    }
}

TEST_CASE("run_on: a task group cancels its children's work and waits for it", "[run_on][cancellation]") {
    Contexts contexts;
    int begun = 0;
    int ended = 0;
    const auto work = [&]() -> asio::awaitable<void> {
        if (++begun == 3) {
            throw std::runtime_error("third");
        }
        try {
            co_await wait_forever();
        } catch (const boost::system::system_error&) {
            ++ended;
            throw;
        }
    };
    Task<> task(contexts.home.get_executor(), [&] {
        return sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
            for (int i = 0; i != 3; ++i) {
                group.spawn(run_on(contexts.away.get_executor(), work));
            }
            co_return;
        });
    });
    contexts.run();
    CHECK(task.failed_with<std::runtime_error>());
    CHECK(ended == 2);
}

TEST_CASE("run_on: a model function in one line", "[run_on]") {
    Contexts contexts;
    const auto model = [&](const std::string& text) {
        return run_on(contexts.away.get_executor(), [text] { return text.size(); });
    };
    sluice::Stage stage(contexts.home.get_executor(), "measure", 2, model);
    Task<sluice::StageResult<std::size_t>> task(contexts.home.get_executor(),
                                                [&] { return stage.run("q", std::string("four")); });
    contexts.run();
    CHECK(task.value().data == 4);
}

TEST_CASE("run_on: a stopped pool runs nothing, and its destruction destroys the coroutines that wait for it",
          "[run_on][shutdown]") {
    asio::io_context home;
    std::optional<asio::io_context> away(std::in_place);
    int alive = 0;
    int called = 0;
    bool resumed = false;
    const auto caller = [&]() -> asio::awaitable<void> {
        const Live here(alive);
        auto function = [&, live = std::make_unique<Live>(alive)] { ++called; };
        co_await run_on(away->get_executor(), std::move(function));
        resumed = true;
    };
    Task<> task(home.get_executor(), caller);
    home.poll();
    away->stop();
    away->poll();
    home.poll();
    CHECK(alive == 2);
    CHECK_FALSE(home.stopped());  // the coroutine may still resume
    SECTION("cancelled in vain") { task.cancel(); }
    SECTION("not cancelled") {}
    away.reset();
    home.run();  // returns, since nothing can resume
    CHECK(alive == 0);
    CHECK(called == 0);
    CHECK_FALSE(resumed);
    CHECK(task.ends() == 0);
}

template <class MakeExecutor>
void check_destruction_of_suspended_work(MakeExecutor make_executor) {
    asio::io_context home;
    std::optional<asio::io_context> away(std::in_place);
    int alive = 0;
    const auto caller = [&]() -> asio::awaitable<void> {
        const Live here(alive);
        co_await run_on(make_executor(*away), [&]() -> asio::awaitable<void> {
            const Live there(alive);
            co_await wait_forever();
        });
    };
    Task<> task(home.get_executor(), caller);
    home.poll();
    away->poll();
    CHECK(alive == 2);
    SECTION("cancelled") { task.cancel(); }
    SECTION("not cancelled") {}
    away.reset();
    home.run();
    CHECK(alive == 0);
    CHECK(task.ends() == 0);
}

TEST_CASE("run_on: the destruction of a pool destroys suspended work and the coroutine that awaits it",
          "[run_on][shutdown]") {
    SECTION("on the executor of the pool") {
        check_destruction_of_suspended_work([](asio::io_context& away) { return away.get_executor(); });
    }
    SECTION("on a strand") {
        check_destruction_of_suspended_work([](asio::io_context& away) { return asio::make_strand(away); });
    }
    SECTION("on a strand inside an any_io_executor") {
        check_destruction_of_suspended_work(
            [](asio::io_context& away) { return asio::any_io_executor(asio::make_strand(away)); });
    }
}

TEST_CASE("run_on: a result that is never fetched is destroyed with the coroutine's context", "[run_on][shutdown]") {
    std::optional<asio::io_context> home(std::in_place);
    asio::io_context away;
    int alive = 0;
    bool resumed = false;
    asio::co_spawn(
        *home,
        [&]() -> asio::awaitable<void> {
            const Live here(alive);
            const auto result = co_await run_on(away.get_executor(), [&] { return std::make_unique<Live>(alive); });
            resumed = true;
        },
        asio::detached);
    home->poll();
    away.poll();  // the work has ended
    CHECK(alive == 2);
    home.reset();
    CHECK(alive == 0);
    CHECK_FALSE(resumed);
}

TEST_CASE("run_on: an awaitable that is never awaited does nothing and may outlive the pool", "[run_on][shutdown]") {
    std::optional<asio::io_context> away(std::in_place);
    int alive = 0;
    {
        auto function = [live = std::make_unique<Live>(alive)] {};
        const auto unused = run_on(away->get_executor(), std::move(function));
        away->run();
        CHECK(alive == 1);
        away.reset();
    }
    CHECK(alive == 0);
}

}  // namespace
