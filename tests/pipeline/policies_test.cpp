// SPDX-License-Identifier: BSL-1.0
// What the policies of endpoints, fallbacks, timeouts and drains do together.
#include <sluice/metrics/metrics.hpp>
#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/observer.hpp>
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/fallback_error.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <thread>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::EndpointOptions;
using sluice::ModelError;
using sluice::Query;
using sluice::Rate;
using sluice::Reason;
using sluice::StageOptions;
using sluice::Verdict;
using sluice::WhileOpen;
using std::chrono::nanoseconds;
using test::Task;
using test::timed;
using test::VirtualTimer;

// No templates: see RetryDecision.
ModelError relay_too_long() { return ModelError("too long", {.kind = Verdict::invalid}, 400, "context_length"); }
ModelError relay_invalid() { return ModelError("refused", {.kind = Verdict::invalid}, 400); }

struct RelayRecord {
    std::optional<std::string> text;
    std::optional<std::string> other;
};
using RelayRun = sluice::Run<RelayRecord>;
using RelayResult = sluice::RecordResult<RelayRecord>;

// What a call does, by its number; after how long, if it returns.
using RelayScript = std::function<void(std::size_t call)>;

struct RelayMember {
    std::string name;
    RelayScript script = [](std::size_t) {};
    nanoseconds takes = 1s;
    std::size_t calls = 0;
    int running = 0;
};

struct RelayModel {
    RelayMember* member;

    asio::awaitable<std::string> operator()(const std::string& text) const { return call(*member, text); }

    static asio::awaitable<std::string> call(RelayMember& member, std::string text) {
        const test::Live running(member.running);
        const std::size_t number = member.calls++;
        co_await test::sleep(member.takes);
        member.script(number);
        co_return member.name + ' ' + text;
    }
};

RelayScript relay_fails_with(const std::exception_ptr& error) {
    return [error](std::size_t) { std::rethrow_exception(error); };
}
RelayScript relay_fails(std::string message = "down") {
    return relay_fails_with(std::make_exception_ptr(std::runtime_error(std::move(message))));
}

using RelayStage = sluice::Stage<RelayModel, VirtualTimer>;
using RelayFallback =
    decltype(sluice::Fallback("", std::declval<RelayStage>(), std::declval<RelayStage>(), std::declval<RelayStage>()));

struct RelaySink {
    std::vector<std::string> letters;
    std::vector<std::string> saved;

    void put(const Query&, const sluice::StageResult<>& why, const RelayRecord&) {
        letters.push_back(why.stage.str() + ": " + why.error.message());
    }
    void save(const Query&, const RelayRecord& record) { saved.push_back(record.text.value_or("nothing")); }
};

// The events, each as the first letters of its name and the stage.
struct RelayObserver : sluice::Observer {
    std::vector<std::string> events;

    void on_queued(const sluice::StageResult<>& run) noexcept override { add("queued", run); }
    void on_started(const sluice::StageResult<>& run) noexcept override { add("started", run); }
    void on_attempt_failed(const sluice::StageResult<>& run, const sluice::StageError&) noexcept override {
        add("failed", run);
    }
    void on_retry(const sluice::StageResult<>& run, const Verdict&, nanoseconds) noexcept override {
        add("retry", run);
    }
    void on_finished(const sluice::StageResult<>& run, Outcome outcome, Event last) noexcept override {
        add(outcome == Outcome::succeeded ? "succeeded" : outcome == Outcome::failed ? "ended" : "cancelled", run);
        if (outcome == Outcome::failed && last == Event::started) {
            events.back() += " after a value";
        }
        if (on_end) {
            on_end();
        }
    }
    void on_dead_letter(const Query&, const sluice::StageResult<>& run, const sluice::StageError&) noexcept override {
        add("dead", run);
    }

    void add(const char* what, const sluice::StageResult<>& run) { events.push_back(run.stage.str() + ' ' + what); }

    std::function<void()> on_end;
};

// The options of three members.
struct RelaySetup {
    std::array<EndpointOptions, 3> endpoints{EndpointOptions{.limit = 9}, {.limit = 9}, {.limit = 9}};
    std::array<StageOptions, 3> stages{};
    std::ptrdiff_t window = 99;
    sluice::Observer* observer = nullptr;
};

