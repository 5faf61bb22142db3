// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/retry_budget.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <sluice/observer.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/testing/run.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <functional>
#include <limits>
#include <map>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::EndpointOptions;
using sluice::Query;
using sluice::Reason;
using sluice::RetryBudget;
using sluice::StageOptions;
using test::retries;
using test::Task;
using test::timed;
using test::VirtualTimer;

// No templates: see RetryDecision.
sluice::ModelError budget_throttled(std::optional<std::chrono::nanoseconds> retry_after = std::nullopt) {
    return sluice::ModelError("slow down", {.kind = sluice::Verdict::throttled, .retry_after = retry_after}, 429);
}
sluice::ModelError budget_outage() { return sluice::ModelError("down", {.kind = sluice::Verdict::overloaded}, 503); }
sluice::ModelError budget_invalid() { return sluice::ModelError("no", {.kind = sluice::Verdict::invalid}, 400); }

// What the calls of a desk do: `decide` throws, or does not, after the time that `takes` says. Both are told the text
// and the number of the call for that text, from 1.
struct DeskCalls {
    std::function<void(const std::string&, int)> decide = [](const std::string& text, int call) {
        if (call == 1) {
            throw std::runtime_error("lost " + text);
        }
    };
    std::function<std::chrono::nanoseconds(const std::string&, int)> takes = [](const std::string&, int) {
        return 10ms;
    };
    std::map<std::string, int> count;
};

struct DeskModel {
    DeskCalls* calls;

    asio::awaitable<std::string> operator()(const std::string& text) const { return call(*calls, text); }

    static asio::awaitable<std::string> call(DeskCalls& calls, std::string text) {
        const int number = ++calls.count[text];
        co_await test::sleep(calls.takes(text, number));
        calls.decide(text, number);
        co_return "re " + text;
    }
};

struct Reply {
    std::optional<std::string> text;
};
using ReplyRun = sluice::Run<Reply>;
using ReplyResult = sluice::RecordResult<Reply>;
using DeskStage = sluice::Stage<DeskModel, VirtualTimer>;

// A text that begins with j is for the second.
struct ReplyRoute {
    DeskStage draft;
    DeskStage judge;

    const DeskStage& stage_of(const std::string& text) const { return text.starts_with('j') ? judge : draft; }
    asio::awaitable<void> operator()(ReplyRun& run) const {
        const DeskStage& stage = stage_of(run.query().text);
        co_await run.step(&Reply::text, stage, run.query().text);
    }
};

enum class Through { stage, step };

// Two stages of an endpoint in virtual time, whose options say what one retry is, and queries through them: each by
// itself, or as the step of a pipeline.
class Desk {
public:
    using Pipeline = sluice::Pipeline<ReplyRoute, test::DeadLetters, VirtualTimer>;

    DeskCalls calls;
    std::optional<std::chrono::nanoseconds> query_timeout;
    test::DeadLetters sink;
    asio::io_context context{1};
    sluice::Endpoint<VirtualTimer> endpoint;
    ReplyRoute route;
    Pipeline pipeline;

    explicit Desk(Through through, const EndpointOptions& endpoint_options,
                  const StageOptions& options = {.retry = retries(1, 1s)}, std::ptrdiff_t window = 999)
        : endpoint(timed(context.get_executor()), "gpt", endpoint_options),
          route{DeskStage(endpoint, "draft", DeskModel{&calls}, options),
                DeskStage(endpoint, "judge", DeskModel{&calls}, options)},
          pipeline(timed(context.get_executor()), route, sink, window),
          through_(through) {}

    void start(const std::string& text) {
        tasks_.try_emplace(text, context.get_executor(), [this, text] { return ask(*this, text); });
    }
    void cancel(const std::string& text) { tasks_.at(text).cancel(); }
    void cancel_all() {
        for (auto& [text, task] : tasks_) {
            task.cancel();
        }
    }

    void run_until(std::chrono::nanoseconds time) { test::run_until(context, time); }
    void run() {
        sluice::testing::run(context);
        CHECK(endpoint.retries() == 0);
        CHECK(endpoint.active() == 0);
    }

