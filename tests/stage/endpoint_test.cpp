// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/endpoint.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/testing/run.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <concepts>
#include <deque>
#include <memory>
#include <optional>
#include <string>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::EndpointOptions;
using sluice::Reason;
using sluice::Stage;
using test::Model;
using test::refusal_of;
using test::Task;
using test::timed;
using test::VirtualTimer;

using EndpointRun = Task<sluice::StageResult<std::string>>;
using TestStage = Stage<test::Endpoint, VirtualTimer>;

// Two stages that share an endpoint, in virtual time.
struct Shared {
    Model draft_model{"draft", 10ms};
    Model judge_model{"judge", 10ms};
    asio::io_context context{1};
    sluice::Endpoint<VirtualTimer> endpoint;
    TestStage draft;
    TestStage judge;

    explicit Shared(std::ptrdiff_t limit, const sluice::StageOptions& options = {})
        : endpoint(timed(context.get_executor()), "gpt", EndpointOptions{.limit = limit}),
          draft(endpoint, "draft", test::Endpoint{&draft_model}, options),
          judge(endpoint, "judge", test::Endpoint{&judge_model}, options) {}

    EndpointRun start(const TestStage& stage, std::string text) {
        return EndpointRun(context.get_executor(),
                           [stage, text] { return stage.run("id-" + text, std::string(text)); });
    }
    int running() const { return draft_model.running + judge_model.running; }
};

}  // namespace

TEST_CASE("endpoint: stages that share it share its limit, first come, first served", "[endpoint]") {
    Shared shared(2);
    std::deque<EndpointRun> runs;
    int most = 0;
    for (int i = 0; i != 6; ++i) {
        runs.push_back(shared.start(i % 2 == 0 ? shared.draft : shared.judge, std::to_string(i)));
    }
    while (test::step(shared.context)) {
        most = std::max(most, shared.running());
        CHECK(shared.endpoint.active() <= 2);
    }
    CHECK(most == 2);
    for (int i = 0; i != 6; ++i) {
        REQUIRE(runs[static_cast<std::size_t>(i)].succeeded());
        const auto& result = runs[static_cast<std::size_t>(i)].value();
        CHECK(result.success);
        CHECK(result.stage == (i % 2 == 0 ? "draft" : "judge"));
        CHECK(result.queue_time == 10ms * (i / 2));
    }
    CHECK(shared.endpoint.active() == 0);
    CHECK(shared.endpoint.waiting() == 0);
}

TEST_CASE("endpoint: the limit may be changed while it is used, for all its stages", "[endpoint]") {
    Shared shared(1);
    EndpointRun a = shared.start(shared.draft, "a");
    EndpointRun b = shared.start(shared.judge, "b");
    EndpointRun c = shared.start(shared.draft, "c");
    test::poll(shared.context);
    CHECK(shared.endpoint.active() == 1);
    CHECK(shared.endpoint.waiting() == 2);
    shared.judge.endpoint().set_limit(3);
    CHECK(shared.endpoint.limit() == 3);
    test::poll(shared.context);
    CHECK(shared.running() == 3);
    CHECK(sluice::testing::run(shared.context) == 10ms);
}

TEST_CASE("endpoint: a limit of 0 pauses it, and a negative one is refused", "[endpoint]") {
    Shared shared(1);
    shared.endpoint.set_limit(0);
    EndpointRun a = shared.start(shared.draft, "a");
    sluice::testing::run_until_stalled(shared.context);
    CHECK_FALSE(a.done());
    CHECK(refusal_of([&] { shared.endpoint.set_limit(-1); }) == "Endpoint 'gpt': limit must not be negative, got -1");
    CHECK(shared.endpoint.limit() == 0);
    shared.endpoint.set_limit(1);
    sluice::testing::run(shared.context);
    CHECK(a.value().success);
}

TEST_CASE("endpoint: closing it fails the queries in its line, and those that come, with a reason", "[endpoint]") {
    Shared shared(1);
    EndpointRun a = shared.start(shared.draft, "a");
    EndpointRun b = shared.start(shared.judge, "b");
    test::poll(shared.context);
    shared.endpoint.close();
    EndpointRun c = shared.start(shared.judge, "c");
    sluice::testing::run(shared.context);
    CHECK(a.value().success);
    CHECK(a.value().reason == Reason::none);
    for (EndpointRun* closed : {&b, &c}) {
        CHECK_FALSE(closed->value().success);
        CHECK(closed->value().reason == Reason::closed);
        CHECK(closed->value().attempts == 0);
    }
}

TEST_CASE("endpoint: an option that is out of range is refused, by name and value", "[endpoint]") {
    asio::io_context context;
    const auto executor = context.get_executor();
    CHECK(refusal_of([&] { sluice::Endpoint e(executor, "gpt", EndpointOptions{}); }) ==
          "Endpoint 'gpt': limit must be at least 1, got 0");
    CHECK(refusal_of([&] { sluice::Endpoint e(executor, "gpt", EndpointOptions{.limit = -3}); }) ==
          "Endpoint 'gpt': limit must be at least 1, got -3");
    CHECK(refusal_of([&] { sluice::Endpoint e(executor, "", EndpointOptions{.limit = 1}); }) ==
          "Endpoint: the name must not be empty");
    CHECK(refusal_of([&] { sluice::Endpoint e(asio::any_io_executor(), "gpt", EndpointOptions{.limit = 1}); }) ==
          "Endpoint 'gpt': the executor must not be empty");
    CHECK(refusal_of([&] { sluice::Endpoint e(executor, "gpt", EndpointOptions{.limit = 1, .verdict = nullptr}); }) ==
          "Endpoint 'gpt': the verdict function must not be empty");
}

