// SPDX-License-Identifier: BSL-1.0
// All tests with more than one thread: strands of a thread pool, and models that work on the pool. Run them under TSan.
#include <sluice/sluice.hpp>
#include <sluice/testing/fuse.hpp>

#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/dispatch.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>

#include <array>
#include <atomic>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <future>
#include <memory>
#include <optional>
#include <semaphore>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;

// Asio synchronises the last two owners of an any_io_executor that holds a strand by a fence, which TSan does not
// support.
extern "C" const char* __tsan_default_suppressions() {  // NOLINT(bugprone-reserved-identifier)
    return "race:boost::asio::execution::detail::shared_target_executor\n";
}

namespace {

using test::no_slot_taken;
using test::Task;

// Works on a thread of the pool, then returns to the strand of the coroutine.
struct PooledModel {
    asio::thread_pool& pool;
    std::atomic<int>& running;
    std::atomic<int>& most;
    int fails_every;

    asio::awaitable<int> operator()(const std::string& text) const {
        const int number = std::stoi(text);
        co_await sluice::run_on(pool.get_executor(), [this] {
            const int now = ++running;
            for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
            }
            --running;
        });
        if (number % fails_every == 0) {
            throw std::runtime_error("model");
        }
        co_return number;
    }
};

struct CountingSink {
    std::size_t count = 0;
    void put(const sluice::Query&, const sluice::StageResult<>&) { ++count; }
};

// Starts a coroutine on its strand. (Not on this thread: if two threads release a strand inside an any_io_executor
// without other synchronisation, Asio relies on a fence, which TSan does not support.)
template <class Strand, class Function>
void start(const Strand& strand, Function function) {
    asio::post(strand, std::move(function));
}

std::vector<sluice::Query> numbered(int n) {
    std::vector<sluice::Query> queries;
    for (int i = 1; i <= n; ++i) {
        queries.emplace_back(std::to_string(i), std::to_string(i));
    }
    return queries;
}

struct Rig {
    asio::thread_pool pool{4};
    asio::strand<asio::thread_pool::executor_type> strand = asio::make_strand(pool);
    std::atomic<int> running = 0;
    std::atomic<int> most = 0;
    CountingSink sink;

    auto pipeline(int fails_every) {
        const PooledModel model{pool, running, most, fails_every};
        const auto generate = [model](int, int, const std::string& text) { return model(text); };
        return sluice::InferencePipeline(asio::any_io_executor(strand), model, model, generate,
                                         sluice::StageLimits{20, 10, 5}, sink);
    }
};