    bool done(const std::string& text) const { return tasks_.at(text).done(); }
    bool aborted(const std::string& text) const { return tasks_.at(text).aborted(); }
    sluice::StageResult<>& result(const std::string& text) { return tasks_.at(text).value(); }
    bool withheld(const std::string& text) { return result(text).retries_withheld; }

private:
    static asio::awaitable<sluice::StageResult<>> ask(Desk& desk, std::string text) {
        if (desk.through_ == Through::stage) {
            sluice::StageResult<std::string> result = co_await desk.route.stage_of(text).run("id", std::string(text));
            co_return std::move(result);
        }
        Query query("id", text);
        query.timeout = desk.query_timeout;
        ReplyResult result = co_await desk.pipeline.process_one(query);
        co_return std::move(result.stage_results.front());
    }

    Through through_;
    std::map<std::string, Task<sluice::StageResult<>>> tasks_;
};

EndpointOptions with_budget(const RetryBudget& budget, std::ptrdiff_t limit = 9) {
    return {.limit = limit, .retry_budget = budget};
}

constexpr RetryBudget one_retry{.ratio = 0, .min_retries = 1};
constexpr RetryBudget no_retry{.ratio = 0, .min_retries = 0};

}  // namespace

TEST_CASE("retry budget: options that are out of range are named", "[retry][budget]") {
    const auto refusal = [](const RetryBudget& budget) {
        return test::refusal_of([&] { const Desk desk(Through::stage, with_budget(budget)); });
    };
    const double infinity = std::numeric_limits<double>::infinity();
    const std::string rule = "Endpoint 'gpt': retry_budget: ratio must be from 0 to 1, got ";
    CHECK(refusal({.ratio = -0.5}) == rule + "-0.5");
    CHECK(refusal({.ratio = 1.25}) == rule + "1.25");
    CHECK(refusal({.ratio = infinity}) == rule + "inf");
    CHECK(refusal({.ratio = std::numeric_limits<double>::quiet_NaN()}).starts_with(rule));
    CHECK(refusal({.min_retries = -1}) == "Endpoint 'gpt': retry_budget: min_retries must not be negative, got -1");
    CHECK(refusal({.ratio = 0, .min_retries = 0}) == "no error");
    CHECK(refusal({.ratio = 1, .min_retries = std::numeric_limits<int>::max()}) == "no error");
    CHECK(RetryBudget{}.ratio == 0.2);
    CHECK(RetryBudget{}.min_retries == 3);
    CHECK(!EndpointOptions{}.retry_budget);
}

TEST_CASE("retry budget: it is drawn at the decision, by all stages of the endpoint", "[retry][budget]") {
    Desk desk(GENERATE(Through::stage, Through::step), with_budget({.ratio = 0, .min_retries = 2}));
    desk.calls.takes = [](const std::string& text, int) { return text == "c" ? 20ms : 10ms; };
    for (const char* const text : {"a", "j", "c"}) {
        desk.start(text);
    }
    desk.run_until(15ms);
    CHECK(desk.endpoint.retries() == 2);
    CHECK(desk.endpoint.active() == 1);  // no retry runs yet
    desk.run_until(20ms);
    REQUIRE(desk.done("c"));
    CHECK(desk.withheld("c"));
    CHECK(desk.result("c").reason == Reason::model);
    CHECK(desk.result("c").error.message() == "lost c");
    CHECK(desk.result("c").attempts == 1);
    desk.run();
    for (const char* const text : {"a", "j"}) {
        CHECK(desk.result(text).success);
        CHECK(desk.result(text).attempts == 2);
        CHECK(!desk.withheld(text));
    }
}

TEST_CASE("retry budget: a query without a retry keeps its reason", "[retry][budget]") {
    Desk desk(GENERATE(Through::stage, Through::step), with_budget(no_retry),
              {.timeout = 5ms, .retry = retries(1, 1s)});
    desk.start("a");
    desk.run();
    CHECK(desk.withheld("a"));
    CHECK(desk.result("a").reason == Reason::timeout);
    CHECK_THROWS_AS(std::rethrow_exception(desk.result("a").error.exception()), sluice::TimeoutError);
}