TEST_CASE("endpoint: copies are handles to the same endpoint, and stages keep it alive", "[endpoint]") {
    Model model("m", 1ms);
    asio::io_context context;
    auto endpoint = std::make_optional<sluice::Endpoint<VirtualTimer>>(timed(context.get_executor()), "gpt",
                                                                       EndpointOptions{.limit = 2});
    const auto copy = *endpoint;
    CHECK(copy == *endpoint);
    const TestStage stage(*endpoint, "s", test::Endpoint{&model});
    CHECK(stage.endpoint() == copy);
    CHECK(stage.endpoint().name() == "gpt");
    CHECK(stage.name() == "s");
    endpoint.reset();
    EndpointRun run(context.get_executor(), [&] { return stage.run("1", std::string("text")); });
    sluice::testing::run(context);
    CHECK(run.value().success);
    CHECK(sluice::Endpoint(context.get_executor(), "other", EndpointOptions{.limit = 2}).limit() == 2);
}

TEST_CASE("endpoint: the timer is deduced from the executor", "[endpoint]") {
    asio::io_context context;
    sluice::Endpoint real(context.get_executor(), "e", EndpointOptions{.limit = 1});
    sluice::Endpoint simulated(timed(context.get_executor()), "e", EndpointOptions{.limit = 1});
    static_assert(std::same_as<decltype(real)::timer_type, asio::steady_timer>);
    static_assert(std::same_as<decltype(simulated)::timer_type, VirtualTimer>);
    Model model("m", 1ms);
    Stage on_real(real, "s", test::Endpoint{&model});
    Stage on_simulated(simulated, "s", test::Endpoint{&model}, sluice::StageOptions{});
    static_assert(std::same_as<decltype(on_real), Stage<test::Endpoint, asio::steady_timer>>);
    static_assert(std::same_as<decltype(on_simulated), TestStage>);
}

TEST_CASE("endpoint: a stage whose context is gone gives others a turn with each run", "[endpoint]") {
    auto gone = std::make_unique<asio::io_context>(1);
    const sluice::Stage stage(gone->get_executor(), "gone", 1, []() -> asio::awaitable<int> { co_return 1; });
    gone.reset();
    asio::io_context context(1);
    int turns = 0;
    int runs = 0;
    const Task<> busy(context.get_executor(), [&] {
        return [](const auto& closed, int& count) -> asio::awaitable<void> {
            for (; count != 10; ++count) {
                static_cast<void>(co_await closed.run("q"));
            }
        }(stage, runs);
    });
    const Task<> other(context.get_executor(), [&] {
        return [](const int& others, int& count) -> asio::awaitable<void> {
            while (others != 10) {
                co_await test::yield();
                ++count;
            }
        }(runs, turns);
    });
    sluice::testing::run(context);
    CHECK(busy.succeeded());
    CHECK(turns >= 9);
}

TEST_CASE("endpoint: a stage whose context is gone is closed", "[endpoint]") {
    Model model("m", 1ms);
    auto context = std::make_unique<asio::io_context>(1);
    const TestStage stage(timed(context->get_executor()), "s", 1, test::Endpoint{&model});
    context.reset();
    asio::io_context other(1);
    EndpointRun run(other.get_executor(), [&] { return stage.run("1", std::string("text")); });
    sluice::testing::run(other);
    CHECK(run.value().reason == Reason::closed);
    CHECK(model.calls() == 0);
}

TEST_CASE("endpoint: handles may be destroyed at any step; the queries that run go on", "[endpoint][stress]") {
    const bool context_first = GENERATE(false, true);
    const bool runs_on = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Model model("m", 5ms);
        model.failures["0"] = 1;
        auto context = std::make_unique<asio::io_context>(1);
        auto endpoint = std::make_optional<sluice::Endpoint<VirtualTimer>>(timed(context->get_executor()), "gpt",
                                                                           EndpointOptions{.limit = 1});
        auto stage = std::make_optional<TestStage>(
            *endpoint, "s", test::Endpoint{&model},
            sluice::StageOptions{.timeout = 7ms, .retry = {.max_retries = 1, .backoff = {.initial = 2ms}}});
        std::deque<EndpointRun> runs;
        for (int i = 0; i != 3; ++i) {
            runs.emplace_back(context->get_executor(), [s = *stage, i] { return s.run("q", std::to_string(i)); });
        }
        steps.take(*context);
        if (context_first) {
            context.reset();
        }
        endpoint.reset();
        stage.reset();
        if (context && runs_on) {
            sluice::testing::run(*context);
            for (EndpointRun& run : runs) {
                CHECK(run.value().success);
            }
        }
        context.reset();
        CHECK(model.running == 0);
    });
}
