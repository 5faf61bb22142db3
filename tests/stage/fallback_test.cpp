// SPDX-License-Identifier: BSL-1.0
// A Fallback by itself, and what it refuses.
#include <sluice/observer.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/fallback_error.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <exception>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::FallbackError;
using sluice::Reason;
using test::Task;
using test::timed;

// Two models, of which the second returns another type.
struct Pump {
    bool first_fails = true;
    bool second_fails = false;
    int running = 0;
    std::vector<std::string> calls;
    asio::io_context context{1};

    auto first() { return sluice::Stage(timed(context.get_executor()), "first", 1, FirstPump{this}); }
    auto second() { return sluice::Stage(timed(context.get_executor()), "second", 1, SecondPump{this}); }
    auto both() { return sluice::Fallback("both", first(), second()); }

private:
    static asio::awaitable<void> work(Pump& pump, const char* who, std::string text, bool fails) {
        const test::Live running(pump.running);
        pump.calls.push_back(who + std::string(" ") + text);
        co_await test::sleep(1s);
        if (fails) {
            throw std::runtime_error(who + std::string(" is down"));
        }
    }

    struct FirstPump {
        Pump* pump;
        asio::awaitable<int> operator()(const std::string& text) const { return run(*pump, text); }
        static asio::awaitable<int> run(Pump& pump, const std::string& text) {
            co_await work(pump, "first", text, pump.first_fails);
            co_return 1;
        }
    };
    struct SecondPump {
        Pump* pump;
        asio::awaitable<long> operator()(const std::string& text) const { return run(*pump, text); }
        static asio::awaitable<long> run(Pump& pump, const std::string& text) {
            co_await work(pump, "second", text, pump.second_fails);
            co_return 2;
        }
    };
};

using PumpResult = sluice::StageResult<long>;

}  // namespace

TEST_CASE("fallback alone: returns the result of the member that has served", "[fallback]") {
    Pump pump;
    const auto both = pump.both();
    const std::string text = "text";
    Task<PumpResult> run(pump.context.get_executor(), [&] { return both.run("7", text); });
    CHECK(sluice::testing::run(pump.context) == 2s);
    const PumpResult& result = run.value();
    CHECK(result.success);
    CHECK(result.data == 2);
    CHECK(result.stage == "second");
    CHECK(result.query_id == "7");
    CHECK(result.attempts == 1);
    CHECK(result.latency == 1s);
    CHECK_FALSE(result.error);
}

TEST_CASE("fallback alone: returns its own result if all members fail", "[fallback]") {
    Pump pump;
    pump.second_fails = true;
    const auto both = pump.both();
    Task<PumpResult> run(pump.context.get_executor(), [&] { return both.run("7", std::string("text")); });
    sluice::testing::run(pump.context);
    const PumpResult& result = run.value();
    CHECK_FALSE(result.success);
    CHECK_FALSE(result.data);
    CHECK(result.stage == "both");
    CHECK(result.query_id == "7");
    CHECK(result.reason == Reason::fallback);
    CHECK(result.error.message() == "all 2 members failed: first: first is down; second: second is down");
    CHECK(pump.calls == std::vector<std::string>{"first text", "second text"});
}

TEST_CASE("fallback alone: the observer of a member is told that it was skipped, with the id of the run",
          "[fallback][observer]") {
    struct Skips : sluice::Observer {
        std::vector<std::string> seen;
        void on_skipped(const sluice::SharedString& query_id, const sluice::SharedString& stage,
                        Reason reason) noexcept override {
            seen.push_back(query_id.str() + ' ' + stage.str() + ' ' + std::string(to_string(reason)));
        }
    } skips;
    asio::io_context context(1);
    const sluice::Endpoint endpoint(timed(context.get_executor()), "down",
                                    {.limit = 1, .breaker = sluice::BreakerOptions()});
    endpoint.breaker().force_open();
    const auto model = [](int value) -> asio::awaitable<int> { co_return value; };
    const sluice::Stage first(endpoint, "first", model, {.observer = &skips});
    const sluice::Stage second(endpoint, "second", model, {.while_open = sluice::WhileOpen::fail});
    const sluice::Fallback both("both", first, second);
    Task<sluice::StageResult<int>> run(context.get_executor(), [&] { return both.run("7", 1); });
    sluice::testing::run(context);
    CHECK(run.value().reason == Reason::fallback);
    CHECK(skips.seen == std::vector<std::string>{"7 first breaker_open"});  // the other one has no observer
}