TEST_CASE("retry budget: a retry is returned when its attempt ends", "[retry][budget]") {
    const bool succeeds = GENERATE(true, false);
    Desk desk(GENERATE(Through::stage, Through::step), with_budget(one_retry));
    desk.calls.decide = [succeeds](const std::string& text, int call) {
        if (call == 1 || (text == "a" && !succeeds)) {
            throw std::runtime_error("lost " + text);
        }
    };
    desk.start("a");
    desk.run_until(1s + 10ms);
    desk.start("b");
    desk.run_until(1s + 20ms - 1ns);
    CHECK(desk.endpoint.retries() == 1);  // it runs
    desk.run_until(1s + 20ms);            // both end, a first
    CHECK(desk.result("a").success == succeeds);
    CHECK(!desk.withheld("a"));
    CHECK(desk.endpoint.retries() == 1);
    desk.run();
    CHECK(desk.result("b").success);
}

TEST_CASE("retry budget: a retry that runs or waits for a slot is one", "[retry][budget]") {
    const bool waits = GENERATE(false, true);
    Desk desk(GENERATE(Through::stage, Through::step), with_budget(one_retry));
    desk.calls.takes = [](const std::string& text, int call) {
        return text == "b" ? std::chrono::nanoseconds(3s) : call == 2 ? 5s : 10ms;
    };
    desk.start("a");
    desk.start("b");
    desk.run_until(500ms);
    if (waits) {
        desk.endpoint.pause(5s);
    }
    desk.run_until(3s);
    CHECK(desk.endpoint.waiting() == (waits ? 1 : 0));
    CHECK(desk.endpoint.active() == (waits ? 0 : 1));
    CHECK(desk.endpoint.retries() == 1);
    REQUIRE(desk.done("b"));
    CHECK(desk.withheld("b"));
    desk.run();
    CHECK(desk.result("a").success);
}

TEST_CASE("retry budget: each retry of a query is drawn anew", "[retry][budget]") {
    Desk desk(GENERATE(Through::stage, Through::step), with_budget(one_retry), {.retry = retries(3, 1s)});
    desk.calls.decide = [](const std::string& text, int call) {
        if (call < (text == "a" ? 4 : 2)) {
            throw std::runtime_error("lost " + text);
        }
    };
    desk.start("a");
    desk.run_until(500ms);
    desk.start("b");  // withheld
    desk.run();
    CHECK(desk.result("a").success);
    CHECK(desk.result("a").attempts == 4);
    CHECK(desk.withheld("b"));
    desk.start("c");
    desk.run();
    CHECK(desk.result("c").success);
}

TEST_CASE("retry budget: a retry that is cancelled is returned, wherever it is", "[retry][budget][cancellation]") {
    enum class During { backoff, line, call };
    const During during = GENERATE(During::backoff, During::line, During::call);
    Desk desk(GENERATE(Through::stage, Through::step), with_budget(one_retry));
    desk.start("a");
    if (during == During::line) {
        desk.run_until(500ms);
        desk.endpoint.pause(1h);
    }
    desk.run_until(during == During::backoff ? 500ms : 1s + 15ms);
    CHECK(desk.endpoint.waiting() == (during == During::line ? 1 : 0));
    CHECK(desk.endpoint.active() == (during == During::call ? 1 : 0));
    CHECK(desk.endpoint.retries() == 1);
    desk.cancel("a");
    test::poll(desk.context);
    CHECK(desk.aborted("a"));
    CHECK(desk.endpoint.retries() == 0);
    desk.start("b");
    desk.run();
    CHECK(desk.result("b").success);
}

TEST_CASE("retry budget: a query that will be late, or is, has no retry", "[retry][budget]") {
    const bool too_short = GENERATE(false, true);
    const int budgeted = GENERATE(0, 1);
    Desk desk(Through::step, with_budget({.ratio = 0, .min_retries = budgeted}));
    desk.query_timeout = too_short ? 1s : 2s;
    desk.start("a");
    desk.run_until(500ms);
    CHECK(desk.endpoint.retries() == (too_short ? 0 : static_cast<std::size_t>(budgeted)));
    desk.endpoint.set_limit(0);  // it waits in the line, until it is late
    desk.run();
    CHECK(desk.result("a").attempts == 1);
    CHECK(desk.withheld("a") == (!too_short && budgeted == 0));
    CHECK(desk.result("a").reason == (desk.withheld("a") ? Reason::model : Reason::deadline));
}

