// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage_error.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/sync/timer.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/every_step.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/experimental/channel.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/error_code.hpp>
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
#include <vector>

namespace {

namespace asio = boost::asio;
namespace this_coro = boost::asio::this_coro;
using namespace std::chrono_literals;
using boost::system::system_error;
using sluice::TimeoutError;
using sluice::testing::run;
using sluice::testing::VirtualTime;
using std::chrono::nanoseconds;
using test::Steps;
using test::Task;
using test::VirtualTimer;
using Void = asio::awaitable<void>;
using Log = std::vector<std::string>;

template <class Function>
auto within(nanoseconds timeout, Function function) {
    return sluice::with_timeout<VirtualTimer>(timeout, std::move(function));
}

template <class T>
std::string what(const Task<T>& task) {
    try {
        if (auto error = task.error()) {
            std::rethrow_exception(error);
        }
    } catch (const std::exception& error) {
        return error.what();
    }
    return {};
}

asio::awaitable<int> seven_after(nanoseconds delay) {
    co_await test::sleep(delay);
    co_return 7;
}

// Waits until it is cancelled, and then takes some time to clean up.
Void tidy(Log& log, nanoseconds clean_up) {
    try {
        co_await test::sleep(1h);
    } catch (const system_error&) {
        log.push_back("cancelled");
    }
    co_await this_coro::reset_cancellation_state(asio::enable_total_cancellation());
    co_await test::sleep(clean_up);
    log.push_back("tidy");
    throw system_error(asio::error::operation_aborted);
}

// Coroutines that end with an error other than operation_aborted when they are cancelled.
asio::awaitable<int> in_parallel() {
    using namespace asio::experimental::awaitable_operators;
    co_await (test::sleep(1h) && test::sleep(2h));
    co_return 1;
}

asio::awaitable<int> in_a_channel() {
    asio::experimental::channel<void(boost::system::error_code)> channel(co_await this_coro::executor);
    co_await channel.async_receive(asio::deferred);
    co_return 1;
}

TEST_CASE("timeout: any error that reports the cancellation becomes a TimeoutError", "[timeout][cancellation]") {
    const auto function = GENERATE(&in_parallel, &in_a_channel);
    asio::io_context context;
    Task<int> task(context.get_executor(), [function] { return within(10ms, function); });
    CHECK(run(context) == 10ms);
    CHECK(task.failed_with<TimeoutError>());
}

TEST_CASE("timeout: cancelled from outside, any error that reports the cancellation becomes operation_aborted",
          "[timeout][cancellation]") {
    const auto function = GENERATE(&in_parallel, &in_a_channel);
    asio::io_context context;
    Task<int> task(context.get_executor(), [function] { return within(10h, function); });
    context.poll();
    task.cancel();
    run(context);
    CHECK(task.aborted());
}

}  // namespace

TEST_CASE("timeout: a function that ends in time returns its value at once", "[timeout]") {
    asio::io_context context;
    const auto time = GENERATE(0ms, 1ms, 9ms);
    Task<int> task(context.get_executor(), [&]() -> asio::awaitable<int> {
        co_return co_await within(10ms, [&] { return seven_after(time); });
    });
    CHECK(run(context) == time);  // the rest of the timeout is not waited for
    REQUIRE(task.succeeded());
    CHECK(task.value() == 7);
    CHECK(VirtualTime::of(context).pending() == 0);
}

TEST_CASE("timeout: a function that does not suspend is in time, even with a timeout of zero or less", "[timeout]") {
    asio::io_context context;
    const auto timeout = GENERATE(-1ms, 0ms, 1ms);
    Task<int> task(context.get_executor(), [&]() -> asio::awaitable<int> {
        co_return co_await within(timeout, []() -> asio::awaitable<int> { co_return 1; });
    });
    CHECK(run(context) == 0ms);
    CHECK(task.succeeded());
}

TEST_CASE("timeout: a function that waits ends with TimeoutError at once if the timeout is zero or less", "[timeout]") {
    asio::io_context context;
    const auto timeout = GENERATE(-1ms, 0ms);
    Task<int> task(context.get_executor(), [&]() -> asio::awaitable<int> {
        co_return co_await within(timeout, [] { return seven_after(1ms); });
    });
    CHECK(run(context) == 0ms);
    CHECK(task.failed_with<TimeoutError>());
}