TEST_CASE("threads: 10,000 queries on a strand, with models on the pool", "[threads]") {
    Rig rig;
    auto pipeline = rig.pipeline(7);
    decltype(asio::co_spawn(rig.strand, pipeline.process_batch(numbered(0)), asio::use_future)) done;
    start(rig.strand,
          [&] { done = asio::co_spawn(rig.strand, pipeline.process_batch(numbered(10'000)), asio::use_future); });
    rig.pool.join();
    const auto results = done.get();
    std::size_t completed = 0;
    for (const auto& result : results) {
        completed += result.completed;
    }
    CHECK(results.size() == 10'000);
    CHECK(completed == 10'000 - 10'000 / 7);
    CHECK(rig.sink.count == 10'000 / 7);
    CHECK(rig.most <= 35);
}

TEST_CASE("threads: a batch is cancelled from another thread, through the strand", "[threads][cancellation]") {
    Rig rig;
    auto pipeline = rig.pipeline(1'000'000);
    asio::cancellation_signal signal;
    std::exception_ptr ended;
    start(rig.strand, [&] {
        asio::co_spawn(
            rig.strand, pipeline.process_batch(numbered(1'000'000)),
            asio::bind_cancellation_slot(signal.slot(), [&](std::exception_ptr error, auto) { ended = error; }));
    });
    asio::post(rig.strand, [&] { signal.emit(asio::cancellation_type::terminal); });
    rig.pool.join();
    CHECK(ended);
    CHECK(no_slot_taken(pipeline));
}

TEST_CASE("threads: a stream of 10,000 queries on a strand, with models on the pool", "[threads][stream]") {
    Rig rig;
    auto pipeline = rig.pipeline(7);
    std::size_t completed = 0;
    std::size_t failed = 0;
    std::exception_ptr ended;
    const auto consume = [&]() -> asio::awaitable<void> {
        auto stream = pipeline.process_stream(numbered(10'000));
        while (const auto item = co_await stream.next()) {
            ++(item->result.completed ? completed : failed);
        }
    };
    start(rig.strand,
          [&] { asio::co_spawn(rig.strand, consume(), [&](const std::exception_ptr& error) { ended = error; }); });
    rig.pool.join();
    CHECK_FALSE(ended);
    CHECK(completed == 10'000 - 10'000 / 7);
    CHECK(failed == 10'000 / 7);
    CHECK(rig.sink.count == 10'000 / 7);
    CHECK(rig.most <= 35);
}

TEST_CASE("threads: a coroutine may be destroyed at the very end of its thread", "[threads][shutdown]") {
    using Acquisition = asio::awaitable<sluice::Slot>;
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    std::thread([&semaphore] {
        thread_local std::optional<Acquisition> late;  // destroyed after everything that the thread creates later
        late = semaphore.acquire();
        const Acquisition early = semaphore.acquire();
    }).join();
    CHECK(semaphore.active() == 0);  // and the sanitizers find no leak
}

asio::awaitable<void> use_primitives(std::atomic<int>& rounds) {
    for (int round = 0; round < 200; ++round) {
        const auto executor = co_await asio::this_coro::executor;
        sluice::StageSemaphore semaphore(executor, 2);
        sluice::Barrier barrier(executor, 3);
        co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
            for (int party = 0; party < 3; ++party) {
                group.spawn([&]() -> asio::awaitable<void> {
                    const auto slot = co_await semaphore.acquire();
                    co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
                });
                group.spawn([&]() -> asio::awaitable<void> { co_await barrier.arrive_and_wait(); });
            }
            co_return;
        });
        ++rounds;
    }
}

TEST_CASE("threads: primitives of several strands of one pool are created and destroyed concurrently", "[threads]") {
    asio::thread_pool pool(4);
    std::atomic<int> rounds = 0;
    for (int i = 0; i < 8; ++i) {
        const auto strand = asio::make_strand(pool);
        start(strand, [strand, &rounds] {
            asio::co_spawn(strand, use_primitives(rounds), [](const std::exception_ptr& error) {
                if (error) {
                    std::rethrow_exception(error);
                }
            });
        });
    }
    pool.join();
    CHECK(rounds == 8 * 200);
}

// Runs `function` on the strand, and the handlers that it causes.
template <class Strand, class Function>
void run_through(const Strand& strand, Function function) {
    asio::post(strand, asio::use_future(function)).get();
    for (int i = 0; i != 5; ++i) {
        asio::post(strand, asio::use_future([] {})).get();
    }
}

using Strand = asio::strand<asio::thread_pool::executor_type>;

asio::awaitable<void, Strand> visit(sluice::StageSemaphore& semaphore, bool& served) {
    const sluice::Slot slot = co_await semaphore.acquire();
    served = true;
}

TEST_CASE("threads: the executor of a semaphore may be a strand of a pool, which is destroyed before or after it",
          "[threads][shutdown]") {
    std::optional<asio::thread_pool> pool(std::in_place, 2);
    std::optional<Strand> strand(asio::make_strand(*pool));
    std::optional<sluice::StageSemaphore> semaphore(std::in_place, *strand, 1);
    const auto alive = std::make_shared<int>();
    bool served = false;
    std::vector<Task<sluice::Slot>> tasks;
    run_through(*strand, [&] {
        for (int i = 0; i != 4; ++i) {
            tasks.emplace_back(*strand, [&, alive] { return semaphore->acquire(); });
        }
        asio::co_spawn(*strand, visit(*semaphore, served), asio::detached);
    });
    run_through(*strand, [&] { tasks[0].value().release(); });
    run_through(*strand, [&] { tasks[2].cancel(); });
    int succeeded = 0;
    run_through(*strand, [&] {
        succeeded = tasks[0].succeeded() + tasks[1].succeeded() + tasks[2].aborted();
        CHECK(semaphore->active() == 1);
        CHECK(semaphore->waiting() == 2);
    });
    CHECK(succeeded == 3);
    strand.reset();
    SECTION("the pool first") {
        pool.reset();
        CHECK_FALSE(semaphore->get_executor());
        CHECK(semaphore->waiting() == 0);
        CHECK(semaphore->active() == 1);
        tasks[1].value().release();
        CHECK(semaphore->active() == 0);
    }
    SECTION("the semaphore first") {
        semaphore.reset();
        pool.reset();
        tasks[1].value().release();
    }
    CHECK(alive.use_count() == 1);
    CHECK_FALSE(served);
}

asio::awaitable<void, Strand> meet(sluice::Barrier& barrier, bool& met) {
    co_await barrier.arrive_and_wait();
    met = true;
}

TEST_CASE("threads: the executor of a barrier may be a strand of a pool, which is destroyed before or after it",
          "[threads][shutdown]") {
    std::optional<asio::thread_pool> pool(std::in_place, 2);
    std::optional<Strand> strand(asio::make_strand(*pool));
    std::optional<sluice::Barrier> barrier(std::in_place, *strand, 3);
    const auto alive = std::make_shared<int>();
    bool met = false;
    std::vector<Task<std::size_t>> arrivals;
    std::size_t waiting = 0;
    run_through(*strand, [&] {
        for (int i = 0; i != 4; ++i) {
            arrivals.emplace_back(*strand, [&, alive] { return barrier->arrive_and_wait(); });
        }
        asio::co_spawn(*strand, meet(*barrier, met), asio::detached);
    });
    run_through(*strand, [&] { waiting = barrier->waiting(); });
    CHECK(waiting == 2);
    CHECK(arrivals[0].succeeded());
    CHECK(arrivals[2].succeeded());
    strand.reset();
    SECTION("the pool first") {
        pool.reset();
        CHECK_FALSE(barrier->get_executor());
        CHECK(barrier->waiting() == 0);
    }
    SECTION("the barrier first") {
        barrier.reset();
        pool.reset();
    }
    CHECK(alive.use_count() == 1);
    CHECK_FALSE(met);
}

TEST_CASE("threads: children on a strand work on the pool and return to the strand", "[threads]") {
    asio::thread_pool pool(4);
    const auto strand = asio::make_strand(pool);
    int sum = 0;  // accessed only on the strand
    std::atomic<int> worked = 0;
    std::optional<Task<>> task;
    start(strand, [&] {
        task.emplace(strand, [&] {
            return sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
                for (int i = 0; i != 2000; ++i) {
                    group.spawn([&, i]() -> asio::awaitable<void> {
                        co_await sluice::run_on(pool.get_executor(), [&] { ++worked; });
                        sum += i;
                    });
                }
                co_return;
            });
        });
    });
    pool.join();
    CHECK(task->succeeded());
    CHECK(worked == 2000);
    CHECK(sum == 1999 * 1000);
}

TEST_CASE("threads: a group that is cancelled through its strand waits for its children", "[threads][cancellation]") {
    asio::thread_pool pool(4);
    const auto strand = asio::make_strand(pool);
    int begun = 0;
    int ended = 0;
    std::optional<Task<>> task;
    const auto child = [&]() -> asio::awaitable<void> {
        if (++begun == 500) {
            asio::post(pool, [&] { asio::dispatch(strand, [&] { task->cancel(); }); });
        }
        try {
            co_await test::wait_forever();
        } catch (const boost::system::system_error&) {
            ++ended;
        }
    };
    start(strand, [&] {
        task.emplace(strand, [&] {
            return sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
                for (int i = 0; i != 500; ++i) {
                    group.spawn(child());
                }
                co_return;
            });
        });
    });
    pool.join();
    CHECK(task->aborted());
    CHECK(begun == 500);
    CHECK(ended == 500);
}

TEST_CASE("threads: a model may work on a pool and return to an io_context", "[threads]") {
    asio::io_context context;
    asio::thread_pool pool(2);
    const auto home = std::this_thread::get_id();
    std::vector<std::thread::id> after;
    const auto model = [&](int n) -> asio::awaitable<int> {
        const auto work = [n] { return std::pair(n * n, std::this_thread::get_id()); };
        const auto [square, thread] = co_await sluice::run_on(pool.get_executor(), work);
        after.push_back(std::this_thread::get_id());
        if (thread == std::this_thread::get_id()) {
            throw std::logic_error("not on the pool");
        }
        co_return square;
    };
    sluice::Stage stage(context.get_executor(), "s", 3, model);  // on the default timer
    std::vector<Task<sluice::StageResult<int>>> tasks;
    for (int i = 0; i != 50; ++i) {
        tasks.emplace_back(context.get_executor(), [&stage, i] { return stage.run("q", int(i)); });
    }
    context.run();
    for (int i = 0; i != 50; ++i) {
        CHECK(tasks[static_cast<std::size_t>(i)].value().data == i * i);
    }
    CHECK(after == std::vector<std::thread::id>(50, home));
    CHECK(stage.endpoint().active() == 0);
}

TEST_CASE("threads: an observer is called on the executor of the stage", "[threads]") {
    struct Calls : sluice::Observer {
        Strand strand;
        int all = 0;
        int elsewhere = 0;

        explicit Calls(Strand home) : strand(std::move(home)) {}

        void count() {
            ++all;
            elsewhere += !strand.running_in_this_thread();
        }
        void on_queued(const sluice::StageResult<>&) noexcept override { count(); }
        void on_started(const sluice::StageResult<>&) noexcept override { count(); }
        void on_attempt_failed(const sluice::StageResult<>&, const sluice::StageError&) noexcept override { count(); }
        void on_finished(const sluice::StageResult<>&, Outcome, Event) noexcept override { count(); }
    };
    asio::thread_pool pool(2);
    Calls calls(asio::make_strand(pool));
    const auto model = [&pool](int value) -> asio::awaitable<int> {
        const auto home = co_await asio::this_coro::executor;
        co_await asio::post(pool, asio::deferred);
        co_await asio::post(home, asio::deferred);
        if (value == 0) {
            throw std::runtime_error("no");
        }
        co_return value;
    };
    sluice::Stage stage(calls.strand, "s", 2, model, sluice::StageOptions{.observer = &calls});
    start(calls.strand, [&] {
        for (int i = 0; i != 10; ++i) {
            asio::co_spawn(calls.strand, stage.run(std::to_string(i), i % 2),
                           [](const std::exception_ptr&, const auto&) {});
        }
    });
    pool.join();
    CHECK(calls.all == 5 * 3 + 5 * 4);
    CHECK(calls.elsewhere == 0);
}

// The coroutines that began to wait for their cancellation, and those that were cancelled, on any thread.
struct Counts {
    std::atomic<int> begun = 0;
    std::atomic<int> ended = 0;
};

// Calls `begun`, then waits until it is cancelled.
template <class Function>
asio::awaitable<int> until_cancelled(Counts& counts, Function begun) {
    ++counts.begun;
    begun();
    try {
        co_await test::wait_forever();
    } catch (const boost::system::system_error&) {
        ++counts.ended;
        throw;
    }
    co_return 0;
}

TEST_CASE("threads: run_on returns to each strand with the result from the pool", "[threads][run_on]") {
    asio::thread_pool pool(4);
    std::atomic<int> wrong = 0;
    std::atomic<int> sum = 0;
    for (int i = 0; i != 8; ++i) {
        const auto strand = asio::make_strand(pool);
        start(strand, [&, strand] {
            const auto caller = [&, strand]() -> asio::awaitable<void> {
                for (int n = 0; n != 100; ++n) {
                    const auto plain = [&, strand, n] {
                        wrong += strand.running_in_this_thread();
                        return std::to_string(n);
                    };
                    const auto coroutine = [&, n]() -> asio::awaitable<int> {
                        co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
                        co_return n;
                    };
                    sum += std::stoi(co_await sluice::run_on(pool.get_executor(), plain));
                    wrong += !strand.running_in_this_thread();
                    sum += co_await sluice::run_on(pool.get_executor(), coroutine);
                    wrong += !strand.running_in_this_thread();
                    try {
                        co_await sluice::run_on(pool.get_executor(), [] { throw std::runtime_error("no"); });
                    } catch (const std::runtime_error&) {
                        ++sum;
                    }
                    wrong += !strand.running_in_this_thread();
                }
            };
            asio::co_spawn(strand, caller, asio::detached);
        });
    }
    pool.join();
    CHECK(wrong == 0);
    CHECK(sum == 8 * (2 * 99 * 50 + 100));
}

TEST_CASE("threads: a stage's timeout ends work that is suspended on a pool", "[threads][run_on]") {
    asio::thread_pool pool(4);
    const auto strand = asio::make_strand(pool);
    Counts counts;
    int timed_out = 0;
    const auto model = [&](int) {
        return sluice::run_on(pool.get_executor(), [&] { return until_cancelled(counts, [] {}); });
    };
    sluice::Stage stage(strand, "model", 8, model, sluice::StageOptions{.timeout = std::chrono::microseconds(200)});
    start(strand, [&] {
        for (int worker = 0; worker != 16; ++worker) {
            asio::co_spawn(
                strand,
                [&]() -> asio::awaitable<void> {
                    for (int i = 0; i != 25; ++i) {
                        const auto result = co_await stage.run("q", 1);
                        timed_out += result.error.message().starts_with("timed out");
                    }
                },
                asio::detached);
        }
    });
    pool.join();
    CHECK(timed_out == 16 * 25);
    CHECK(counts.ended == counts.begun);  // the others were cancelled before they began
    CHECK(stage.endpoint().active() == 0);
}

TEST_CASE("threads: work on a pool may end at the same time as its stage's timeout", "[threads][run_on]") {
    asio::thread_pool pool(4);
    const auto strand = asio::make_strand(pool);
    std::atomic<int> calls = 0;
    int accounted_for = 0;
    const auto model = [&](int) {
        return sluice::run_on(pool.get_executor(), [&]() -> asio::awaitable<int> {
            asio::steady_timer timer(co_await asio::this_coro::executor, std::chrono::microseconds(++calls * 37 % 400));
            co_await timer.async_wait(asio::deferred);
            co_return 1;
        });
    };
    sluice::Stage stage(strand, "model", 8, model, sluice::StageOptions{.timeout = std::chrono::microseconds(200)});
    start(strand, [&] {
        for (int worker = 0; worker != 8; ++worker) {
            asio::co_spawn(
                strand,
                [&]() -> asio::awaitable<void> {
                    for (int i = 0; i != 100; ++i) {
                        const auto result = co_await stage.run("q", 1);
                        accounted_for += result.success || result.error.message().starts_with("timed out");
                    }
                },
                asio::detached);
        }
    });
    pool.join();
    CHECK(accounted_for == 800);
    CHECK(stage.endpoint().active() == 0);
}

TEST_CASE("threads: work that is suspended on a pool is cancelled from outside", "[threads][run_on][cancellation]") {
    constexpr std::array types{asio::cancellation_type::terminal, asio::cancellation_type::partial,
                               asio::cancellation_type::total};
    asio::thread_pool pool(4);
    const auto strand = asio::make_strand(pool);
    Counts counts;
    std::vector<Task<int>> tasks;
    start(strand, [&] {
        for (std::size_t i = 0; i != 600; ++i) {
            tasks.emplace_back(strand, [&, i] {
                return sluice::run_on(pool.get_executor(), [&, i] {
                    return until_cancelled(
                        counts, [&, i] { asio::post(strand, [&, i] { tasks[i].cancel(types[i % types.size()]); }); });
                });
            });
        }
    });
    pool.join();
    int aborted = 0;
    for (const auto& task : tasks) {
        aborted += task.aborted();
    }
    CHECK(aborted == 600);
    CHECK(counts.begun == 600);
    CHECK(counts.ended == 600);
}

TEST_CASE("threads: cancelling a function that blocks waits for its end", "[threads][run_on][cancellation]") {
    asio::io_context context;
    asio::thread_pool pool(2);
    int returned_early = 0;
    int returned = 0;
    Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (int round = 0; round != 200; ++round) {
            std::atomic<bool> ends = false;
            std::binary_semaphore was_cancelled(0);
            std::optional<Task<int>> call;
            call.emplace(context.get_executor(), [&] {
                return sluice::run_on(pool.get_executor(), [&] {
                    asio::post(context, [&] {
                        call->cancel();
                        was_cancelled.release();
                    });
                    was_cancelled.acquire();
                    ends = true;
                    return 7;
                });
            });
            while (!call->done()) {
                co_await asio::post(context, asio::deferred);
                returned_early += call->done() && !ends;
            }
            returned += call->value() == 7;
        }
    });
    context.run();
    CHECK(task.succeeded());
    CHECK(returned == 200);
    CHECK(returned_early == 0);
}

TEST_CASE("threads: work that is cancelled before a busy pool begins it is never called",
          "[threads][run_on][cancellation]") {
    asio::io_context context;
    asio::thread_pool pool(1);
    std::atomic<int> called = 0;
    int aborted = 0;
    Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (int round = 0; round != 100; ++round) {
            std::binary_semaphore gate(0);
            asio::post(pool, [&] { gate.acquire(); });
            co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
                int waiting = 0;
                for (int i = 0; i != 10; ++i) {
                    group.spawn([&, i]() -> asio::awaitable<void> {
                        ++waiting;
                        try {
                            if (i % 2 == 0) {
                                co_await sluice::run_on(pool.get_executor(), [&] { ++called; });
                            } else {
                                co_await sluice::run_on(pool.get_executor(), [&]() -> asio::awaitable<void> {
                                    ++called;
                                    co_return;
                                });
                            }
                        } catch (const boost::system::system_error& error) {
                            aborted += error.code() == asio::error::operation_aborted;
                            throw;
                        }
                    });
                }
                while (waiting != 10) {
                    co_await asio::post(context, asio::deferred);
                }
                group.cancel();
                gate.release();
            });
        }
    });
    context.run();
    CHECK(task.succeeded());
    CHECK(called == 0);
    CHECK(aborted == 1000);
}

