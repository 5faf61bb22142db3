// SPDX-License-Identifier: BSL-1.0
// What the policies promise at moments that are rare: user code that takes time, drains, cancels or resets where it is
// called, drains that are shortened, contexts that are gone, fields that are filled meanwhile.
#include <sluice/observer.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_observer.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/models.hpp"
#include "support/relay.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::BreakerStatus;
using sluice::EndpointOptions;
using sluice::Query;
using sluice::Rate;
using sluice::Reason;
using sluice::StageOptions;
using std::chrono::nanoseconds;
using test::Relay;
using test::RelayRecord;
using test::RelayRun;
using test::RelaySink;
using test::Task;
using test::timed;
using test::VirtualTime;
using test::VirtualTimer;
using RareResult = sluice::StageResult<std::string>;

// A call of 5 ms, before whose estimate something happens.
struct EstimatedCall {
    std::function<void()>* before;
    int* calls;
    sluice::Cost estimate = {};

    asio::awaitable<std::string> operator()(const std::string& text) const { return call(calls, text); }
    sluice::Cost cost(const std::string&) const {
        (*before)();
        return estimate;
    }
    static asio::awaitable<std::string> call(int* calls, std::string text) {
        ++*calls;
        co_await test::sleep(5ms);
        co_return text;
    }
};

struct EstimatedScene {
    std::function<void()> before = [] {};
    int calls = 0;
    RelaySink sink;
    asio::io_context context{1};
    sluice::Endpoint<VirtualTimer> endpoint;
    sluice::Stage<EstimatedCall, VirtualTimer> stage;
    std::optional<sluice::Pipeline<std::function<asio::awaitable<void>(RelayRun&)>, RelaySink, VirtualTimer>> pipeline;
    std::deque<Task<RareResult>> runs;

    explicit EstimatedScene(const EndpointOptions& options, const StageOptions& of_stage = {},
                            sluice::Cost estimate = {})
        : endpoint(timed(context.get_executor()), "e", options),
          stage(endpoint, "s", EstimatedCall{&before, &calls, estimate}, of_stage) {
        pipeline.emplace(timed(context.get_executor()), [this](RelayRun& run) { return route(*this, run); }, sink, 9);
    }
    void start() {
        runs.emplace_back(context.get_executor(), [copy = stage] { return copy.run("id", std::string("text")); });
    }

    static asio::awaitable<void> route(EstimatedScene& scene, RelayRun& run) {
        co_await run.step(&RelayRecord::text, scene.stage, run.query().text);
    }
    static asio::awaitable<test::RelayResult> process(EstimatedScene& scene, std::optional<nanoseconds> timeout) {
        Query query("id", "text");
        query.timeout = timeout;
        return scene.pipeline->process_one(std::move(query));
    }
};

struct BreakerEvents : sluice::EndpointObserver {
    std::function<void(BreakerStatus::State)> then;
    void on_breaker(const sluice::SharedString&, BreakerStatus::State, const BreakerStatus& after) noexcept override {
        then(after.state);
    }
};

// A clock that goes on by a microsecond when it is read for the nth time.
struct TickingTimer : VirtualTimer {
    using VirtualTimer::VirtualTimer;

    static inline int reads_until_tick = 0;

    static time_point now(asio::execution_context& context) {
        if (--reads_until_tick == 0) {
            VirtualTime::of(context).advance_by(1us);
        }
        return VirtualTimer::now(context);
    }
    template <class Executor>
        requires asio::execution::is_executor<Executor>::value
    static time_point now(const Executor& executor) {
        return now(static_cast<asio::execution_context&>(asio::query(executor, asio::execution::context)));
    }
};

asio::awaitable<std::string> answer_later(std::string text) {
    co_await test::sleep(1s);
    co_return text;
}

struct QueuedObserver : sluice::Observer {
    std::function<void()> then = [] {};
    void on_queued(const sluice::StageResult<>&) noexcept override { then(); }
};

// The second one comes after a second, and may take another.
struct TwoQueries {
    std::size_t n = 0;
    asio::awaitable<std::optional<sluice::Query>> next() {
        if (n == 2) {
            co_return std::nullopt;
        }
        if (n == 1) {
            co_await test::sleep(1s);
        }
        sluice::Query query = test::make_query(n);
        if (n == 1) {
            query.timeout = 1s;
        }
        ++n;
        co_return query;
    }
};

struct TimedSink {
    asio::io_context* context = nullptr;
    std::vector<nanoseconds> times;
    void put(const sluice::Query&, const sluice::StageResult<>&) { times.push_back(test::now(*context)); }
};

}  // namespace