TEST_CASE("timeout: a function that takes longer is cancelled at the timeout and ends with TimeoutError", "[timeout]") {
    asio::io_context context;
    Task<int> task(context.get_executor(),
                   []() -> asio::awaitable<int> { co_return co_await within(10ms, [] { return seven_after(11ms); }); });
    CHECK(run(context) == 10ms);
    CHECK(task.failed_with<TimeoutError>());
    CHECK(task.failed_with<std::runtime_error>());
    CHECK_FALSE(task.aborted());
}

TEST_CASE("timeout: the message names the duration", "[timeout]") {
    CHECK(std::string(TimeoutError(250ms).what()) == "timed out after 250 ms");
    CHECK(std::string(TimeoutError(1500us).what()) == "timed out after 1.5 ms");
    CHECK(std::string(TimeoutError(2s).what()) == "timed out after 2000 ms");
    asio::io_context context;
    Task task(context.get_executor(), []() -> Void { co_await within(30ms, [] { return test::sleep(1h); }); });
    run(context);
    CHECK(what(task) == "timed out after 30 ms");
}

TEST_CASE("timeout: the message names long durations exactly", "[timeout]") {
    CHECK(std::string(TimeoutError(1234567ms).what()) == "timed out after 1234567 ms");
    CHECK(std::string(TimeoutError(1h).what()).find("3600000 ms") != std::string::npos);
}

TEST_CASE("timeout: a function may return no value", "[timeout]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await within(10ms, [] { return test::sleep(5ms); });
        log.push_back("in time");
        co_await within(10ms, [] { return test::sleep(50ms); });
        log.push_back("never");
    });
    CHECK(run(context) == 15ms);
    CHECK(task.failed_with<TimeoutError>());
    CHECK(log == Log{"in time"});
}

TEST_CASE("timeout: a value may be move-only and need not have a default constructor", "[timeout]") {
    struct Value {
        explicit Value(int n) : number(std::make_unique<int>(n)) {}
        std::unique_ptr<int> number;
    };
    asio::io_context context;
    Task<Value> task(context.get_executor(), []() -> asio::awaitable<Value> {
        co_return co_await within(10ms, []() -> asio::awaitable<Value> {
            co_await test::sleep(1ms);
            co_return Value(3);
        });
    });
    run(context);
    REQUIRE(task.succeeded());
    CHECK(*task.value().number == 3);
}

TEST_CASE("timeout: the callable lives as long as its coroutine, and is destroyed once", "[timeout]") {
    asio::io_context context;
    Log log;
    auto shared = std::make_shared<int>(5);
    const std::weak_ptr<int> watch = shared;
    Task task(context.get_executor(), [&]() -> Void {
        // Named, since g++ 12 destroys a temporary closure in the operand of co_await twice.
        auto function = [shared = std::move(shared)]() -> asio::awaitable<int> {
            co_await test::sleep(1ms);
            co_return *shared;
        };
        const int value = co_await within(10ms, std::move(function));
        log.push_back(std::to_string(value) + " " + std::to_string(watch.use_count()));
    });
    run(context);
    CHECK(task.succeeded());
    CHECK(log == Log{"5 0"});
}

TEST_CASE("timeout: the clean-up of a function that is too late is waited for, and is not disturbed", "[timeout]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        try {
            co_await within(10ms, [&] { return tidy(log, 25ms); });
        } catch (const TimeoutError&) {
            log.push_back("timeout");
            throw;
        }
    });
    CHECK(run(context) == 35ms);
    CHECK(task.failed_with<TimeoutError>());
    CHECK(log == Log{"cancelled", "tidy", "timeout"});
}

TEST_CASE("timeout: a function that is too late is cancelled with every type", "[timeout][cancellation]") {
    asio::io_context context;
    const auto only = test::any_cancellation();
    Task task(context.get_executor(), [&]() -> Void {
        co_await within(10ms, [&]() -> Void {
            co_await this_coro::reset_cancellation_state([&](asio::cancellation_type type) { return type & only; });
            co_await test::sleep(1h);
        });
    });
    CHECK(run(context) == 10ms);
    CHECK(task.failed_with<TimeoutError>());
}