TEST_CASE("threads: a pool may be destroyed before the context of the coroutines that wait for it",
          "[threads][run_on][shutdown]") {
    for (int round = 0; round != 50; ++round) {
        const auto alive = std::make_shared<int>();
        asio::io_context context;
        std::optional<asio::thread_pool> pool(std::in_place, 2);
        Counts counts;
        std::vector<Task<int>> tasks;
        for (int i = 0; i != 8; ++i) {
            tasks.emplace_back(context.get_executor(), [&] {
                auto work = [&, alive] { return until_cancelled(counts, [] {}); };
                return sluice::run_on(pool->get_executor(), std::move(work));
            });
        }
        context.poll();
        for (int i = 0; i != 4; ++i) {
            tasks[static_cast<std::size_t>(i)].cancel();
        }
        while (counts.begun < 4) {
            std::this_thread::yield();
        }
        pool.reset();
        context.restart();
        context.run();
        CHECK(alive.use_count() == 1);
        int ended = 0;
        for (const auto& task : tasks) {
            ended += task.ends();
        }
        CHECK(ended <= 4);
    }
}

// Runs a pipeline on `executor`, and sessions on strands of a pool that send queries to it and cancel every other one.
template <class Executor>
void check_sessions(asio::thread_pool& pool, const Executor& executor) {
    Counts stuck;
    CountingSink sink;
    // A text other than "go" is the number of a session; the query then stays in the model until it is cancelled.
    std::vector<std::function<void()>> cancel_session(8);
    const auto model = [&](const std::string& text) -> asio::awaitable<int> {
        co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
        if (text != "go") {
            co_await until_cancelled(stuck, [&] { cancel_session.at(std::stoul(text))(); });
        }
        co_return 1;
    };
    const auto generate = [](int, int, const std::string&) -> asio::awaitable<int> { co_return 2; };
    sluice::InferencePipeline pipeline(asio::any_io_executor(executor), model, model, generate,
                                       sluice::StageLimits{3, 2, 1}, sink);
    std::atomic<int> completed = 0;
    std::atomic<int> aborted = 0;
    std::atomic<int> elsewhere = 0;
    std::vector<std::promise<void>> ended(8);
    for (std::size_t number = 0; number != 8; ++number) {
        const auto home = asio::make_strand(pool);
        start(home, [&, home, number] {
            const auto session = [&, home, number]() -> asio::awaitable<void> {
                for (int i = 0; i != 60; ++i) {
                    const bool is_stuck = i % 2 == 0;
                    const sluice::Query query("q", is_stuck ? std::to_string(number) : "go");
                    sluice::TaskGroup* running = nullptr;
                    if (is_stuck) {
                        cancel_session[number] = [&, home] { asio::post(home, [&] { running->cancel(); }); };
                    }
                    co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
                        running = &group;
                        try {
                            const auto result =
                                co_await sluice::run_on(executor, [&] { return pipeline.process_one(query); });
                            completed += result.response == 2;
                        } catch (const boost::system::system_error& error) {
                            aborted += error.code() == asio::error::operation_aborted;
                        }
                    });
                    elsewhere += !home.running_in_this_thread();
                }
            };
            asio::co_spawn(home, session, [&, number](const std::exception_ptr&) { ended[number].set_value(); });
        });
    }
    for (auto& end : ended) {
        end.get_future().wait();
    }
    CHECK(completed == 8 * 30);
    CHECK(aborted == 8 * 30);
    CHECK(elsewhere == 0);
    CHECK(stuck.begun == 8 * 30);
    CHECK(stuck.ended == 8 * 30);
    CHECK(sink.count == 0);
    asio::post(executor, asio::use_future([&] { CHECK(no_slot_taken(pipeline)); })).get();
}