TEST_CASE("policies: the time of cost() is not that of the attempt", "[policies][cost]") {
    EstimatedScene scene({.limit = 1}, {.timeout = 50ms});
    scene.before = [&] { VirtualTime::of(scene.context).advance_by(100ms); };
    scene.start();
    CHECK(sluice::testing::run(scene.context) == 105ms);
    CHECK(scene.runs.at(0).value().success);
    CHECK(scene.runs.at(0).value().latency == 5ms);
}

TEST_CASE("policies: a query that is late after cost() begins no attempt", "[policies][cost]") {
    EstimatedScene scene({.limit = 1, .requests = Rate(1, 1h, 1)});
    scene.before = [&] { VirtualTime::of(scene.context).advance_by(100ms); };
    Task<test::RelayResult> late(scene.context.get_executor(), [&] { return EstimatedScene::process(scene, 50ms); });
    sluice::testing::run(scene.context);
    REQUIRE(late.succeeded());
    CHECK(scene.calls == 0);
    REQUIRE(late.value().failure());
    CHECK(late.value().failure()->reason == Reason::deadline);
    CHECK(late.value().failure()->attempts == 0);
    scene.before = [] {};
    scene.start();
    CHECK(sluice::testing::run(scene.context) == 5ms);  // it has taken nothing from the rate
}

TEST_CASE("policies: cost() may begin a drain", "[policies][cost][drain]") {
    EstimatedScene scene({.limit = 1});
    scene.endpoint.pause(1h);
    std::optional<sluice::DrainReport<RelayRecord>> report;
    bool begun = false;
    scene.before = [&] {
        if (std::exchange(begun, true)) {
            return;
        }
        asio::co_spawn(
            scene.context, [&] { return scene.pipeline->drain(1s); },
            [&](const std::exception_ptr&, sluice::DrainReport<RelayRecord> its) { report = std::move(its); });
    };
    Task<test::RelayResult> query(scene.context.get_executor(),
                                  [&] { return EstimatedScene::process(scene, std::nullopt); });
    CHECK(sluice::testing::run(scene.context) == 0s);
    REQUIRE(query.succeeded());
    CHECK(query.value().unfinished);
    REQUIRE(report);
    CHECK(report->unfinished == 1);
    CHECK(scene.endpoint.waiting() == 0);
}

TEST_CASE("policies: why a call was too costly is known even if the rate has changed since", "[policies][rate]") {
    EstimatedScene scene({.limit = 1}, {}, {.input_tokens = 100});
    scene.start();
    scene.start();
    scene.context.poll();
    REQUIRE(scene.endpoint.waiting() == 1);
    scene.endpoint.set_rate(Rate::input_tokens, Rate(10, 1s));
    scene.endpoint.set_rate(Rate::input_tokens, Rate(1000, 1s));
    sluice::testing::run(scene.context);
    CHECK(scene.runs.at(1).value().reason == Reason::too_costly);
    CHECK(scene.runs.at(1).value().error.message().find("100 input tokens") != std::string::npos);
}

TEST_CASE("policies: a query that is cancelled as it enters the line has paid nothing", "[policies][cancel]") {
    QueuedObserver observer;
    asio::io_context context{1};
    const sluice::Endpoint endpoint(timed(context.get_executor()), "e",
                                    EndpointOptions{.limit = 1, .requests = Rate(1, 1h, 1)});
    const sluice::Stage stage(endpoint, "s", &answer_later, StageOptions{.observer = &observer});
    std::deque<Task<RareResult>> tasks;
    const auto run = [&]() -> asio::awaitable<RareResult> {
        co_await test::sleep(1s);
        co_return co_await stage.run("id", std::string("text"));
    };
    observer.then = [&] { tasks.front().cancel(); };
    tasks.emplace_back(context.get_executor(), run);
    sluice::testing::run(context);
    CHECK(tasks.front().aborted());
    observer.then = [] {};
    tasks.emplace_back(context.get_executor(), run);
    CHECK(sluice::testing::run(context) == 2s);
    CHECK(tasks.back().value().success);
}