TEST_CASE("timeout: a function that returns a value despite its cancellation is in time", "[timeout]") {
    asio::io_context context;
    Task<int> task(context.get_executor(), []() -> asio::awaitable<int> {
        co_return co_await within(10ms, []() -> asio::awaitable<int> {
            try {
                co_await test::sleep(1h);
            } catch (const system_error&) {
            }
            co_return 8;
        });
    });
    CHECK(run(context) == 10ms);
    REQUIRE(task.succeeded());
    CHECK(task.value() == 8);
}

TEST_CASE("timeout: a function that ignores its cancellation is waited for, and is in time", "[timeout]") {
    asio::io_context context;
    Task<int> task(context.get_executor(), []() -> asio::awaitable<int> {
        co_return co_await within(10ms, []() -> asio::awaitable<int> {
            co_await this_coro::reset_cancellation_state(asio::disable_cancellation());
            co_return co_await seven_after(50ms);
        });
    });
    CHECK(run(context) == 50ms);
    CHECK(task.succeeded());
}

TEST_CASE("timeout: an exception of the function is rethrown, and is nested in the TimeoutError if it is late",
          "[timeout]") {
    asio::io_context context;
    const bool late = GENERATE(false, true);
    Task task(context.get_executor(), [&]() -> Void {
        co_await within(10ms, [&]() -> Void {
            try {
                co_await test::sleep(late ? 1h : 5ms);
            } catch (const system_error&) {
                throw std::logic_error("late");
            }
            throw std::logic_error("early");
        });
    });
    CHECK(run(context) == (late ? 10ms : 5ms));
    CHECK(task.failed_with<std::logic_error>() == !late);
    CHECK(task.failed_with<sluice::TimeoutError>() == late);
    CHECK(sluice::StageError(task.error()).message() == (late ? "timed out after 10 ms: late" : "early"));
    CHECK(sluice::StageError(task.error()).type() == (late ? "sluice::TimeoutError" : "std::logic_error"));
}

TEST_CASE("timeout: it also applies to an operation such as acquire()", "[timeout]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    Task task(context.get_executor(), [&]() -> Void {
        const sluice::Slot slot = co_await within(10ms, [&] { return semaphore.acquire(); });
        CHECK(semaphore.active() == 1);
        static_cast<void>(co_await within(10ms, [&] { return semaphore.acquire(); }));
    });
    CHECK(run(context) == 10ms);
    CHECK(task.failed_with<TimeoutError>());
    CHECK(semaphore.active() == 0);
    CHECK(semaphore.waiting() == 0);
}

TEST_CASE("timeout: a cancellation from outside during the clean-up wins, unless the function fails",
          "[timeout][cancellation]") {
    asio::io_context context;
    const bool fails = GENERATE(false, true);
    Task task(context.get_executor(), [&]() -> Void {
        co_await within(10ms, [&]() -> Void {
            try {
                co_await test::sleep(1h);
            } catch (const system_error&) {
            }
            co_await this_coro::throw_if_cancelled(false);
            co_await test::sleep(5ms);
            if (fails) {
                throw std::logic_error("late");
            }
            throw system_error(asio::error::operation_aborted);
        });
    });
    VirtualTimer stop(context.get_executor(), 12ms);
    stop.async_wait([&](auto) { task.cancel(); });
    run(context);
    CHECK(task.aborted() == !fails);
    CHECK(task.failed_with<TimeoutError>() == fails);
}

TEST_CASE("timeout: sleep_for waits with the given timer", "[timeout]") {
    asio::io_context context;
    Task task(context.get_executor(), []() -> Void { co_await sluice::sleep_for<VirtualTimer>(7ms); });
    CHECK(run(context) == 7ms);
    CHECK(task.succeeded());
    Task cancelled(context.get_executor(), []() -> Void { co_await sluice::sleep_for<VirtualTimer>(1h); });
    test::poll(context);
    cancelled.cancel();
    CHECK(run(context) == 0ms);
    CHECK(cancelled.aborted());
    asio::io_context real;
    Task at_once(real.get_executor(), []() -> Void { co_await sluice::sleep_for(-1s); });
    real.run();
    CHECK(at_once.succeeded());
}

