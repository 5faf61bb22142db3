// SPDX-License-Identifier: BSL-1.0
// Coroutines that are cancelled before they begin, where co_spawn of Boost 1.83 lets the exception escape into the
// event loop, and the alternatives that the guide lists. In any case, nothing is lost.
#include <sluice/sluice.hpp>

#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/experimental/parallel_group.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstddef>
#include <exception>
#include <string>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
namespace experimental = boost::asio::experimental;
using boost::system::system_error;
using test::is_aborted;
using test::Task;

// Runs the context to its end. Returns how often operation_aborted escaped.
int run_to_end(asio::io_context& context) {
    for (int escaped = 0;;) {
        try {
            context.restart();
            context.run();
            return escaped;
        } catch (const system_error& error) {
            CHECK(error.code() == asio::error::operation_aborted);
            ++escaped;
        }
    }
}

asio::awaitable<sluice::Slot> acquire(sluice::StageSemaphore& semaphore) { co_return co_await semaphore.acquire(); }

asio::awaitable<std::size_t> arrive(sluice::Barrier& barrier) { co_return co_await barrier.arrive_and_wait(); }

template <class First, class Second>
auto race(const asio::any_io_executor& executor, First first, Second second) {
    return experimental::make_parallel_group(asio::co_spawn(executor, std::move(first), asio::deferred),
                                             asio::co_spawn(executor, std::move(second), asio::deferred));
}

TEST_CASE("not begun: a parallel group made outside the loop loses no slot", "[not_begun][semaphore]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    int calls = 0;
    race(context.get_executor(), acquire(semaphore), acquire(semaphore))
        .async_wait(experimental::wait_for_one(), [&](auto&&...) { ++calls; });
    const int escaped = run_to_end(context);
    CHECK(escaped + calls == 1);  // Boost 1.83: it escapes; later versions: the handler is called
    CHECK(semaphore.active() == 0);
    CHECK(semaphore.waiting() == 0);
    const auto slot = semaphore.try_acquire();
    CHECK(slot);
    CHECK_FALSE(semaphore.try_acquire());
}

TEST_CASE("not begun: a parallel group made outside the loop leaves the barrier intact", "[not_begun][barrier]") {
    asio::io_context context;
    sluice::Barrier barrier(context.get_executor(), 1);
    int calls = 0;
    race(context.get_executor(), arrive(barrier), arrive(barrier))
        .async_wait(experimental::wait_for_one(), [&](auto&&...) { ++calls; });
    const int escaped = run_to_end(context);
    CHECK(escaped + calls == 1);
    CHECK(barrier.waiting() == 0);
    const Task<std::size_t> next(context.get_executor(), [&] { return barrier.arrive_and_wait(); });
    run_to_end(context);
    CHECK(next.succeeded());
}

TEST_CASE("not begun: a parallel group made inside a coroutine works", "[not_begun][semaphore][barrier]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    sluice::Barrier barrier(context.get_executor(), 1);
    int acquired = 0;
    int aborted = 0;
    int met = 0;
    const Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const auto executor = co_await asio::this_coro::executor;
        const auto [order, error1, slot1, error2, slot2] =
            co_await race(executor, acquire(semaphore), acquire(semaphore))
                .async_wait(experimental::wait_for_one(), asio::deferred);
        acquired = static_cast<bool>(slot1) + static_cast<bool>(slot2);
        aborted = is_aborted(error1) + is_aborted(error2);
        const auto [order2, error3, index1, error4, index2] =
            co_await race(executor, arrive(barrier), arrive(barrier))
                .async_wait(experimental::wait_for_one(), asio::deferred);
        met = !error3 + !error4;
    });
    CHECK(run_to_end(context) == 0);
    CHECK(task.succeeded());
    CHECK(acquired == 1);
    CHECK(aborted == 1);
    CHECK(met == 2);
    CHECK(semaphore.active() == 0);
    CHECK(semaphore.waiting() == 0);
}

TEST_CASE("not begun: a task group cancels children that have not begun", "[not_begun][semaphore]") {
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    int acquired = 0;
    const Task<> task(context.get_executor(), [&] {
        return sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
            for (int i = 0; i != 2; ++i) {
                group.spawn([&]() -> asio::awaitable<void> {
                    const auto slot = co_await semaphore.acquire();
                    ++acquired;
                    group.cancel();
                });
            }
            co_return;
        });
    });
    CHECK(run_to_end(context) == 0);
    CHECK(task.succeeded());
    CHECK(acquired == 1);
    CHECK(semaphore.active() == 0);
}

struct CountingSink {
    int count = 0;
    void put(const sluice::Query&, const sluice::StageResult<>&) { ++count; }
};

struct UnbegunBatch {
    static asio::awaitable<int> model(const std::string&) {
        co_await test::yield();
        co_return 1;
    }
    static asio::awaitable<int> generate(int, int, const std::string&) { co_return 1; }

    asio::io_context context;
    CountingSink sink;
    sluice::InferencePipeline<decltype(&model), decltype(&model), decltype(&generate), CountingSink> pipeline{
        context.get_executor(), &model, &model, &generate, sluice::StageLimits{1, 1, 1}, sink};
    asio::cancellation_signal signal;
    int calls = 0;
    int aborted = 0;

    void spawn() {
        asio::co_spawn(
            context, pipeline.process_batch(std::vector<sluice::Query>(3, sluice::Query("q", "text"))),
            asio::bind_cancellation_slot(signal.slot(), [this](const std::exception_ptr& error, const auto&) {
                ++calls;
                aborted += is_aborted(error);
            }));
    }

    // The cancelled batch has left nothing behind, and the next batch runs.
    void check_that_nothing_is_lost() {
        CHECK(sink.count == 0);
        CHECK(test::no_slot_taken(pipeline));
        const int before = aborted;
        calls = 0;
        spawn();
        CHECK(run_to_end(context) == 0);
        CHECK(calls == 1);
        CHECK(aborted == before);
    }
};

TEST_CASE("not begun: a batch that is cancelled before it begins loses nothing", "[not_begun][pipeline]") {
    UnbegunBatch batch;
    batch.spawn();
    batch.signal.emit(asio::cancellation_type::terminal);
    const int escaped = run_to_end(batch.context);
    CHECK(escaped + batch.calls == 1);  // Boost 1.83: it escapes; later versions: the handler is called
    CHECK(batch.aborted == batch.calls);
    batch.check_that_nothing_is_lost();
}

TEST_CASE("not begun: a batch can be cancelled through its executor", "[not_begun][pipeline]") {
    UnbegunBatch batch;
    batch.spawn();
    asio::post(batch.context, [&] { batch.signal.emit(asio::cancellation_type::terminal); });
    CHECK(run_to_end(batch.context) == 0);
    CHECK(batch.calls == 1);
    CHECK(batch.aborted == 1);
    batch.check_that_nothing_is_lost();
}

}  // namespace