// Three stages behind each other, a pipeline with one step, and queries through it. The context is destroyed first.
class Relay {
public:
    RelayMember gpt{"gpt"};
    RelayMember claude{"claude"};
    RelayMember local{"local"};
    RelaySink sink;
    asio::io_context context{1};
    std::vector<sluice::Endpoint<VirtualTimer>> endpoints;
    std::vector<RelayStage> stages;
    std::optional<RelayFallback> fallback;
    std::function<asio::awaitable<void>(Relay&, RelayRun&)> route = &Relay::one_step;
    std::deque<Task<RelayResult>> tasks;
    std::vector<nanoseconds> ended;
    std::optional<sluice::Pipeline<std::function<asio::awaitable<void>(RelayRun&)>, RelaySink, VirtualTimer>> pipeline;

    explicit Relay(const RelaySetup& setup = {}) {
        std::size_t i = 0;
        for (RelayMember* const member : {&gpt, &claude, &local}) {
            endpoints.emplace_back(timed(context.get_executor()), member->name, setup.endpoints.at(i));
            stages.emplace_back(endpoints.back(), member->name, RelayModel{member}, setup.stages.at(i));
            ++i;
        }
        fallback.emplace("answer", stages.at(0), stages.at(1), stages.at(2));
        pipeline.emplace(
            timed(context.get_executor()), [this](RelayRun& run) { return route(*this, run); }, sink, setup.window,
            sluice::PipelineOptions{.observer = setup.observer});
    }

    std::size_t start(std::optional<nanoseconds> timeout = std::nullopt) {
        const std::size_t index = tasks.size();
        tasks.emplace_back(context.get_executor(), [this, timeout, index] { return go(*this, timeout, index); });
        ended.emplace_back();
        return index;
    }

    // Runs all, and expects no slot to be held, and nobody to wait.
    void run() {
        sluice::testing::run(context);
        CHECK(is_idle());
    }
    void run_until(nanoseconds time) { test::run_until(context, time); }

    // Runs one query, and returns what has become of it.
    std::string run_one(std::optional<nanoseconds> timeout = std::nullopt) {
        const std::size_t index = start(timeout);
        run();
        return story(index);
    }

    bool is_idle() const {
        bool idle = gpt.running + claude.running + local.running == 0;
        for (const auto& endpoint : endpoints) {
            idle = idle && endpoint.active() == 0 && endpoint.waiting() == 0;
        }
        return idle;
    }

    const RelayResult& result(std::size_t index) { return tasks.at(index).value(); }

    // Each stage run, with its reason, and the value or the name of the dead letter.
    std::string story(std::size_t index) {
        const RelayResult& it = result(index);
        std::string text;
        for (const auto& stage_run : it.stage_results) {
            CHECK(stage_run.success == (stage_run.reason == Reason::none && !stage_run.error));
            text +=
                stage_run.stage.str() + (stage_run.success ? "" : "(" + std::string(to_string(stage_run.reason)) + ")");
            text += ", ";
        }
        if (it.failure()) {
            CHECK_FALSE(it.completed);
            CHECK_FALSE(it.record.text.has_value());
            return text + "dead: " + it.failure()->stage.str();
        }
        return text + (it.unfinished ? "unfinished" : it.record.text.value_or("nothing"));
    }
    std::string error_of(std::size_t index) {
        return result(index).failure() ? result(index).failure()->error.message() : "";
    }

    static asio::awaitable<void> one_step(Relay& relay, RelayRun& run) {
        co_await run.step(&RelayRecord::text, *relay.fallback, run.query().text);
    }

private:
    static asio::awaitable<RelayResult> go(Relay& relay, std::optional<nanoseconds> timeout, std::size_t index) {
        Query query("id", "text");
        query.timeout = timeout;
        RelayResult result = co_await relay.pipeline->process_one(query);
        relay.ended.at(index) = test::now(relay.context);
        co_return std::move(result);
    }
};

// A breaker that the first failure opens, for 10 s.
constexpr sluice::BreakerOptions relay_breaker{.minimum_calls = 1, .open_time = 10s, .jitter = 0, .probes = 1};

}  // namespace

namespace {
struct CostlyCall {
    int* calls;
    int* costs;
    asio::awaitable<std::string> operator()(const std::string& text) const { return call(calls, text); }
    sluice::Cost cost(const std::string&) const {
        if (++*costs > 1) {
            throw std::runtime_error("cannot estimate");
        }
        return {};
    }
    static asio::awaitable<std::string> call(int* calls, std::string text) {
        ++*calls;
        co_await test::sleep(1s);
        throw relay_invalid();
        co_return text;
    }
};
bool retry_always(const std::exception_ptr&) { return true; }
}  // namespace