TEST_CASE("retry budget: closing the endpoint ends the retries that wait", "[retry][budget]") {
    Desk desk(GENERATE(Through::stage, Through::step), with_budget(one_retry));
    desk.start("a");
    desk.run_until(500ms);
    desk.endpoint.close();
    desk.run();
    CHECK(desk.result("a").reason == Reason::closed);
    CHECK(!desk.withheld("a"));
}

TEST_CASE("retry budget: a backoff that a drain cuts short returns its retry", "[retry][budget][drain]") {
    Desk desk(Through::step, with_budget(one_retry));
    desk.start("a");
    desk.run_until(500ms);
    CHECK(desk.endpoint.retries() == 1);
    Task<sluice::DrainReport<Reply>> report(desk.context.get_executor(), [&] { return desk.pipeline.drain(10ms); });
    test::poll(desk.context);
    CHECK(desk.endpoint.retries() == 0);
    desk.run();
    CHECK(report.value().unfinished == 1);
}

TEST_CASE("retry budget: nothing is drawn if user code throws, or there is no retry", "[retry][budget]") {
    const Through through = GENERATE(Through::stage, Through::step);
    const int budgeted = GENERATE(0, 1);
    EndpointOptions options = with_budget({.ratio = 0, .min_retries = budgeted});
    sluice::RetryPolicy policy = retries(1, 1s);
    bool throws = true;
    SECTION("the predicate throws") {
        policy.retry_if = [](const std::exception_ptr&) -> bool { throw std::logic_error("cannot say"); };
    }
    SECTION("the verdict function throws") {
        options.verdict = [](const std::exception_ptr&) -> sluice::Verdict { throw std::logic_error("cannot say"); };
    }
    SECTION("the predicate refuses") {
        policy.retry_if = [](const std::exception_ptr&) { return false; };
        throws = false;
    }
    SECTION("there is no retry left") {
        policy.max_retries = 0;
        throws = false;
    }
    Desk desk(through, options, {.retry = policy});
    desk.start("a");
    desk.run();
    CHECK(desk.result("a").attempts == 1);
    CHECK(!desk.withheld("a"));
    CHECK(desk.result("a").error.type() == (throws ? "sluice::RetryPredicateError" : "std::runtime_error"));
    CHECK(test::now(desk.context) == 10ms);
}

TEST_CASE("retry budget: an error that is not retried draws nothing", "[retry][budget]") {
    Desk desk(GENERATE(Through::stage, Through::step), with_budget(no_retry));
    desk.calls.decide = [](const std::string&, int) { throw budget_invalid(); };
    desk.start("a");
    desk.run();
    CHECK(!desk.withheld("a"));
}

TEST_CASE("retry budget: throttled tries draw nothing, as long as they count apart", "[retry][budget]") {
    Desk desk(GENERATE(Through::stage, Through::step), with_budget(no_retry),
              {.retry = {.max_retries = 1, .backoff = {.initial = 1s}, .max_throttled = 3}});
    const int throttled = GENERATE(3, 4);
    desk.calls.decide = [&](const std::string&, int call) {
        CHECK(desk.endpoint.retries() == 0);
        if (call <= throttled) {
            throw budget_throttled(call == 2 ? std::optional<std::chrono::nanoseconds>(2s) : std::nullopt);
        }
    };
    desk.start("a");
    desk.run();
    CHECK(desk.result("a").attempts == 4);
    CHECK(desk.result("a").success == (throttled == 3));
    CHECK(desk.withheld("a") == (throttled == 4));  // the last counts as any failure
}

TEST_CASE("retry budget: a retry that is throttled has ended", "[retry][budget]") {
    Desk desk(GENERATE(Through::stage, Through::step), with_budget(one_retry), {.retry = retries(1)});
    desk.calls.takes = [](const std::string& text, int) { return text == "b" ? 50ms : 10ms; };
    desk.calls.decide = [](const std::string& text, int call) {
        if (text == "a" && call == 2) {
            throw budget_throttled(1s);
        }
        if (call == 1) {
            throw std::runtime_error("lost " + text);
        }
    };
    desk.start("a");
    desk.start("b");
    desk.run_until(20ms);
    CHECK(desk.endpoint.waiting() == 1);  // a, behind the pause
    CHECK(desk.endpoint.retries() == 0);
    desk.run();
    CHECK(desk.result("a").success);
    CHECK(desk.result("a").attempts == 3);
    CHECK(desk.result("b").success);
}

