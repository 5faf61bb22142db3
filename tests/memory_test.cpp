// SPDX-License-Identifier: BSL-1.0
// Memory is exhausted at each allocation in turn. What runs then ends with std::bad_alloc, or goes on without it: a
// query whose stage run or route had none is a dead letter that says so. Nothing hangs, and nothing is left behind.
#include <sluice/metrics/metrics.hpp>
#include <sluice/observer.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/map.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/fallback_error.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/barrier.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timeout.hpp>

#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdlib>
#include <exception>
#include <limits>
#include <list>
#include <new>
#include <optional>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

// Counts the allocations while it is armed, and lets the n-th fail.
struct Memory {
    long until_failure = 0;  // 0 if it is not armed
    bool failed = false;

    void arm(long n) {
        until_failure = n;
        failed = false;
    }
    void disarm() { until_failure = 0; }

    void* allocate(std::size_t size, std::size_t alignment) {
        if (until_failure != 0 && --until_failure == 0) {
            failed = true;
            throw std::bad_alloc();
        }
        const std::size_t rounded = (size + alignment - 1) / alignment * alignment;
        if (void* const memory = std::aligned_alloc(alignment, rounded == 0 ? alignment : rounded)) {
            return memory;
        }
        throw std::bad_alloc();
    }
} memory;

}  // namespace

void* operator new(std::size_t size) { return memory.allocate(size, __STDCPP_DEFAULT_NEW_ALIGNMENT__); }
void* operator new(std::size_t size, std::align_val_t alignment) {
    return memory.allocate(size, static_cast<std::size_t>(alignment));
}
void operator delete(void* block) noexcept { std::free(block); }
void operator delete(void* block, std::size_t) noexcept { std::free(block); }
void operator delete(void* block, std::align_val_t) noexcept { std::free(block); }
void operator delete(void* block, std::size_t, std::align_val_t) noexcept { std::free(block); }

namespace {

using namespace std::chrono_literals;
using sluice::Query;
using sluice::StageOptions;
using test::Task;
using test::timed;
using test::VirtualTimer;

struct Pair {
    std::optional<std::string> left;
    std::optional<std::string> right;
};

using PairRun = sluice::Run<Pair>;
using PairResult = sluice::RecordResult<Pair>;

// What the models do.
struct Script {
    int running = 0;
    int peak = 0;
    int to_fail = 0;         // the first calls, of the models that may
    std::string fails_once;  // the text of a query
    std::string hangs;
};

struct Echo {
    Script& script;
    bool may_fail = false;

    asio::awaitable<std::string> operator()(const std::string& text) const { return run(script, text, may_fail); }

private:
    static asio::awaitable<std::string> run(Script& script, std::string text, bool may_fail) {
        script.peak = std::max(script.peak, ++script.running);
        const test::AtExit at_exit([&] { --script.running; });
        co_await test::sleep(text == script.hangs ? 1h : 1ms);
        if (text == script.fails_once) {
            script.fails_once.clear();
            throw std::bad_alloc();
        }
        if (may_fail && script.to_fail > 0) {
            --script.to_fail;
            throw std::bad_alloc();
        }
        co_return text;
    }
};

struct Letters {
    int put_away = 0;

    void put(const Query&, const sluice::StageResult<>&) { ++put_away; }
};

using EchoStage = sluice::Stage<Echo, VirtualTimer>;

struct InTurn {
    EchoStage left, right;

    asio::awaitable<void> operator()(PairRun& run) const { return go(*this, run); }
    static asio::awaitable<void> go(const InTurn& steps, PairRun& run) {
        co_await run.step(&Pair::left, steps.left, run.query().text);
        co_await run.step(&Pair::right, steps.right, run.query().text);
    }
};

struct SideBySide {
    EchoStage left, right;

    asio::awaitable<void> operator()(PairRun& run) const { return go(*this, run); }
    static asio::awaitable<void> go(const SideBySide& steps, PairRun& run) {
        co_await run.all(run.step(&Pair::left, steps.left, run.query().text),
                         run.step(&Pair::right, steps.right, run.query().text));
    }
};

// Takes a step later that had no memory.
struct Tolerant {
    EchoStage left, right;