TEST_CASE("threads: sessions on a pool cancel their queries in a pipeline on another executor",
          "[threads][run_on][cancellation]") {
    asio::thread_pool pool(4);
    SECTION("the pipeline's executor is a strand of the pool") { check_sessions(pool, asio::make_strand(pool)); }
    SECTION("it is a strand inside an any_io_executor") {
        check_sessions(pool, asio::any_io_executor(asio::make_strand(pool)));
    }
    SECTION("it is the executor of a context that one thread runs") {
        asio::io_context context(1);
        auto work = asio::make_work_guard(context);
        std::thread thread([&] { context.run(); });
        check_sessions(pool, context.get_executor());
        work.reset();
        thread.join();
    }
    pool.join();
}

TEST_CASE("threads: of the points of one fuse, on whichever threads, exactly one throws", "[threads][fuse]") {
    asio::thread_pool pool(4);
    const sluice::testing::Fuse fuse(200);
    std::atomic<int> thrown = 0;
    for (int i = 0; i != 400; ++i) {
        asio::post(pool, [fuse, &thrown] {
            try {
                fuse.point();
            } catch (const sluice::testing::InjectedError&) {
                ++thrown;
            }
        });
    }
    pool.join();
    CHECK(thrown == 1);
    CHECK(fuse.blown());
}