TEST_CASE("retry budget: attempts that fail in an outage draw nothing", "[retry][budget][breaker]") {
    EndpointOptions options = with_budget(no_retry, 4);
    options.breaker = sluice::BreakerOptions{.minimum_calls = 1, .open_time = 1s, .jitter = 0, .probes = 1};
    Desk desk(GENERATE(Through::stage, Through::step), options, {.retry = retries(GENERATE(0, 1))});
    int calls = 0;
    desk.calls.decide = [&](const std::string&, int) {
        CHECK(desk.endpoint.retries() == 0);
        if (++calls == 1 || test::now(desk.context) < 5s) {
            throw budget_outage();
        }
    };
    desk.calls.takes = [](const std::string& text, int) { return text == "0" ? 10ms : 20ms; };
    for (int i = 0; i < 8; ++i) {
        desk.start(std::to_string(i));
        if (i == 0) {
            desk.run_until(10ms);
        }
    }
    desk.run();
    for (int i = 0; i < 8; ++i) {
        CHECK(desk.result(std::to_string(i)).success);
        CHECK(!desk.withheld(std::to_string(i)));
    }
}

TEST_CASE("retry budget: it grows with the stage runs in work, and is exact", "[retry][budget]") {
    struct Load {
        double ratio;
        int in_work;
        int retried;
        int min_retries = 0;
    };
    const Load load = GENERATE(Load{0.2, 4, 0}, Load{0.2, 5, 1}, Load{0.2, 9, 1}, Load{0.2, 10, 2}, Load{0.29, 100, 29},
                               Load{0.57, 100, 57}, Load{1, 7, 7}, Load{0.2, 9, 2, 2}, Load{0.2, 20, 4, 2});
    const Through through = GENERATE(Through::stage, Through::step);
    const bool lifted = GENERATE(false, true);
    Desk desk(through, with_budget({.ratio = load.ratio, .min_retries = load.min_retries}, 999));
    if (lifted) {  // the runs are counted, even if nothing else needs to know of them
        desk.endpoint.set_rate(sluice::Rate::requests, sluice::Rate(1, 1h));
        desk.endpoint.set_rate(sluice::Rate::requests, sluice::Rate::unlimited);
    }
    for (int i = 0; i < load.in_work; ++i) {
        desk.start(std::to_string(i));
    }
    desk.run_until(10ms);  // all fail
    CHECK(desk.endpoint.retries() == static_cast<std::size_t>(load.retried));
    desk.run();
    for (int i = 0; i < load.in_work; ++i) {
        const std::string text = std::to_string(i);
        CHECK(desk.result(text).success == (i < load.retried));
        CHECK(desk.withheld(text) == (i >= load.retried));
    }
}

TEST_CASE("retry budget: those that wait for a slot, and those in backoff, are in work", "[retry][budget]") {
    const int in_work = GENERATE(3, 4);
    Desk desk(GENERATE(Through::stage, Through::step), with_budget({.ratio = 0.5, .min_retries = 0}, 1));
    for (int i = 0; i < in_work; ++i) {
        desk.start(std::to_string(i));
    }
    desk.run_until(25ms);  // the first two have failed; the third runs
    CHECK(!desk.done("0"));
    CHECK(desk.done("1") == (in_work == 3));
    desk.run();
    CHECK(desk.result("0").success);
}

TEST_CASE("retry budget: if fewer are in work, retries already decided are still made", "[retry][budget]") {
    Desk desk(GENERATE(Through::stage, Through::step), with_budget({.ratio = 0.5, .min_retries = 0}));
    desk.calls.decide = [](const std::string& text, int call) {
        if (call == 1 && (text == "a" || text == "b")) {
            throw std::runtime_error("lost " + text);
        }
    };
    desk.calls.takes = [](const std::string& text, int) { return text < "c" ? 10ms : 20ms; };
    for (const char* const text : {"a", "b", "c", "d"}) {
        desk.start(text);
    }
    desk.run_until(30ms);
    CHECK(desk.done("c"));
    CHECK(desk.endpoint.retries() == 2);
    desk.run();
    CHECK(desk.result("a").success);
    CHECK(desk.result("b").success);
}