    asio::awaitable<void> operator()(PairRun& run) const { return go(*this, run); }
    static asio::awaitable<void> go(const Tolerant& steps, PairRun& run) {
        try {
            co_await run.step(&Pair::left, steps.left, run.query().text);
        } catch (const std::bad_alloc&) {
        }
        for (int i = 0; i != 3; ++i) {
            run->right.reset();
            co_await run.step(&Pair::right, steps.right, run.query().text);
        }
        co_await run.step(&Pair::left, steps.left, run.query().text);
    }
};

// Steps through a fallback, of which the second accepts nothing of the first member.
struct Backed {
    EchoStage left, right;

    asio::awaitable<void> operator()(PairRun& run) const { return go(*this, run); }
    static asio::awaitable<void> go(const Backed& steps, PairRun& run) {
        const sluice::Fallback either("either", steps.left, steps.right);
        co_await run.step(&Pair::left, either, run.query().text);
        int asked = 0;
        const auto second = either.accept([&](const std::string&) { return ++asked == 2; });
        co_await run.step(&Pair::right, second, run.query().text);
    }
};

// Whether an error is a failure for lack of memory, or that of a fallback after one.
bool is_lack_of_memory(const sluice::StageError& error) {
    try {
        std::rethrow_exception(error.exception());
    } catch (const std::bad_alloc&) {
        return true;
    } catch (const sluice::FallbackError& failed) {
        return std::ranges::any_of(failed.causes(), [](const auto& cause) { return is_lack_of_memory(cause.error); });
    } catch (...) {
        return false;
    }
}

// Whether a query has completed, or was cut short by a drain, or is a dead letter since there was no memory.
bool is_accounted_for(const PairResult& result, bool is_drained) {
    if (result.completed) {
        return result.record.left && result.record.right;
    }
    if (result.unfinished) {
        return is_drained;
    }
    return result.failure() && is_lack_of_memory(result.failure()->error);
}

// What is there before the memory is exhausted.
template <class Route>
struct Mill {
    Script script;
    Letters letters;
    asio::io_context context{1};
    EchoStage left;
    EchoStage right;
    sluice::Pipeline<Route, Letters, VirtualTimer> pipeline;
    bool repeats;  // attempts that fail
    std::vector<Query> queries = test::make_queries(3);
    std::vector<std::string> texts{"a", "b", "c"};
    std::vector<PairResult> results;
    std::optional<sluice::DrainReport<Pair>> report;

    explicit Mill(const StageOptions& options)
        : left(timed(context.get_executor()), "left", 1, Echo{script, true}, options),
          right(timed(context.get_executor()), "right", 2, Echo{script, std::is_same_v<Route, SideBySide>}, options),
          pipeline(timed(context.get_executor()), Route{left, right}, letters, 2),
          repeats(options.retry.max_retries != 0) {
        // The queue of the timers has enough memory from now on: what a test adds to Asio is not tested here.
        std::list<VirtualTimer> timers;
        for (int i = 0; i != 16; ++i) {
            timers.emplace_back(context.get_executor()).expires_after(1ms);
            timers.back().async_wait([](auto) {});
        }
        sluice::testing::run(context);
        results.reserve(16);
    }

    bool pipeline_drains() {
        try {
            const auto stream = pipeline.process_stream(queries);
            return false;
        } catch (const sluice::Draining&) {
            return true;
        }
    }

    asio::awaitable<void> one() { results.push_back(co_await pipeline.process_one(queries.front())); }

    asio::awaitable<void> batch() {
        for (auto& result : co_await pipeline.process_batch(queries)) {
            results.push_back(std::move(result));
        }
    }

    // Two queries fail, and leave their places in the window to others.
    asio::awaitable<void> batch_with_backoffs() {
        script.to_fail = 2;
        return batch();
    }

    asio::awaitable<void> stream() {
        auto stream = pipeline.process_stream(queries);
        while (auto item = co_await stream.next()) {
            results.push_back(std::move(item->result));
        }
    }

    // Asks again after a failure.
    asio::awaitable<void> patient_stream() {
        auto stream = pipeline.process_stream(queries);
        for (bool ended = false; !ended;) {
            try {
                auto item = co_await stream.next();
                ended = !item;
                if (item) {
                    results.push_back(std::move(item->result));
                }
            } catch (const std::bad_alloc&) {
            }
        }
        co_await stream.close();
        report = co_await pipeline.drain(1h);
    }