TEST_CASE("threads: sessions time out while a pipeline on another executor answers",
          "[threads][run_on][cancellation]") {
    asio::thread_pool pool(4);
    const auto executor = asio::make_strand(pool);
    CountingSink sink;
    std::atomic<int> calls = 0;
    const auto model = [&](const std::string&) -> asio::awaitable<int> {
        asio::steady_timer timer(co_await asio::this_coro::executor, std::chrono::microseconds(++calls * 37 % 200));
        co_await timer.async_wait(asio::deferred);
        co_return 1;
    };
    const auto generate = [&](int, int, const std::string& text) { return model(text); };
    sluice::InferencePipeline pipeline(asio::any_io_executor(executor), model, model, generate,
                                       sluice::StageLimits{4, 4, 4}, sink);
    std::atomic<int> accounted_for = 0;
    for (int i = 0; i != 8; ++i) {
        const auto home = asio::make_strand(pool);
        start(home, [&, home] {
            const auto session = [&]() -> asio::awaitable<void> {
                const sluice::Query query("q", "text");
                for (int n = 0; n != 50; ++n) {
                    try {
                        co_await sluice::with_timeout(std::chrono::microseconds(300), [&] {
                            return sluice::run_on(executor, [&] { return pipeline.process_one(query); });
                        });
                        ++accounted_for;
                    } catch (const sluice::TimeoutError&) {
                        ++accounted_for;
                    }
                }
            };
            asio::co_spawn(home, session, asio::detached);
        });
    }
    pool.join();
    CHECK(accounted_for == 8 * 50);
    CHECK(sink.count == 0);
    CHECK(no_slot_taken(pipeline));
}

