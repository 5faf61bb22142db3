// SPDX-License-Identifier: BSL-1.0
// The documented concurrency model: one strand over a thread pool, models that work on the pool. Run it under TSan.
#include <sluice/sluice.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/thread_pool.hpp>
#include <boost/asio/use_future.hpp>
#include <catch2/catch_test_macros.hpp>

#include <atomic>
#include <cstddef>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

// Works on a thread of the pool, then comes back to the coroutine's strand.
struct PooledModel {
    asio::thread_pool& pool;
    std::atomic<int>& running;
    std::atomic<int>& most;
    int fails_every;

    asio::awaitable<int> operator()(const std::string& text) const {
        const int number = std::stoi(text);
        co_await asio::co_spawn(
            pool,
            [this]() -> asio::awaitable<void> {
                const int now = ++running;
                for (int seen = most; seen < now && !most.compare_exchange_weak(seen, now);) {
                }
                --running;
                co_return;
            },
            asio::deferred);
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

// Starts a coroutine from within its strand. (Not from this thread: g++'s TSan does not understand the fence by which
// Asio lets go of a strand inside of an any_io_executor, if two threads do so without other synchronisation.)
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

TEST_CASE("threads: cancelled from another thread, through the strand", "[threads][cancellation]") {
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
    CHECK(pipeline.classify().semaphore().active() == 0);
    CHECK(pipeline.extract().semaphore().active() == 0);
    CHECK(pipeline.generate().semaphore().active() == 0);
}

TEST_CASE("threads: a coroutine may be destroyed after all else of its thread", "[threads][shutdown]") {
    using Acquisition = asio::awaitable<sluice::Slot>;
    asio::io_context context;
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    std::thread([&semaphore] {
        thread_local std::optional<Acquisition> late;  // what the thread comes to need later is destroyed before it
        late = semaphore.acquire();
        const Acquisition early = semaphore.acquire();
    }).join();
    CHECK(semaphore.active() == 0);  // and nothing leaks
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

TEST_CASE("threads: primitives of several strands of one pool come and go at once", "[threads]") {
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

}  // namespace