    // Closes the stream after a failure. The drain ends while there still is a stream.
    asio::awaitable<void> closed_stream() {
        auto stream = pipeline.process_stream(queries);
        bool failed = false;
        try {
            while (auto item = co_await stream.next()) {
                results.push_back(std::move(item->result));
            }
        } catch (const std::bad_alloc&) {
            failed = true;
        }
        memory.disarm();
        if (failed) {
            co_await stream.close();
        }
        report = co_await pipeline.drain(1h);
    }

    // Takes the second result while no worker is idle: the one that returned it has taken the place of a query in
    // backoff.
    asio::awaitable<void> slow_stream() {
        queries = test::make_queries(5);
        script.fails_once = repeats ? "t2" : "";
        auto stream = pipeline.process_stream(queries);
        while (auto item = co_await stream.next()) {
            results.push_back(std::move(item->result));
            co_await test::sleep(1500us);
        }
    }

    // Drains again after a failure, with a query that would outlast the grace.
    asio::awaitable<void> patient_drain() {
        script.hangs = "t0";
        const auto body = [this](sluice::TaskGroup& group) { return spawn_one(*this, group); };
        co_await sluice::with_task_group(body);
    }
    static asio::awaitable<void> spawn_one(Mill& mill, sluice::TaskGroup& group) {
        group.spawn([&] { return mill.one(); });
        co_await test::sleep(1ms);
        while (!mill.report) {
            try {
                mill.report = co_await mill.pipeline.drain(1500us);
            } catch (const std::bad_alloc&) {
            }
        }
    }

    asio::awaitable<void> drain() {
        const auto body = [this](sluice::TaskGroup& group) { return spawn_all(*this, group); };
        co_await sluice::with_task_group(body);
    }
    static asio::awaitable<void> spawn_all(Mill& mill, sluice::TaskGroup& group) {
        group.spawn([&] { return mill.one(); });
        group.spawn([&] { return mill.batch(); });
        group.spawn([&] { return mill.stream(); });
        co_await test::sleep(1ms);
        mill.report = co_await mill.pipeline.drain(1500us);
    }

    asio::awaitable<void> map() {
        const Echo echo{script};
        co_await sluice::map_batch(texts, 2, echo);
    }

    asio::awaitable<void> timeout() {
        co_await sluice::with_timeout<VirtualTimer>(10ms, [] { return test::sleep(1ms); });
    }

    asio::awaitable<void> barrier() {
        sluice::Barrier barrier(co_await asio::this_coro::executor, 2);
        const auto body = [&](sluice::TaskGroup& group) { return arrive_twice(barrier, group); };
        co_await sluice::with_task_group(body);
    }
    static asio::awaitable<void> arrive_twice(sluice::Barrier& barrier, sluice::TaskGroup& group) {
        group.spawn([&]() -> asio::awaitable<void> { co_await barrier.arrive_and_wait(); });
        group.spawn([&]() -> asio::awaitable<void> { co_await barrier.arrive_and_wait(); });
        co_return;
    }
};

template <class Route>
void fail_each_allocation(asio::awaitable<void> (Mill<Route>::*operation)()) {
    StageOptions options;
    if (GENERATE(false, true)) {
        options.retry = test::retries(1, 1ms);
        if (GENERATE(false, true)) {
            options.timeout = 1s;
        }
    }
    long n = 0;
    do {
        INFO("allocation " << ++n);
        Mill<Route> mill(options);
        Task<> task(mill.context.get_executor(), [&] { return (mill.*operation)(); });
        memory.arm(n);
        CHECK(sluice::testing::run(mill.context) < 1min);
        memory.disarm();
        REQUIRE(task.done());
        CHECK((task.succeeded() || task.template failed_with<std::bad_alloc>()));
        CHECK((memory.failed || task.succeeded()));
        for (const auto& result : mill.results) {
            CHECK(is_accounted_for(result, mill.pipeline_drains()));
        }
        CHECK(mill.script.running == 0);
        CHECK(mill.left.endpoint().active() + mill.right.endpoint().active() == 0);
        CHECK(mill.left.endpoint().waiting() + mill.right.endpoint().waiting() == 0);
        CHECK((mill.script.peak <= 2 || !std::is_same_v<Route, Tolerant>));  // the window
        if (!mill.pipeline_drains()) {
            mill.script = {};
            Task<> next(mill.context.get_executor(), [&] { return mill.batch(); });
            sluice::testing::run(mill.context);
            CHECK(next.succeeded());
        }
    } while (memory.failed);
    CHECK(n > 3);
}

}  // namespace