namespace {
bool slow_predicate(const std::exception_ptr&) {
    std::this_thread::sleep_for(100ms);
    return true;
}
struct InvalidCall {
    asio::awaitable<std::string> operator()(std::string) const {
        throw relay_too_long();
        co_return "";
    }
};
struct QuickCall {
    asio::awaitable<std::string> operator()(std::string text) const {
        asio::steady_timer timer(co_await asio::this_coro::executor, 5ms);
        co_await timer.async_wait(asio::deferred);
        co_return text;
    }
};
}  // namespace

namespace {
struct SiblingCall {
    asio::steady_timer* timer;
    asio::awaitable<std::string> operator()(std::string text) const { return call(timer, std::move(text)); }
    static asio::awaitable<std::string> call(asio::steady_timer* timer, std::string text) {
        boost::system::error_code ignored;
        co_await timer->async_wait(asio::redirect_error(asio::deferred, ignored));
        co_return text;
    }
};
}  // namespace

TEST_CASE("policies: the last error is that of the estimate, which has no verdict", "[policies][cost]") {
    asio::io_context context{1};
    int calls = 0;
    int costs = 0;
    RelayMember other{"other"};
    StageOptions options;
    options.retry = test::retries(3, 0s, &retry_always);
    const sluice::Stage first(timed(context.get_executor()), "first", 1, CostlyCall{&calls, &costs}, options);
    const sluice::Stage second(timed(context.get_executor()), "second", 1, RelayModel{&other});
    const sluice::Fallback both("both", first, second);
    Task<sluice::StageResult<std::string>> run(context.get_executor(), [&] { return both.run("7", std::string("t")); });
    sluice::testing::run(context);
    CHECK(run.value().success);
    CHECK(run.value().stage == "second");
}

TEST_CASE("policies: the time of also_after() is not that of the next member", "[policies][clock]") {
    asio::io_context context{1};
    StageOptions options;
    options.timeout = 50ms;
    const sluice::Stage first(context.get_executor(), "first", 1, InvalidCall());
    const sluice::Stage second(context.get_executor(), "second", 1, QuickCall(), options);
    const auto both = sluice::Fallback("both", first, second).also_after(&slow_predicate);
    Task<sluice::StageResult<std::string>> run(context.get_executor(), [&] { return both.run("7", std::string("t")); });
    context.run();
    CHECK(run.value().success);
    CHECK(run.value().stage == "second");
    CHECK(run.value().latency < 50ms);
    CHECK(run.value().error.message() == "");
}
TEST_CASE("policies: nor is that of a verdict function", "[policies][clock]") {
    asio::io_context context{1};
    StageOptions options;
    options.timeout = 50ms;
    sluice::Endpoint endpoint(context.get_executor(), "e",
                              EndpointOptions{.limit = 1, .verdict = [](const std::exception_ptr&) {
                                                  std::this_thread::sleep_for(100ms);
                                                  return Verdict{};
                                              }});
    const sluice::Stage first(endpoint, "first", InvalidCall());
    const sluice::Stage second(context.get_executor(), "second", 1, QuickCall(), options);
    const sluice::Fallback both("both", first, second);
    Task<sluice::StageResult<std::string>> run(context.get_executor(), [&] { return both.run("7", std::string("t")); });
    context.run();
    CHECK(run.value().success);
    CHECK(run.value().latency < 50ms);
}
TEST_CASE("policies: a value that is not accepted is never saved, nor seen by a step beside it",
          "[policies][portable]") {
    RelaySetup setup;
    const bool by_stage = GENERATE(true, false);
    if (by_stage) {
        setup.stages.at(0).timeout = 1h;
    }
    Relay relay(setup);
    asio::steady_timer timer(relay.context, asio::steady_timer::time_point::max());
    relay.gpt.script = [&](std::size_t) { timer.cancel(); };  // the step beside it ends in the next handler
    const sluice::Stage sibling(timed(relay.context.get_executor()), "sibling", 9, SiblingCall{&timer});
    const auto checked = relay.fallback->accept([](const std::string& value) { return !value.starts_with("gpt"); });
    relay.route = [&](Relay&, RelayRun& run) -> asio::awaitable<void> {
        co_await run.all(run.step(&RelayRecord::text, checked, run.query().text),
                         run.step(&RelayRecord::other, sibling, run.query().text));
    };
    relay.start(by_stage ? std::nullopt : std::optional<nanoseconds>(1h));
    relay.run();
    CHECK(relay.result(0).completed);
    for (const std::string& saved : relay.sink.saved) {
        CHECK(saved != "gpt text");
    }
}