struct Figures {
    std::optional<int> left;
    std::optional<int> right;
    std::optional<int> sum;
};

// Saves on the pool, one at a time for a query.
struct FiguresSink {
    asio::thread_pool& pool;
    std::size_t letters = 0;
    std::atomic<std::size_t> saved = 0;
    std::promise<void> saved_a_hundred;

    explicit FiguresSink(asio::thread_pool& its_pool) : pool(its_pool) {}

    void put(const sluice::Query&, const sluice::StageResult<>&, const Figures& figures) {
        letters += figures.right.has_value();
    }
    asio::awaitable<void, Strand> save(const sluice::Query&, const Figures&) {
        return sluice::run_on<Strand>(pool.get_executor(), [this] {
            if (++saved == 100) {
                saved_a_hundred.set_value();
            }
        });
    }
};

// The coroutines of a route that are bound to the strand, whose models work on the pool. Every seventh query fails.
struct FiguresRoute {
    struct Parse {
        asio::thread_pool* pool;

        asio::awaitable<int, Strand> operator()(const std::string& text, const int& fails_every) const {
            return sluice::run_on<Strand>(pool->get_executor(), [&text, &fails_every] {
                const int number = std::stoi(text);
                if (number % fails_every == 0) {
                    throw std::runtime_error("model");
                }
                return number;
            });
        }
    };
    struct Add {
        asio::awaitable<int, Strand> operator()(const int& left, const int& right) const { return add(left, right); }
        static asio::awaitable<int, Strand> add(int left, int right) { co_return left + right; }
    };