TEST_CASE("policies: when the breaker is told to have closed, what may begin has its slot", "[policies][observer]") {
    BreakerEvents events;
    bool down = true;
    asio::io_context context{1};
    std::optional<sluice::Endpoint<VirtualTimer>> endpoint;
    int told = 0;
    events.then = [&](BreakerStatus::State state) {
        if (state == BreakerStatus::closed) {
            ++told;
            CHECK(endpoint->waiting() == 1);  // the third has the slot
            CHECK(endpoint->active() == 1);
        }
    };
    endpoint.emplace(timed(context.get_executor()), "e",
                     EndpointOptions{.limit = 1, .breaker = test::relay_breaker, .observer = &events});
    const auto model = [&](std::string text) -> asio::awaitable<std::string> {
        co_await test::sleep(1s);
        if (down) throw std::runtime_error("down");
        co_return text;
    };
    const sluice::Stage stage(*endpoint, "s", model);
    std::deque<Task<RareResult>> tasks;
    for (int i = 0; i != 3; ++i) {
        tasks.emplace_back(context.get_executor(), [&] { return stage.run("id", std::string("text")); });
    }
    test::run_until(context, 5s);
    down = false;
    sluice::testing::run(context);
    CHECK(told == 1);
    for (auto& task : tasks) {
        CHECK(task.value().success);
    }
}

TEST_CASE("policies: a drain that is shortened may end later on the clock of a line, since that is read later",
          "[policies][drain]") {
    RelaySink sink;
    asio::io_context context{1};
    TickingTimer::reads_until_tick = 0;
    const auto executor = sluice::timed_by<TickingTimer>(context.get_executor());
    sluice::Endpoint endpoint(executor, "e", EndpointOptions{.limit = 1, .requests = Rate(1, 24h, 1)});
    const sluice::Stage stage(endpoint, "s", &answer_later);
    const auto route = [&stage](RelayRun& run) -> asio::awaitable<void> {
        co_await run.step(&RelayRecord::text, stage, run.query().text);
    };
    sluice::Pipeline pipeline(executor, route, sink, 9);
    std::deque<Task<test::RelayResult>> tasks;
    for (int i = 0; i != 2; ++i) {
        tasks.emplace_back(context.get_executor(), [&] { return pipeline.process_one(Query("id", "text")); });
    }
    test::run_until(context, 2s);
    REQUIRE(endpoint.waiting() == 1);
    const int reads = GENERATE(range(1, 9));
    CAPTURE(reads);
    Task<sluice::DrainReport<RelayRecord>> first(context.get_executor(), [&] { return pipeline.drain(10s); });
    context.restart();
    context.poll();
    TickingTimer::reads_until_tick = reads;
    Task<sluice::DrainReport<RelayRecord>> second(context.get_executor(), [&] { return pipeline.drain(10s - 1ns); });
    context.restart();
    context.poll();
    endpoint.pause(1h);
    sluice::testing::run(context);
    REQUIRE(tasks.back().succeeded());
    CHECK(tasks.back().value().unfinished);
    CHECK(sink.letters.empty());
}

TEST_CASE("policies: the context of a member's endpoint is gone, and the query has a timeout", "[policies][fallback]") {
    RelaySink sink;
    test::RelayMember gpt{"gpt"};
    test::RelayMember claude{"claude"};
    asio::io_context context{1};
    std::optional<asio::io_context> other{1};
    const sluice::Stage first(timed(other->get_executor()), "gpt", 1, test::RelayModel{&gpt});
    other.reset();
    const sluice::Stage second(timed(context.get_executor()), "claude", 1, test::RelayModel{&claude});
    const bool is_last = GENERATE(false, true);
    const sluice::Fallback both("both", is_last ? second : first, is_last ? first : second);
    if (is_last) {
        claude.script = test::relay_fails();
    }
    const auto route = [&both](RelayRun& run) -> asio::awaitable<void> {
        co_await run.step(&RelayRecord::text, both, run.query().text);
    };
    sluice::Pipeline pipeline(timed(context.get_executor()), route, sink, 9);
    Task<test::RelayResult> task(context.get_executor(), [&] {
        Query query("id", "text");
        query.timeout = 1h;
        return pipeline.process_one(std::move(query));
    });
    sluice::testing::run(context);
    REQUIRE(task.succeeded());
    if (is_last) {
        REQUIRE(task.value().failure());
        CHECK(task.value().failure()->reason == Reason::fallback);
    } else {
        CHECK(task.value().completed);
        CHECK(task.value().record.text == "claude text");
    }
}