TEST_CASE("policies: an endpoint that is closed in a backoff keeps the real error", "[policies][closed]") {
    RelaySetup setup;
    setup.stages.at(0).retry = test::retries(1, 10s);
    Relay relay(setup);
    relay.gpt.script = relay_fails("gpt is busy");
    relay.claude.script = relay.local.script = relay_fails("down");
    const std::size_t query = relay.start();
    relay.run_until(5s);
    relay.endpoints.at(0).close();
    relay.run();
    CHECK(relay.error_of(query).find("gpt is busy") != std::string::npos);
}

TEST_CASE("policies: the members of one endpoint, one budget, one stage twice", "[policies][shared]") {
    asio::io_context context{1};
    RelayMember member{"m"};
    member.script = [](std::size_t call) {
        if (call < 3) throw std::runtime_error("down");
    };
    sluice::Endpoint endpoint(
        timed(context.get_executor()), "e",
        EndpointOptions{.limit = 1, .retry_budget = sluice::RetryBudget{.ratio = 0, .min_retries = 1}});
    StageOptions options;
    options.retry = test::retries(1, 1s);
    const sluice::Stage stage(endpoint, "m", RelayModel{&member}, options);
    const sluice::Fallback twice("twice", stage, stage);
    Task<sluice::StageResult<std::string>> run(context.get_executor(),
                                               [&] { return twice.run("7", std::string("t")); });
    sluice::testing::run(context);
    CHECK(run.value().success);
    CHECK(run.value().attempts == 2);
    CHECK(member.calls == 4);
    CHECK(endpoint.retries() == 0);
}

TEST_CASE("policies: a member that fails as the timeout is over ends the fallback", "[policies][tie]") {
    Relay relay;
    relay.gpt.takes = 5s;
    SECTION("by an error") {
        relay.gpt.script = relay_fails("busy");
        CHECK(relay.run_one(5s) == "gpt(model), dead: gpt");
    }
    SECTION("by a value that is not accepted") {
        const auto checked = relay.fallback->accept([](const std::string&) { return false; });
        relay.route = [&checked](Relay&, RelayRun& run) -> asio::awaitable<void> {
            co_await run.step(&RelayRecord::text, checked, run.query().text);
        };
        CHECK(relay.run_one(5s) == "gpt(not_accepted), dead: gpt");
    }
    CHECK(relay.claude.calls == 0);
}

TEST_CASE("policies: a query that is late before its next step is one in a drain, too", "[policies][drain][late]") {
    const bool drains = GENERATE(false, true);
    CAPTURE(drains);
    Relay relay;
    std::optional<Task<sluice::DrainReport<RelayRecord>>> report;
    relay.gpt.takes = 5s;
    const auto start = [&] {
        relay.start(5s);
        relay.run_until(1s);
        if (drains) {
            report.emplace(relay.context.get_executor(), [&] { return relay.pipeline->drain(1h); });
        }
        relay.run();
    };
    SECTION("a step after a step") {  // a value that comes as the timeout is over is kept
        relay.route = [](Relay& own, RelayRun& run) -> asio::awaitable<void> {
            co_await run.step(&RelayRecord::other, own.stages.at(0), run.query().text);
            co_await run.step(&RelayRecord::text, own.stages.at(1), run.query().text);
        };
        start();
        CHECK(relay.story(0) == "gpt, claude(deadline), dead: claude");
    }
    SECTION("a member after a member") {
        relay.gpt.script = relay_fails("busy");
        start();
        CHECK(relay.story(0) == "gpt(model), dead: gpt");
    }
    SECTION("taken in late") {
        relay.gpt.takes = 1s;
        relay.route = [](Relay& own, RelayRun& run) -> asio::awaitable<void> {
            co_await test::sleep(6s);
            co_await run.step(&RelayRecord::text, own.stages.at(0), run.query().text);
        };
        start();
        CHECK(relay.story(0) == "gpt(deadline), dead: gpt");
    }
}