TEST_CASE("retry budget: without one, retries are not counted", "[retry][budget]") {
    Desk desk(GENERATE(Through::stage, Through::step), {.limit = 9});
    for (int i = 0; i < 9; ++i) {
        desk.start(std::to_string(i));
    }
    desk.run_until(500ms);
    CHECK(desk.endpoint.retries() == 0);
    desk.run();
    CHECK(desk.result("8").success);
}

TEST_CASE("retry budget: of a batch nothing is lost, and each that failed is a dead letter with its error",
          "[retry][budget]") {
    Desk desk(Through::step, with_budget({.ratio = 0.25, .min_retries = 1}, 4), {.retry = retries(2, 30ms)}, 16);
    desk.calls.decide = [](const std::string& text, int call) {
        if (call <= static_cast<int>(text.size() + static_cast<unsigned char>(text.back())) % 4) {
            throw std::runtime_error("lost " + text + " " + std::to_string(call));
        }
    };
    const std::vector<Query> queries = test::make_queries(300);
    Task<std::vector<ReplyResult>> batch(desk.context.get_executor(),
                                         [&] { return desk.pipeline.process_batch(queries); });
    desk.run();
    REQUIRE(batch.value().size() == 300);
    std::size_t dead = 0;
    int withheld = 0;
    int retried = 0;
    for (const ReplyResult& result : batch.value()) {
        const sluice::StageResult<>& stage = result.stage_results.front();
        retried += result.completed && stage.attempts > 1 ? 1 : 0;
        CHECK(result.completed == stage.success);
        if (!result.completed) {
            ++dead;
            REQUIRE(result.failure() == &stage);
            CHECK(stage.reason == Reason::model);
            CHECK(stage.error.message() == "lost " + result.query.text + " " + std::to_string(stage.attempts));
            CHECK(stage.retries_withheld == (stage.attempts < 3));
            withheld += stage.retries_withheld ? 1 : 0;
        }
    }
    CHECK(withheld > 10);
    CHECK(retried > 10);
    CHECK(desk.sink.letters.size() == dead);
    CHECK(test::all_different(test::ids(desk.sink.letters)));
    CHECK(withheld == std::ranges::count_if(desk.sink.letters, [](const test::DeadLetter& letter) {
              return letter.reason.retries_withheld;
          }));
}

namespace {

// Five queries with retries, backoffs, timeouts, a throttled call and a full line, of which three fail in the end.
std::unique_ptr<Desk> busy_desk(Through through) {
    auto desk = std::make_unique<Desk>(through, with_budget({.ratio = 0.5, .min_retries = 0}, 2),
                                       StageOptions{.timeout = 25ms, .retry = retries(2, 4ms)});
    desk->calls.takes = [](const std::string& text, int call) { return text == "2" && call == 1 ? 50ms : 10ms; };
    desk->calls.decide = [](const std::string& text, int call) {
        if (text == "3" && call == 1) {
            throw budget_throttled(5ms);
        }
        if (call < 3) {
            throw std::runtime_error("lost " + text);
        }
    };
    for (int i = 0; i != 5; ++i) {
        desk->start(std::to_string(i));
    }
    return desk;
}

// As an independent reference, an observer that counts what is in work and what is a retry by the events alone.
class RetryCount final : public sluice::Observer {
public:
    RetryCount(double ratio, std::size_t min_retries) : ratio_(ratio), min_retries_(min_retries) {}

    void on_queued(const sluice::StageResult<>& run) noexcept override { in_work.insert(&run); }
    void on_attempt_failed(const sluice::StageResult<>& run, const sluice::StageError&) noexcept override {
        retrying.erase(&run);
    }
    void on_retry(const sluice::StageResult<>& run, const sluice::Verdict& verdict,
                  std::chrono::nanoseconds) noexcept override {
        if (!is_throttled(verdict)) {
            ++decided;
            wrong += retrying.size() < limit() ? 0 : 1;
            retrying.insert(&run);
        }
    }
    void on_finished(const sluice::StageResult<>& run, Outcome outcome, Event) noexcept override {
        retrying.erase(&run);
        if (run.retries_withheld) {
            ++withheld;
            wrong += outcome == Outcome::failed && retrying.size() >= limit() ? 0 : 1;
        }
        in_work.erase(&run);
    }