TEST_CASE("fallback alone: the predicate gets the value that run() returns", "[fallback][accept]") {
    Pump pump;
    pump.first_fails = false;
    const auto even = pump.both().accept([](const auto& value) {
        static_assert(std::is_same_v<decltype(value), const long&>);
        return value % 2 == 0;
    });
    Task<PumpResult> run(pump.context.get_executor(), [&] { return even.run("7", std::string("text")); });
    sluice::testing::run(pump.context);
    CHECK(run.value().data == 2);

    const auto neither = pump.both().accept([](long value) { return value > 2; });
    Task<PumpResult> none(pump.context.get_executor(), [&] { return neither.run("8", std::string("text")); });
    sluice::testing::run(pump.context);
    CHECK_FALSE(none.value().data);
    CHECK(none.value().reason == Reason::fallback);
}

TEST_CASE("fallback alone: a run keeps the stages and the predicate, and copies share the stages", "[fallback]") {
    Pump pump;
    auto token = std::make_shared<int>(1);
    const std::weak_ptr<int> seen = token;
    std::optional both(pump.both().accept([token](long value) { return value > *token; }));
    token.reset();
    const auto copy = both->also_after([](const std::exception_ptr&) { return true; });
    Task<PumpResult> run(pump.context.get_executor(), [&] { return copy.run("7", std::string("text")); });
    Task<PumpResult> other(pump.context.get_executor(), [&] { return both->run("8", std::string("other")); });
    test::poll(pump.context);
    both.reset();
    CHECK_FALSE(seen.expired());
    sluice::testing::run(pump.context);
    CHECK(run.value().data == 2);
    CHECK(other.value().data == 2);
    CHECK(test::now(pump.context) == 3s);  // each stage has one slot
}

TEST_CASE("fallback alone: cancelled at every step it ends aborted, or with its value", "[fallback][cancellation]") {
    const auto type = test::any_cancellation();
    test::for_every_step(
        [&](test::Steps& steps) {
            Pump pump;
            const auto both = pump.both();
            Task<PumpResult> run(pump.context.get_executor(), [&] { return both.run("7", std::string("text")); });
            steps.take(pump.context);
            const std::size_t calls = pump.calls.size();
            run.cancel(type);
            sluice::testing::run(pump.context);
            CHECK((run.aborted() || (run.succeeded() && run.value().data == 2)));
            CHECK((run.succeeded() || pump.calls.size() == calls));
            CHECK(pump.running == 0);
        },
        1);
}

TEST_CASE("fallback alone: its context destroyed at every step", "[fallback][shutdown]") {
    test::for_every_step([&](test::Steps& steps) {
        std::optional<Pump> pump(std::in_place);
        const auto both = pump->both();
        const Task<PumpResult> run(pump->context.get_executor(), [&] { return both.run("7", std::string("text")); });
        steps.take(pump->context);
        pump.reset();
    });
}

TEST_CASE("fallback alone: of a context that is gone every member is closed", "[fallback][shutdown]") {
    std::optional<Pump> pump(std::in_place);
    const auto both = pump->both();
    pump.reset();
    asio::io_context other(1);
    Task<PumpResult> run(other.get_executor(), [&] { return both.run("7", std::string("text")); });
    sluice::testing::run(other);
    CHECK(run.value().error.message() ==
          "all 2 members failed: first: the endpoint was closed: Operation canceled [system:125]; second: the endpoint "
          "was closed: Operation canceled [system:125]");
}

TEST_CASE("fallback: refuses an empty name and empty predicates, by name", "[fallback]") {
    Pump pump;
    const auto both = pump.both();
    const auto refusal = [](auto function) { return test::refusal_of(function); };
    CHECK(refusal([&] { sluice::Fallback("", pump.first(), pump.second()); }) ==
          "Fallback: the name must not be empty");
    CHECK(refusal([&] { static_cast<void>(both.also_after(nullptr)); }) ==
          "Fallback 'both': the predicate of also_after() must not be empty");
    CHECK(refusal([&] { static_cast<void>(both.accept(std::function<bool(long)>())); }) ==
          "Fallback 'both': the predicate of accept() must not be empty");
    CHECK(both.name() == "both");
}

TEST_CASE("fallback error: says why each member failed, and copies share the causes", "[fallback]") {
    const FallbackError error({{"gpt", Reason::model, std::make_exception_ptr(std::runtime_error("busy"))},
                               {"claude", Reason::breaker_open, {}},
                               {"local", Reason::deadline, {}}});
    CHECK(error.what() ==
          std::string("all 3 members failed: gpt: busy; claude: skipped, since its circuit breaker was open; local: "
                      "skipped, since it was to pause for longer than the query had"));
    const FallbackError copy(error);
    CHECK(&copy.causes() == &error.causes());
    CHECK_FALSE(copy.causes().at(0).skipped());
    CHECK(copy.causes().at(1).skipped());
    static_assert(std::is_nothrow_copy_constructible_v<FallbackError>);
}