TEST_CASE("policies: a breaker that somebody resets whenever it opens spares a query only so often",
          "[policies][breaker]") {
    BreakerEvents events;
    asio::io_context context{1};
    std::optional<sluice::Endpoint<VirtualTimer>> endpoint;
    const bool by_force = GENERATE(false, true);
    events.then = [&](BreakerStatus::State state) {
        if (state == BreakerStatus::open) {
            if (by_force) {
                endpoint->breaker().force_closed();
            }
            endpoint->breaker().reset();
        }
    };
    endpoint.emplace(timed(context.get_executor()), "e",
                     EndpointOptions{.limit = 1, .breaker = test::relay_breaker, .observer = &events});
    int calls = 0;
    const auto model = [&](std::string text) -> asio::awaitable<std::string> {
        co_await test::sleep(1s);
        if (++calls <= 50) throw std::runtime_error("down");
        co_return text;
    };
    const sluice::Stage stage(*endpoint, "s", model);
    Task<RareResult> task(context.get_executor(), [&] { return stage.run("id", std::string("text")); });
    sluice::testing::run(context);
    CHECK_FALSE(task.value().success);
    CHECK(calls == 4);  // spared in three outages
}

TEST_CASE("policies: a step whose field is filled while it waits in the line pays its cost", "[policies][cost][rate]") {
    EstimatedScene scene({.limit = 1, .input_tokens = Rate(100, 1h, 100)}, {}, {.input_tokens = 60});
    test::RelayMember occupant{.name = "occupant", .takes = 2s};
    test::RelayMember writer{.name = "writer", .takes = 1s};
    const sluice::Stage occupies(scene.endpoint, "occupant", test::RelayModel{&occupant});
    const sluice::Stage writes(timed(scene.context.get_executor()), "writer", 9, test::RelayModel{&writer});
    const auto route = [&](RelayRun& run) -> asio::awaitable<void> {
        co_await run.all(run.step(&RelayRecord::text, writes, run.query().text),
                         run.step(&RelayRecord::other, scene.stage, &RelayRecord::text));
    };
    sluice::Pipeline pipeline(timed(scene.context.get_executor()), route, scene.sink, 9);
    Task<RareResult> first(scene.context.get_executor(), [&] { return occupies.run("0", std::string("text")); });
    scene.context.poll();
    std::deque<Task<test::RelayResult>> tasks;
    for (int i = 0; i != 2; ++i) {
        tasks.emplace_back(scene.context.get_executor(), [&] { return pipeline.process_one(Query("id", "text")); });
    }
    test::run_until(scene.context, 3s);
    CHECK(scene.calls == 1);  // the other waits for 20 tokens
    sluice::testing::run(scene.context);
    CHECK(scene.calls == 2);
    for (auto& task : tasks) {
        CHECK(task.value().completed);
    }
}

TEST_CASE("policies: in a drain, a query to whom the grace leaves a nanosecond too little does not begin",
          "[policies][shed][drain]") {
    EstimatedScene scene({.limit = 1, .shed_late = true});
    for (int i = 0; i != 20; ++i) {
        scene.start();
    }
    sluice::testing::run(scene.context);
    REQUIRE(scene.calls == 20);
    const nanoseconds too_little = GENERATE(0ns, 1ns, 2ns);
    scene.start();
    scene.context.restart();
    scene.context.poll();
    Task<test::RelayResult> query(scene.context.get_executor(),
                                  [&] { return EstimatedScene::process(scene, std::nullopt); });
    Task<sluice::DrainReport<RelayRecord>> drain(scene.context.get_executor(),
                                                 [&] { return scene.pipeline->drain(10ms - too_little); });
    sluice::testing::run(scene.context);
    CHECK(scene.calls == (too_little == 0ns ? 22 : 21));
    if (too_little != 0ns) {
        CHECK(query.value().unfinished);
    }
}

TEST_CASE("policies: no wait for a place lasts longer than the timeout of the query", "[policies][place]") {
    test::Rig<TimedSink> rig;
    rig.dead_letters.context = &rig.context;
    rig.classify.latency = 10s;
    const std::ptrdiff_t away = GENERATE(1, 0);
    CAPTURE(away);
    auto pipeline = rig.pipeline({1, 1, 1}, {.max_in_backoff = away});
    test::Task<std::vector<decltype(pipeline)::Result>> task(rig.context.get_executor(),
                                                             [&] { return pipeline.process_batch(TwoQueries()); });
    test::run_until(rig.context, 500ms);
    pipeline.extract().endpoint().set_limit(0);
    pipeline.generate().endpoint().set_limit(0);
    CHECK(pipeline.window() == 1);
    test::run_until(rig.context, 20s);
    pipeline.extract().endpoint().set_limit(1);
    pipeline.generate().endpoint().set_limit(1);
    sluice::testing::run(rig.context);
    REQUIRE(rig.dead_letters.times.size() == 1);
    CHECK(rig.dead_letters.times.front() == 2s);
    CHECK(task.succeeded());
}