TEST_CASE("timeout: a function may throw before it returns an awaitable, and something other than a std::exception",
          "[timeout]") {
    asio::io_context context;
    Task task(context.get_executor(), []() -> Void { co_await within(10ms, []() -> Void { throw 42; }); });
    CHECK(run(context) == 0ms);
    CHECK(task.failed_with<int>());
}

TEST_CASE("timeout: operation_aborted that the function throws in time is passed on", "[timeout]") {
    asio::io_context context;
    Task task(context.get_executor(), []() -> Void {
        co_await within(10ms, []() -> Void {
            co_await test::sleep(5ms);
            throw system_error(asio::error::operation_aborted, "function");
        });
    });
    CHECK(run(context) == 5ms);
    CHECK(task.aborted());
    CHECK(what(task).starts_with("function"));
}

TEST_CASE("timeout: the TimeoutError of an inner timeout is passed on by the outer one", "[timeout]") {
    asio::io_context context;
    Task task(context.get_executor(),
              []() -> Void { co_await within(100ms, [] { return within(10ms, [] { return test::sleep(1h); }); }); });
    CHECK(run(context) == 10ms);
    CHECK(what(task) == "timed out after 10 ms");
}

TEST_CASE("timeout: an outer timeout cuts the inner one short", "[timeout]") {
    asio::io_context context;
    Task task(context.get_executor(),
              []() -> Void { co_await within(10ms, [] { return within(100ms, [] { return test::sleep(1h); }); }); });
    CHECK(run(context) == 10ms);
    CHECK(what(task) == "timed out after 10 ms");
}

TEST_CASE("timeout: at a tie the function wins", "[timeout]") {
    asio::io_context context;
    Task<int> one_wait(context.get_executor(), []() -> asio::awaitable<int> {
        co_return co_await within(10ms, [] { return seven_after(10ms); });  // waits before the timeout does
    });
    run(context);
    CHECK(one_wait.succeeded());
    Task<int> two_waits(context.get_executor(), []() -> asio::awaitable<int> {
        co_return co_await within(10ms, []() -> asio::awaitable<int> {
            co_await test::sleep(5ms);
            co_return co_await seven_after(5ms);
        });
    });
    run(context);
    CHECK(two_waits.succeeded());
}

TEST_CASE("timeout: if both are due before either resumes, there is one end, and the value counts", "[timeout]") {
    asio::io_context context;
    Task<int> task(context.get_executor(), []() -> asio::awaitable<int> {
        co_return co_await within(10ms, []() -> asio::awaitable<int> {
            co_await test::sleep(5ms);
            co_return co_await seven_after(6ms);
        });
    });
    VirtualTime& time = VirtualTime::of(context);
    context.poll();
    time.advance();  // 5 ms
    test::poll(context);
    time.advance();  // 10 ms: the timeout
    time.advance();  // 11 ms: the function
    test::poll(context);
    REQUIRE(task.succeeded());
    CHECK(task.value() == 7);
    CHECK(run(context) == 0ms);
}

TEST_CASE("timeout: cancelled from outside, it waits for the coroutine and ends with operation_aborted",
          "[timeout][cancellation]") {
    asio::io_context context;
    Log log;
    const auto type = test::any_cancellation();
    const bool during_clean_up = GENERATE(false, true);  // after the timeout
    Task task(context.get_executor(), [&]() -> Void { co_await within(10ms, [&] { return tidy(log, 25ms); }); });
    context.poll();
    if (during_clean_up) {
        VirtualTime::of(context).advance();
        test::poll(context);
        CHECK(log == Log{"cancelled"});
    }
    task.cancel(type);
    CHECK(run(context) == 25ms);
    CHECK(task.aborted());
    CHECK(log == Log{"cancelled", "tidy"});
    CHECK(VirtualTime::of(context).pending() == 0);
}

