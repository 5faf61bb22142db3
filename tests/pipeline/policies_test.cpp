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
#include <sluice/testing/virtual_time.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/relay.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
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
using test::Relay;
using test::relay_fails;
using test::relay_invalid;
using test::relay_too_long;
using test::RelayMember;
using test::RelayModel;
using test::RelayRecord;
using test::RelayRun;
using test::RelaySetup;
using test::Task;
using test::timed;
using test::VirtualTimer;

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
// The context whose time passes in slow_predicate(): the functions of policies capture nothing.
asio::io_context* context_of_predicates = nullptr;
bool slow_predicate(const std::exception_ptr&) {
    sluice::testing::VirtualTime::of(*context_of_predicates).advance_by(100ms);
    return true;
}
struct InvalidCall {
    asio::awaitable<std::string> operator()(std::string) const {
        throw relay_too_long();
        co_return "";
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

TEST_CASE("policies: the time of also_after(), or of a verdict function, is not that of the next member",
          "[policies][clock]") {
    asio::io_context context{1};
    context_of_predicates = &context;
    const auto executor = timed(context.get_executor());
    RelayMember other{.name = "other", .takes = 5ms};
    EndpointOptions slow{.limit = 1};
    const bool by_verdict = GENERATE(true, false);
    if (by_verdict) {
        slow.verdict = [](const std::exception_ptr& error) {
            slow_predicate(error);
            return Verdict{};
        };
    }
    const sluice::Endpoint endpoint(executor, "e", slow);
    StageOptions options;
    options.timeout = 50ms;
    const sluice::Stage first(endpoint, "first", InvalidCall());
    const sluice::Stage second(executor, "second", 1, RelayModel{&other}, options);
    const sluice::Fallback on_verdict("both", first, second);
    const auto both = by_verdict ? on_verdict : on_verdict.also_after(&slow_predicate);
    Task<sluice::StageResult<std::string>> run(context.get_executor(), [&] { return both.run("7", std::string("t")); });
    CHECK(sluice::testing::run(context) == 105ms);
    CHECK(run.value().success);
    CHECK(run.value().stage == "second");
    CHECK(run.value().latency == 5ms);
    CHECK(run.value().error.message() == "");
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