    Strand strand;
    sluice::Stage<Parse> parse;
    sluice::Stage<Add> add;
    std::size_t* elsewhere;

    FiguresRoute(asio::thread_pool& pool, Strand home, std::size_t& runs_elsewhere)
        : strand(std::move(home)),
          parse(strand, "parse", 6, Parse{&pool}),
          add(strand, "add", 1, Add{}),
          elsewhere(&runs_elsewhere) {}

    asio::awaitable<void, Strand> operator()(sluice::Run<Figures, Strand>& run) const {
        const std::string& text = run.query().text;
        co_await run.all(run.step(&Figures::left, parse, text, 7), run.step(&Figures::right, parse, text, 1'000'000));
        *elsewhere += strand.running_in_this_thread() ? 0 : 1;
        co_await run.step(&Figures::sum, add, &Figures::left, &Figures::right);
    }
};

using FiguresPipeline = sluice::Pipeline<FiguresRoute, FiguresSink>;

TEST_CASE("threads: a pipeline of any shape on a strand of two threads, with models and saves on the pool",
          "[threads][stream]") {
    asio::thread_pool pool(2);
    const Strand strand = asio::make_strand(pool);
    FiguresSink sink(pool);
    std::size_t elsewhere = 0;
    FiguresPipeline pipeline(strand, FiguresRoute(pool, strand, elsewhere), sink, 8);
    std::size_t completed = 0;
    std::size_t mapped = 0;
    std::exception_ptr ended = std::make_exception_ptr(0);
    const auto work = [&]() -> asio::awaitable<void, Strand> {
        for (const auto& result : co_await pipeline.process_batch(numbered(700))) {
            completed += result.completed && result.record.sum == 2 * std::stoi(result.query.text);
        }
        auto stream = pipeline.process_stream(numbered(700));
        while (const auto item = co_await stream.next()) {
            completed += item->result.completed;
        }
        const auto length = [&pool](const std::string& text) {
            return sluice::run_on<Strand>(pool.get_executor(), [&text] { return text.size(); });
        };
        const std::vector<std::string> texts(100, "four");
        for (const std::size_t size : co_await sluice::map_batch(texts, 8, length)) {
            mapped += size;
        }
        const auto report = co_await pipeline.drain(std::chrono::minutes(1));
        completed += report.completed + report.dead + report.cancelled + report.unfinished;
    };
    start(strand, [&] { asio::co_spawn(strand, work(), [&](const std::exception_ptr& error) { ended = error; }); });
    pool.join();
    CHECK_FALSE(ended);
    CHECK(completed == 2 * 600);
    CHECK(mapped == 4 * 100);
    CHECK(sink.letters == 2 * 100);
    CHECK(sink.saved > 2 * 700);
    CHECK(elsewhere == 0);
}