TEST_CASE("timeout: cancelled from outside, a value that the coroutine still returns is not discarded",
          "[timeout][cancellation]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        const int value = co_await within(10ms, []() -> asio::awaitable<int> {
            try {
                co_await test::sleep(1h);
            } catch (const system_error&) {
            }
            co_return 6;
        });
        log.push_back("value " + std::to_string(value));
        co_await test::yield();
        log.push_back("never");
    });
    context.poll();
    task.cancel();
    CHECK(run(context) == 0ms);
    CHECK(task.aborted());  // by the next co_await
    CHECK(log == Log{"value 6"});
}

TEST_CASE("timeout: cancelled from outside, a failure of the function is still rethrown", "[timeout][cancellation]") {
    asio::io_context context;
    Task task(context.get_executor(), []() -> Void {
        co_await within(10ms, []() -> Void {
            try {
                co_await test::sleep(1h);
            } catch (const system_error&) {
                throw std::logic_error("failure");
            }
        });
    });
    context.poll();
    task.cancel();
    run(context);
    CHECK(what(task) == "failure");
}

TEST_CASE("timeout: cancelled at every step, it ends once and leaves nothing behind", "[timeout][cancellation]") {
    int aborted = 0;
    const auto run_and_cancel = [&](Steps& steps) {
        asio::io_context context;
        auto token = std::make_shared<int>();
        Task<int> task(context.get_executor(), [token]() -> asio::awaitable<int> {
            auto function = [token]() -> asio::awaitable<int> {
                co_await test::sleep(5ms);
                co_return co_await seven_after(1ms);
            };
            co_return co_await within(10ms, std::move(function));
        });
        steps.take(context);
        task.cancel();
        REQUIRE_NOTHROW(run(context));
        REQUIRE(task.done());
        REQUIRE(task.succeeded() == !task.aborted());
        REQUIRE(token.use_count() == 1);
        REQUIRE(VirtualTime::of(context).pending() == 0);
        aborted += task.aborted() ? 1 : 0;
    };
    test::for_every_step(run_and_cancel, 1);
    CHECK(aborted >= 3);
}

TEST_CASE("timeout: the context may be destroyed at every step", "[timeout][shutdown]") {
    const auto run_and_destroy = [](Steps& steps) {
        auto token = std::make_shared<int>();
        Log log;
        {
            asio::io_context context;
            Task task(context.get_executor(), [token, &log]() -> Void {
                auto function = [token, &log]() -> Void {
                    co_await test::sleep(5ms);
                    co_await tidy(log, 5ms);
                };
                co_await within(10ms, std::move(function));
            });
            steps.take(context);
        }
        REQUIRE(token.use_count() == 1);
    };
    CHECK(test::for_every_step(run_and_destroy) > 10);
}

TEST_CASE("timeout: it works in coroutines with a typed executor", "[timeout][typed]") {
    using IoExecutor = asio::io_context::executor_type;
    asio::io_context context;
    std::exception_ptr error;
    int value = 0;
    const auto wait = [](nanoseconds time) -> asio::awaitable<int, IoExecutor> {
        VirtualTimer timer(co_await this_coro::executor, time);
        co_await timer.async_wait(asio::deferred);
        co_return 4;
    };
    const auto caller = [&]() -> asio::awaitable<void, IoExecutor> {
        value = co_await within(10ms, [&] { return wait(5ms); });
        co_await within(10ms, [&] { return wait(15ms); });
    };
    asio::co_spawn(context.get_executor(), caller, [&](std::exception_ptr e) { error = e; });
    CHECK(run(context) == 15ms);
    CHECK(value == 4);
    REQUIRE(error);
    CHECK_THROWS_AS(std::rethrow_exception(error), TimeoutError);
}

TEST_CASE("timeout: the default timer is asio::steady_timer, and the longest timeout does not overflow", "[timeout]") {
    asio::io_context context;
    Task<int> task(context.get_executor(), []() -> asio::awaitable<int> {
        co_return co_await sluice::with_timeout(nanoseconds::max(), []() -> asio::awaitable<int> {
            co_await test::yield();
            co_await test::yield();
            co_return 2;
        });
    });
    context.run();
    REQUIRE(task.succeeded());
    CHECK(task.value() == 2);
}