TEST_CASE("memory: a query runs out of it at each allocation", "[memory]") { fail_each_allocation(&Mill<InTurn>::one); }

TEST_CASE("memory: a query whose steps run side by side runs out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<SideBySide>::one);
}

TEST_CASE("memory: a query that goes through a fallback runs out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<Backed>::one);
}

TEST_CASE("memory: a batch that goes through fallbacks runs out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<Backed>::batch_with_backoffs);
}

TEST_CASE("memory: a batch runs out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<InTurn>::batch);
}

TEST_CASE("memory: a batch whose steps run side by side runs out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<SideBySide>::batch);
}

TEST_CASE("memory: a batch whose queries leave their places in a backoff runs out of it at each allocation",
          "[memory]") {
    fail_each_allocation(&Mill<Tolerant>::batch_with_backoffs);
}

TEST_CASE("memory: a batch whose steps side by side leave their place in a backoff runs out of it at each allocation",
          "[memory]") {
    fail_each_allocation(&Mill<SideBySide>::batch_with_backoffs);
}

TEST_CASE("memory: a stream runs out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<InTurn>::stream);
}

TEST_CASE("memory: a stream that runs out of it at each allocation is asked again", "[memory]") {
    fail_each_allocation(&Mill<InTurn>::patient_stream);
}

TEST_CASE("memory: a stream that runs out of it at each allocation is closed", "[memory]") {
    fail_each_allocation(&Mill<InTurn>::closed_stream);
}

TEST_CASE("memory: a stream with a slow consumer runs out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<InTurn>::slow_stream);
}

TEST_CASE("memory: a drain that runs out of it at each allocation is asked for again", "[memory]") {
    fail_each_allocation(&Mill<InTurn>::patient_drain);
}

TEST_CASE("memory: operations and their drain run out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<InTurn>::drain);
}

TEST_CASE("memory: map_batch runs out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<InTurn>::map);
}

TEST_CASE("memory: a timeout runs out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<InTurn>::timeout);
}

TEST_CASE("memory: an event of Metrics allocates nothing, once there was one of each kind", "[memory][metrics]") {
    using Event = sluice::Observer::Event;
    constexpr long many = std::numeric_limits<long>::max();
    sluice::Metrics metrics;
    const sluice::StageError error(std::make_exception_ptr(std::bad_alloc()));
    std::list<sluice::StageResult<>> runs;
    for (int i = 0; i != 3; ++i) {
        runs.emplace_back("q", "s");
        runs.back().stage = runs.front().stage;  // as the results of one stage share its name
    }
    const auto run_all = [&] {
        for (auto& run : runs) {
            run.attempts = 0;
            metrics.on_queued(run);
            run.attempts = 1;
            metrics.on_started(run);
            metrics.on_attempt_failed(run, error);
            metrics.on_retry(run, sluice::Verdict(), 1s);
        }
        for (auto& run : runs) {
            metrics.on_queued(run);
            run.attempts = 2;
            metrics.on_started(run);
            metrics.on_attempt_failed(run, error);
            metrics.on_finished(run, sluice::Observer::Outcome::failed, Event::attempt_failed);
            metrics.on_skipped(run.query_id, run.stage, sluice::Reason::breaker_open);
            metrics.on_dead_letter(Query(), run, error);
        }
    };
    run_all();
    memory.arm(many);
    for (int i = 0; i != 100; ++i) {
        run_all();
    }
    const long left = memory.until_failure;
    memory.disarm();
    CHECK(left == many);
    CHECK(metrics.snapshot().stages.front().failed == 303);
}

TEST_CASE("memory: a group whose tasks meet at a barrier runs out of it at each allocation", "[memory]") {
    fail_each_allocation(&Mill<InTurn>::barrier);
}