    std::set<const sluice::StageResult<>*> in_work;
    std::set<const sluice::StageResult<>*> retrying;
    int decided = 0;
    int withheld = 0;
    int wrong = 0;

private:
    static bool is_throttled(const sluice::Verdict& verdict) { return verdict.kind == sluice::Verdict::throttled; }

    std::size_t limit() const {
        return std::max(min_retries_, static_cast<std::size_t>(ratio_ * static_cast<double>(in_work.size()) + 1e-9));
    }

    double ratio_;
    std::size_t min_retries_;
};

}  // namespace

TEST_CASE("retry budget: after a cancellation at any step, everything is as before", "[retry][budget][stress]") {
    const Through through = GENERATE(Through::stage, Through::step);
    test::for_every_step(
        [&](test::Steps& steps) {
            const std::unique_ptr<Desk> desk = busy_desk(through);
            steps.take(desk->context);
            desk->cancel_all();
            desk->run();
            // Of three in work, one and not two may be a retry.
            desk->calls = DeskCalls();
            for (const char* const text : {"a", "b", "c"}) {
                desk->start(text);
            }
            desk->run();
            CHECK(!desk->withheld("a"));
            CHECK(desk->withheld("b"));
            CHECK(desk->withheld("c"));
        },
        5);  // all have begun
}

TEST_CASE("retry budget: its context may be destroyed at any step, after the endpoint or before",
          "[retry][budget][stress]") {
    const Through through = GENERATE(Through::stage, Through::step);
    const bool endpoint_first = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        std::unique_ptr<Desk> desk = busy_desk(through);
        std::optional<sluice::Endpoint<VirtualTimer>> kept = desk->endpoint;
        if (endpoint_first) {
            kept.reset();
        }
        steps.take(desk->context);
        desk.reset();  // the context after the handles, except those that the calls keep
        CHECK((!kept || kept->retries() == 0));
    });
}

TEST_CASE("retry budget: in any order of events it allows what a count of the events allows",
          "[retry][budget][stress]") {
    const Through through = GENERATE(Through::stage, Through::step);
    int decided = 0;
    int withheld = 0;
    for (unsigned seed = 0; seed != 150; ++seed) {
        INFO("seed " << seed);
        std::mt19937 random(seed);
        const auto below = [&](unsigned n) { return static_cast<int>(random() % n); };
        const RetryBudget budget{.ratio = below(101) * 0.01, .min_retries = below(4)};
        RetryCount count(budget.ratio, static_cast<std::size_t>(budget.min_retries));
        StageOptions options{.retry = {.max_retries = below(4), .backoff = {.initial = below(30) * 1ms}},
                             .observer = &count};
        options.timeout = 40ms;
        Desk desk(through, with_budget(budget, 1 + below(8)), options);
        desk.calls.takes = [&](const std::string&, int) { return below(50) * 1ms; };
        desk.calls.decide = [&](const std::string& text, int) {
            if (const int what = below(4); what != 0) {
                throw std::runtime_error("lost " + text);
            } else if (below(4) == 0) {
                throw budget_throttled(below(20) * 1ms);
            }
        };
        for (int i = 0; i != 30; ++i) {
            desk.start((i % 2 == 0 ? "d" : "j") + std::to_string(i));
        }
        for (int steps = 0; test::step(desk.context); ++steps) {
            REQUIRE(desk.endpoint.retries() == count.retrying.size());
            if (steps > 30 && below(15) == 0) {
                const int i = below(30);
                desk.cancel((i % 2 == 0 ? "d" : "j") + std::to_string(i));
            }
        }
        CHECK(count.wrong == 0);
        CHECK(count.in_work.empty());
        CHECK(desk.endpoint.retries() == 0);
        decided += count.decided;
        withheld += count.withheld;
    }
    CHECK(decided > 1000);
    CHECK(withheld > 1000);
}