TEST_CASE("timeout: it also applies where cancellation is disabled, and the filter is as it was afterwards",
          "[timeout][cancellation]") {
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await this_coro::reset_cancellation_state(asio::disable_cancellation());
        try {
            co_await within(10ms, [] { return test::sleep(1h); });
        } catch (const TimeoutError&) {
            log.push_back("timeout");
        }
        co_await test::sleep(5ms);
        log.push_back("not cancelled");
    });
    VirtualTimer during(context.get_executor(), 4ms);
    during.async_wait([&](auto) { task.cancel(); });
    VirtualTimer afterwards(context.get_executor(), 12ms);
    afterwards.async_wait([&](auto) { task.cancel(); });
    CHECK(run(context) == 15ms);
    CHECK(task.succeeded());
    CHECK(log == Log{"timeout", "not cancelled"});
}

TEST_CASE("timeout: throw_if_cancelled(false) holds again afterwards, and the function sees no earlier cancellation",
          "[timeout][cancellation]") {
    const bool in_time = GENERATE(false, true);
    asio::io_context context;
    Log log;
    Task task(context.get_executor(), [&]() -> Void {
        co_await this_coro::throw_if_cancelled(false);
        for (int i = 0; i != 2; ++i) {  // the second time with a cancellation that predates
            try {
                co_await within(in_time ? 20ms : 10ms, [] { return test::sleep(15ms); });
                log.push_back("in time");
            } catch (const TimeoutError&) {
                log.push_back("timeout");
            }
            try {
                co_await test::sleep(1h);
            } catch (const system_error&) {
                log.push_back("cancelled");
            }
        }
    });
    VirtualTimer first(context.get_executor(), 16ms);
    first.async_wait([&](auto) { task.cancel(); });
    VirtualTimer second(context.get_executor(), 40ms);
    second.async_wait([&](auto) { task.cancel(); });
    CHECK(run(context) == 40ms);
    CHECK(task.succeeded());
    const std::string end = in_time ? "in time" : "timeout";
    CHECK(log == Log{end, "cancelled", end, "cancelled"});
}

TEST_CASE("timeout: what the function does to its cancellation state does not outlive it", "[timeout][cancellation]") {
    asio::io_context context;
    Task task(context.get_executor(), []() -> Void {
        co_await within(10ms, []() -> Void {
            co_await this_coro::reset_cancellation_state(asio::disable_cancellation());
            co_await this_coro::throw_if_cancelled(false);
        });
        co_await test::sleep(1h);
    });
    context.poll();
    task.cancel();
    CHECK(run(context) == 0ms);
    CHECK(task.aborted());
}

TEST_CASE("timeout: a timeout inside a timeout, cancelled from outside at every step, leaves nothing behind",
          "[timeout][cancellation]") {
    const bool destroyed = GENERATE(false, true);
    test::for_every_step(
        [&](Steps& steps) {
            auto token = std::make_shared<int>();
            std::optional<asio::io_context> context(std::in_place);
            Task task(context->get_executor(), [token]() -> Void {
                auto inner = [token]() -> Void {
                    co_await within(3ms, [] { return test::sleep(2ms); });
                    co_await within(3ms, [] { return test::sleep(4ms); });
                };
                auto outer = [inner]() -> Void { co_await within(10ms, inner); };
                co_await within(10ms, std::move(outer));
            });
            steps.take(*context);
            if (destroyed) {
                context.reset();
                task.cancel();
            } else {
                task.cancel();
                REQUIRE_NOTHROW(run(*context));
                REQUIRE((task.aborted() || task.failed_with<TimeoutError>()));
                REQUIRE(VirtualTime::of(*context).pending() == 0);
            }
            REQUIRE(token.use_count() == 1);
        },
        1);
}

TEST_CASE("timeout: its timer does not keep the context from running out of work", "[timeout]") {
    asio::io_context context;
    Task task(context.get_executor(),
              []() -> Void { co_await sluice::with_timeout(1h, [] { return test::yield(); }); });
    context.poll();
    CHECK(task.succeeded());
    CHECK(context.stopped());
}