TEST_CASE("threads: a pipeline is drained through its strand while its models work on the pool", "[threads][drain]") {
    using Results = std::vector<sluice::RecordResult<Figures>>;
    asio::thread_pool pool(2);
    const Strand strand = asio::make_strand(pool);
    FiguresSink sink(pool);
    std::size_t elsewhere = 0;
    FiguresPipeline pipeline(strand, FiguresRoute(pool, strand, elsewhere), sink, 8);
    std::future<Results> batch;
    std::future<Results> rest;
    std::future<sluice::DrainReport<Figures>> report;
    start(strand, [&] { batch = asio::co_spawn(strand, pipeline.process_batch(numbered(2'000)), asio::use_future); });
    sink.saved_a_hundred.get_future().wait();
    start(strand, [&] {
        report = asio::co_spawn(strand, pipeline.drain(std::chrono::milliseconds(1)), asio::use_future);
        rest = asio::co_spawn(strand, pipeline.process_batch(numbered(1)), asio::use_future);
    });
    pool.join();
    const Results results = batch.get();
    std::size_t unfinished = 0;
    for (const auto& result : results) {
        unfinished += result.unfinished;
        CHECK(result.completed + result.unfinished + (result.failure() != nullptr) == 1);
    }
    const auto drained = report.get();
    CHECK(results.size() == 2'000);
    CHECK(unfinished >= drained.unfinished);
    CHECK(drained.completed + drained.dead + drained.unfinished <= 8);
    CHECK(drained.cancelled == 0);
    CHECK(drained.checkpoints.empty());
    CHECK_THROWS_AS(rest.get(), sluice::Draining);
    CHECK(elsewhere == 0);
}

}  // namespace
