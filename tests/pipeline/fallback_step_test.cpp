// SPDX-License-Identifier: BSL-1.0
// A Fallback in the steps of a pipeline: which members are tried, which are skipped, and how it ends.
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
#include "support/relay.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
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
using test::relay_error;
using test::relay_fails;
using test::relay_invalid;
using test::relay_is_too_long;
using test::relay_too_long;
using test::relay_with_breakers;
using test::RelayMember;
using test::RelayModel;
using test::RelayObserver;
using test::RelayRecord;
using test::RelayResult;
using test::RelayRun;
using test::RelaySetup;
using test::RelaySink;
using test::Task;
using test::timed;
using test::VirtualTimer;

}  // namespace

TEST_CASE("fallback: the first member serves if it can, and the others are not called", "[fallback]") {
    Relay relay;
    CHECK(relay.run_one() == "gpt, gpt text");
    CHECK(relay.claude.calls + relay.local.calls == 0);
    CHECK(relay.sink.letters.empty());
    CHECK(relay.sink.saved == std::vector<std::string>{"gpt text"});
}

TEST_CASE("fallback: the next one serves if those before it failed, and the results are in that order", "[fallback]") {
    Relay relay;
    relay.gpt.script = relay_fails("busy");
    relay.claude.script = relay_fails("down");
    CHECK(relay.run_one() == "gpt(model), claude(model), local, local text");
    CHECK(relay.result(0).stage_results.at(0).error.message() == "busy");
    CHECK(relay.result(0).stage_results.at(1).error.message() == "down");
    CHECK(relay.result(0).completed);
    CHECK(relay.ended.at(0) == 3s);
    CHECK(relay.sink.letters.empty());
    CHECK(relay.sink.saved == std::vector<std::string>{"local text"});
}

TEST_CASE("fallback: a member is given up when its own retries are used up, and each is tried once", "[fallback]") {
    RelaySetup setup;
    setup.stages.at(0).retry = test::retries(2, 10s);
    setup.stages.at(1).retry = test::retries(1, 1s);
    Relay relay(setup);
    relay.gpt.script = relay_fails();
    relay.claude.script = [](std::size_t call) {
        if (call == 0) {
            throw std::runtime_error("once");
        }
    };
    CHECK(relay.run_one() == "gpt(model), claude, claude text");
    CHECK(relay.result(0).stage_results.at(0).attempts == 3);
    CHECK(relay.result(0).stage_results.at(1).attempts == 2);
    CHECK(relay.ended.at(0) == 26s);
}

TEST_CASE("fallback: goes on after whatever another provider can mend", "[fallback]") {
    RelaySetup setup;
    setup.stages.at(0).timeout = 2s;
    setup.stages.at(0).retry.max_throttled = 0;
    SECTION("transient, throttled, overloaded, exhausted") {
        Relay relay(setup);
        relay.gpt.script = relay_fails(
            relay_error(GENERATE(Verdict::transient, Verdict::throttled, Verdict::overloaded, Verdict::exhausted)));
        CHECK(relay.run_one() == "gpt(model), claude, claude text");
    }
    SECTION("a timeout") {
        Relay relay(setup);
        relay.gpt.takes = 1h;
        CHECK(relay.run_one() == "gpt(timeout), claude, claude text");
        CHECK(relay.ended.at(0) == 3s);
    }
    SECTION("a closed endpoint") {
        Relay relay(setup);
        relay.endpoints.at(0).close();
        CHECK(relay.run_one() == "gpt(closed), claude, claude text");
    }
    SECTION("an endpoint that is closed while the query waits") {
        setup.endpoints.at(0).limit = 1;
        Relay relay(setup);
        relay.start();
        const std::size_t second = relay.start();
        relay.run_until(500ms);
        relay.endpoints.at(0).close();
        relay.run();
        CHECK(relay.story(second) == "gpt(closed), claude, claude text");
        CHECK(relay.ended.at(second) == 1500ms);
    }
    SECTION("a line that is full") {
        setup.endpoints.at(0) = {.limit = 1, .max_waiting = 0};
        Relay relay(setup);
        relay.start();
        const std::size_t second = relay.start();
        relay.run();
        CHECK(relay.story(0) == "gpt, gpt text");
        CHECK(relay.story(second) == "gpt(overloaded), claude, claude text");
        CHECK(relay.ended.at(second) == 1s);
    }
    SECTION("a wait in the line that takes too long") {
        setup.endpoints.at(0) = {.limit = 1, .max_wait = 500ms};
        Relay relay(setup);
        relay.start();
        const std::size_t second = relay.start();
        relay.run();
        CHECK(relay.story(second) == "gpt(overloaded), claude, claude text");
        CHECK(relay.ended.at(second) == 1500ms);
    }
    SECTION("a member for whose calls the time that is left does not suffice") {
        setup.endpoints.at(0) = {.limit = 9, .shed_late = true};
        Relay relay(setup);
        relay.gpt.takes = 2s;
        for (int i = 0; i != 20; ++i) {
            relay.start();
        }
        relay.run();
        const std::size_t last = relay.start(1500ms);
        relay.run();
        CHECK(relay.story(last) == "gpt(deadline), claude, claude text");
    }
    SECTION("an error that is no ModelError") {
        Relay relay(setup);
        relay.gpt.script = [](std::size_t) { throw 42; };
        CHECK(relay.run_one() == "gpt(model), claude, claude text");
    }
}

TEST_CASE("fallback: goes on if a call is too costly for a member, or its cost cannot be estimated", "[fallback]") {
    struct Costly : RelayModel {
        static sluice::Cost cost(const std::string& text) {
            if (text == "ugly") {
                throw std::runtime_error("no estimate");
            }
            return {.input_tokens = 1000};
        }
    };
    RelayMember small{"small"};
    RelayMember large{"large"};
    RelaySink sink;
    asio::io_context context(1);
    const sluice::Endpoint tight(timed(context.get_executor()), "tight",
                                 EndpointOptions{.limit = 1, .input_tokens = Rate(10, 1s)});
    const sluice::Stage first(tight, "small", Costly{{&small}});
    const sluice::Stage second(timed(context.get_executor()), "large", 1, RelayModel{&large});
    const sluice::Fallback either("either", first, second);
    sluice::Pipeline pipeline(
        timed(context.get_executor()),
        [either](RelayRun& run) -> asio::awaitable<void> {
            co_await run.step(&RelayRecord::text, either, run.query().text);
        },
        sink, 1);
    const auto [text, reason] = GENERATE(std::pair("long", Reason::too_costly), std::pair("ugly", Reason::model));
    Task<RelayResult> task(context.get_executor(), [&] { return pipeline.process_one(Query("1", text)); });
    sluice::testing::run(context);
    CHECK(task.value().stage_results.at(0).reason == reason);
    CHECK(task.value().record.text == "large " + std::string(text));
    CHECK(small.calls == 0);
}

TEST_CASE("fallback: a request that is wrong is wrong for all members", "[fallback]") {
    Relay relay;
    relay.gpt.script = relay_fails(relay_invalid());
    CHECK(relay.run_one() == "gpt(model), dead: gpt");
    CHECK(relay.error_of(0) == "refused");
    CHECK(relay.result(0).failure()->error.type() == "sluice::ModelError");
    CHECK(relay.claude.calls == 0);
    CHECK(relay.sink.letters == std::vector<std::string>{"gpt: refused"});
    CHECK(relay.sink.saved.empty());
}

TEST_CASE("fallback: an invalid request ends it at any member, the last included", "[fallback]") {
    Relay relay;
    relay.gpt.script = relay_fails();
    SECTION("the second") {
        relay.claude.script = relay_fails(relay_invalid());
        CHECK(relay.run_one() == "gpt(model), claude(model), dead: claude");
    }
    SECTION("the last") {
        relay.claude.script = relay_fails();
        relay.local.script = relay_fails(relay_invalid());
        CHECK(relay.run_one() == "gpt(model), claude(model), local(model), dead: local");
    }
    CHECK(relay.error_of(0) == "refused");
}

TEST_CASE("fallback: the verdict on the last attempt decides", "[fallback]") {
    RelaySetup setup;
    setup.stages.at(0).retry = test::retries(1, 1s, [](const std::exception_ptr&) { return true; });
    Relay relay(setup);
    const bool invalid_first = GENERATE(true, false);
    relay.gpt.script = [=](std::size_t call) {
        if ((call == 0) == invalid_first) {
            throw relay_invalid();
        }
        throw std::runtime_error("down");
    };
    CHECK(relay.run_one() == (invalid_first ? "gpt(model), claude, claude text" : "gpt(model), dead: gpt"));
}

TEST_CASE("fallback: also_after() names invalid requests that another member may serve", "[fallback]") {
    Relay relay;
    relay.fallback.emplace(relay.fallback->also_after(&relay_is_too_long));
    relay.gpt.script = relay_fails(relay_too_long());
    SECTION("served by the next") { CHECK(relay.run_one() == "gpt(model), claude, claude text"); }
    SECTION("not those that it does not name") {
        relay.claude.script = relay_fails(relay_invalid());
        CHECK(relay.run_one() == "gpt(model), claude(model), dead: claude");
    }
    SECTION("all fail") {
        relay.claude.script = relay.local.script = relay_fails(relay_too_long());
        CHECK(relay.run_one() == "gpt(model), claude(model), local(model), answer(fallback), dead: answer");
    }
}

TEST_CASE("fallback: also_after() is asked about invalid requests alone, and replaces an earlier one", "[fallback]") {
    Relay relay;
    relay.gpt.script = relay_fails();
    relay.fallback.emplace(
        relay.fallback->also_after(&relay_is_too_long).also_after([](const std::exception_ptr&) -> bool {
            throw std::runtime_error("cannot tell");
        }));
    SECTION("not about others") { CHECK(relay.run_one() == "gpt(model), claude, claude text"); }
    SECTION("if it throws, the fallback ends") {
        relay.gpt.script = relay_fails(relay_too_long());
        CHECK(relay.run_one() == "gpt(model), dead: gpt");
        CHECK(relay.error_of(0) == "the predicate of also_after() threw std::runtime_error: cannot tell: too long");
        CHECK(relay.result(0).failure()->error.type() == "sluice::RetryPredicateError");
    }
}

TEST_CASE("fallback: an argument that is missing is missing for all members", "[fallback]") {
    Relay relay;
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        co_await run.step(&RelayRecord::text, *its_relay.fallback, &RelayRecord::other);
    };
    CHECK(relay.run_one() == "gpt(missing), dead: gpt");
    CHECK(relay.gpt.calls + relay.claude.calls + relay.local.calls == 0);
}

TEST_CASE("fallback: if all fail, the error has the causes in order, and makes the dead letter", "[fallback]") {
    RelaySetup setup;
    setup.stages.at(1).timeout = 2s;
    Relay relay(setup);
    relay.gpt.script = relay_fails("busy");
    relay.claude.takes = 1h;
    relay.local.script = relay_fails(relay_error(Verdict::overloaded));
    CHECK(relay.run_one() == "gpt(model), claude(timeout), local(model), answer(fallback), dead: answer");
    const char* const message = "all 3 members failed: gpt: busy; claude: timed out after 2000 ms; local: no";
    CHECK(relay.error_of(0) == message);
    CHECK(relay.sink.letters == std::vector<std::string>{std::string("answer: ") + message});
    const sluice::StageResult<>& failure = *relay.result(0).failure();
    CHECK(failure.query_id == "id");
    CHECK(failure.attempts == 0);
    CHECK(failure.error.type() == "sluice::FallbackError");
    try {
        std::rethrow_exception(failure.error.exception());
    } catch (const sluice::FallbackError& error) {
        REQUIRE(error.causes().size() == 3);
        CHECK(error.causes().at(0).member == "gpt");
        CHECK(error.causes().at(0).error.type() == "std::runtime_error");
        CHECK(error.causes().at(1).reason == Reason::timeout);
        CHECK(error.causes().at(2).error.type() == "sluice::ModelError");
        CHECK_FALSE(error.causes().at(0).skipped());
    }
}

TEST_CASE("fallback: a member whose breaker is open is skipped, without a stage run", "[fallback][breaker]") {
    RelayObserver observer;
    RelaySetup setup = relay_with_breakers();
    setup.observer = &observer;
    Relay relay(setup);
    relay.endpoints.at(0).breaker().force_open();
    CHECK(relay.run_one() == "claude, claude text");
    CHECK(observer.events == std::vector<std::string>{"gpt skipped for id: breaker_open", "claude queued",
                                                      "claude started", "claude succeeded"});
    CHECK(relay.gpt.calls == 0);
}

TEST_CASE("fallback: a member before the last waits for its breaker only if its stage says hold",
          "[fallback][breaker]") {
    RelaySetup setup = relay_with_breakers();
    const auto while_open = GENERATE(WhileOpen::hold, WhileOpen::hold_unless_exhausted, WhileOpen::fail);
    setup.stages.at(0).while_open = while_open;
    Relay relay(setup);
    relay.endpoints.at(0).breaker().force_open();
    const std::size_t query = relay.start();
    relay.run_until(5s);
    CHECK(relay.endpoints.at(0).waiting() == (while_open == WhileOpen::hold ? 1 : 0));
    relay.endpoints.at(0).breaker().reset();
    relay.run();
    CHECK(relay.story(query) == (while_open == WhileOpen::hold ? "gpt, gpt text" : "claude, claude text"));
}

TEST_CASE("fallback: the last member waits for its breaker as its stage says", "[fallback][breaker]") {
    RelaySetup setup = relay_with_breakers();
    SECTION("by default") {
        Relay relay(setup);
        for (auto& endpoint : relay.endpoints) {
            endpoint.breaker().force_open();
        }
        const std::size_t query = relay.start();
        relay.run_until(5s);
        CHECK(relay.endpoints.at(2).waiting() == 1);
        relay.endpoints.at(2).breaker().reset();
        relay.run();
        CHECK(relay.story(query) == "local, local text");
    }
    SECTION("not if it fails instead; then all were skipped") {
        setup.stages.at(2).while_open = WhileOpen::fail;
        Relay relay(setup);
        for (auto& endpoint : relay.endpoints) {
            endpoint.breaker().force_open();
        }
        CHECK(relay.run_one() == "answer(fallback), dead: answer");
        CHECK(relay.error_of(0) ==
              "all 3 members failed: gpt: skipped, since its circuit breaker was open; claude: skipped, since its "
              "circuit breaker was open; local: skipped, since its circuit breaker was open");
        try {
            std::rethrow_exception(relay.result(0).failure()->error.exception());
        } catch (const sluice::FallbackError& error) {
            CHECK(error.causes().at(1).skipped());
            CHECK(error.causes().at(1).reason == Reason::breaker_open);
        }
    }
    SECTION("not if the account is exhausted") {
        Relay relay(setup);
        relay.local.script = relay_fails(relay_error(Verdict::exhausted));
        relay.gpt.script = relay.claude.script = relay_fails();
        CHECK(relay.run_one() == "gpt(model), claude(model), local(model), answer(fallback), dead: answer");
        CHECK(relay.run_one() == "answer(fallback), dead: answer");
        CHECK(relay.local.calls == 1);
    }
}

TEST_CASE("fallback: a half-open breaker with a place for a probe is not open", "[fallback][breaker]") {
    Relay relay(relay_with_breakers());
    relay.gpt.script = [](std::size_t call) {
        if (call == 0) {
            throw std::runtime_error("down");
        }
    };
    CHECK(relay.run_one() == "gpt(model), claude, claude text");
    relay.run_until(10999ms);  // it has opened at 1 s
    const std::size_t open = relay.start();
    relay.run_until(11s);
    const std::size_t probe = relay.start();
    const std::size_t next = relay.start();
    relay.run();
    CHECK(relay.story(open) == "claude, claude text");
    CHECK(relay.story(probe) == "gpt, gpt text");
    CHECK(relay.story(next) == "claude, claude text");
    CHECK(relay.run_one() == "gpt, gpt text");  // it is closed
}

TEST_CASE("fallback: if the breaker opens while a query waits in the line, the next member is tried",
          "[fallback][breaker]") {
    Relay relay(relay_with_breakers());
    relay.gpt.script = relay_fails();
    relay.start();
    const std::size_t second = relay.start();
    relay.run_until(500ms);
    CHECK(relay.endpoints.at(0).waiting() == 1);
    relay.run();
    CHECK(relay.story(0) == "gpt(model), claude, claude text");
    CHECK(relay.story(second) == "gpt(breaker_open), claude, claude text");
    CHECK(relay.result(second).stage_results.at(0).attempts == 0);
    CHECK(relay.gpt.calls == 1);
    CHECK(relay.ended.at(second) == 3s);  // claude takes one call at a time
}

TEST_CASE("fallback: an attempt that opens the breaker of a member before the last is not spared",
          "[fallback][breaker]") {
    RelaySetup setup = relay_with_breakers();
    const bool holds = GENERATE(false, true);
    setup.stages.at(0).retry = test::retries(1, 1s);
    setup.stages.at(0).while_open = holds ? WhileOpen::hold : WhileOpen::hold_unless_exhausted;
    Relay relay(setup);
    relay.gpt.script = [](std::size_t call) {
        if (call == 0) {
            throw std::runtime_error("down");
        }
    };
    const auto timeout = GENERATE(3600s, 5s);
    CHECK(relay.run_one(timeout) == (!holds         ? "gpt(breaker_open), claude, claude text"
                                     : timeout > 5s ? "gpt, gpt text"
                                                    : "gpt(deadline), claude, claude text"));
    CHECK(relay.ended.at(0) == (!holds ? 3s : timeout > 5s ? 12s : 2s));
}

TEST_CASE("fallback: a member that is to pause for longer than the query has left is skipped", "[fallback][rate]") {
    Relay relay;
    relay.endpoints.at(0).pause(10s);
    SECTION("longer") {
        CHECK(relay.run_one(10s) == "claude, claude text");
        CHECK(relay.ended.at(0) == 1s);
    }
    SECTION("not as long") {
        CHECK(relay.run_one(11s) == "gpt, gpt text");
        CHECK(relay.ended.at(0) == 11s);
    }
    SECTION("without a timeout it waits") { CHECK(relay.run_one() == "gpt, gpt text"); }
    SECTION("the last too") {
        for (auto& endpoint : relay.endpoints) {
            endpoint.pause(10s);
        }
        CHECK(relay.run_one(5s) == "answer(fallback), dead: answer");
        CHECK(relay.ended.at(0) == 0s);
        CHECK(relay.error_of(0).ends_with("; local: skipped, since it was to pause for longer than the query had"));
    }
    SECTION("by the time that is left then") {
        relay.endpoints.at(0).close();
        relay.endpoints.at(1).pause(10s);
        relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
            co_await test::sleep(3s);
            co_await run.step(&RelayRecord::text, *its_relay.fallback, run.query().text);
        };
        const auto [timeout, story] = GENERATE(std::pair(10s, "gpt(closed), local, local text"),
                                               std::pair(11s, "gpt(closed), claude, claude text"));
        CHECK(relay.run_one(timeout) == story);
    }
}

TEST_CASE("fallback: so is one whose breaker is open for longer than that, even if it would wait",
          "[fallback][breaker]") {
    RelaySetup setup = relay_with_breakers();
    setup.stages.at(0).while_open = WhileOpen::hold;
    Relay relay(setup);
    relay.gpt.script = [](std::size_t call) {
        if (call == 0) {
            throw std::runtime_error("down");
        }
    };
    CHECK(relay.run_one(4s) == "gpt(deadline), claude, claude text");  // the attempt is spared, and would wait 10 s
    CHECK(relay.run_one(4s) == "claude, claude text");
    CHECK(relay.run_one(30s) == "gpt, gpt text");
}

TEST_CASE("fallback: if a wait would end too late while there is time left, the next member is tried",
          "[fallback][rate]") {
    SECTION("after a throttled call") {
        Relay relay;
        relay.gpt.script = relay_fails(relay_error(Verdict::throttled, 1min));
        CHECK(relay.run_one(30s) == "gpt(deadline), claude, claude text");
        CHECK(relay.result(0).stage_results.at(0).error.message() == "no");
        CHECK(relay.ended.at(0) == 2s);
        CHECK(relay.run_one(30s) == "claude, claude text");  // the pause holds
    }
    SECTION("after a backoff") {
        RelaySetup setup;
        setup.stages.at(0).retry = test::retries(9, 20s);
        Relay relay(setup);
        relay.gpt.script = relay_fails();
        CHECK(relay.run_one(30s) == "gpt(deadline), claude, claude text");
        CHECK(relay.result(0).stage_results.at(0).attempts == 2);
        CHECK(relay.ended.at(0) == 23s);
    }
    SECTION("if the pause begins while it waits in the line") {
        RelaySetup setup;
        setup.endpoints.at(0).limit = 1;
        Relay relay(setup);
        relay.gpt.takes = 5s;
        relay.start();
        const std::size_t second = relay.start(30s);
        relay.run_until(1s);
        relay.endpoints.at(0).pause(1h);
        relay.run();
        CHECK(relay.story(second) == "gpt(deadline), claude, claude text");
        CHECK(relay.ended.at(second) == 2s);
    }
    SECTION("then it has no error of another member") {
        RelaySetup setup;
        setup.endpoints.at(1).limit = 1;
        Relay relay(setup);
        relay.gpt.script = relay.local.script = relay_fails("busy");
        relay.claude.takes = 5s;
        relay.start();
        const std::size_t second = relay.start(30s);
        relay.run_until(2s);
        relay.endpoints.at(1).pause(1h);
        relay.run();
        CHECK(relay.error_of(second) ==
              "all 3 members failed: gpt: busy; claude: the query's timeout of 30000 ms is over; local: busy");
    }
}

TEST_CASE("fallback: a query that is late ends it, with the last error before that", "[fallback]") {
    RelaySetup setup;
    setup.endpoints.at(1).limit = 1;
    Relay relay(setup);
    SECTION("while the first runs") {
        relay.gpt.takes = 1h;
        CHECK(relay.run_one(5s) == "gpt(deadline), dead: gpt");
        CHECK(relay.error_of(0) == "the query's timeout of 5000 ms is over");
        CHECK(relay.claude.calls == 0);
    }
    SECTION("while the second waits in its line") {
        relay.gpt.script = relay_fails("busy");
        relay.claude.takes = 1h;
        relay.start();
        const std::size_t second = relay.start(5s);
        relay.run_until(10s);
        CHECK(relay.story(second) == "gpt(model), claude(deadline), dead: claude");
        CHECK(relay.ended.at(second) == 5s);
        CHECK(relay.error_of(second) == "the query's timeout of 5000 ms is over: busy");
        CHECK(relay.local.calls == 0);
        relay.tasks.at(0).cancel();
        relay.run();
    }
    SECTION("while the second runs") {
        relay.gpt.script = relay_fails("busy");
        relay.claude.takes = 1h;
        CHECK(relay.run_one(5s) == "gpt(model), claude(deadline), dead: claude");
        CHECK(relay.error_of(0) == "the query's timeout of 5000 ms is over: busy");
    }
    SECTION("as the first fails") {
        relay.gpt.takes = 5s;
        relay.gpt.script = relay_fails("busy");
        CHECK(relay.run_one(5s - 1ns) == "gpt(deadline), dead: gpt");
    }
    SECTION("before it begins") {
        CHECK(relay.run_one(0s) == "gpt(deadline), dead: gpt");
        CHECK(relay.gpt.calls == 0);
    }
    SECTION("before it begins, although the member is paused") {
        relay.endpoints.at(0).pause(1h);
        CHECK(relay.run_one(0s) == "gpt(deadline), dead: gpt");
    }
}

TEST_CASE("fallback: a value that is not accepted is not stored, and the next member is tried", "[fallback][accept]") {
    RelayObserver observer;
    RelaySetup setup;
    setup.observer = &observer;
    Relay relay(setup);
    std::vector<std::string> asked;
    relay.route = [&](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const auto picky = its_relay.fallback->accept([&](const std::string& value) {
            asked.push_back(value);
            return value.starts_with("local");
        });
        co_await run.step(&RelayRecord::text, picky, run.query().text);
    };
    CHECK(relay.run_one() == "gpt(not_accepted), claude(not_accepted), local, local text");
    CHECK(asked == std::vector<std::string>{"gpt text", "claude text", "local text"});
    CHECK(relay.sink.saved == std::vector<std::string>{"local text"});
    CHECK(relay.result(0).stage_results.at(0).error.message() == "the fallback 'answer' did not accept the value");
    CHECK(relay.result(0).stage_results.at(0).attempts == 1);
    CHECK(observer.events.at(2) == "gpt ended after a value");
    CHECK(relay.ended.at(0) == 3s);
}

TEST_CASE("fallback: if no value is accepted, the field stays empty and nothing is saved", "[fallback][accept]") {
    Relay relay;
    relay.local.script = relay_fails();
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const auto none = its_relay.fallback->accept([](const std::string&) { return false; });
        co_await run.step(&RelayRecord::text, none, run.query().text);
    };
    CHECK(relay.run_one() == "gpt(not_accepted), claude(not_accepted), local(model), answer(fallback), dead: answer");
    CHECK(relay.sink.saved.empty());
    CHECK(
        relay.error_of(0) ==
        "all 3 members failed: gpt: the fallback 'answer' did not accept the value; claude: the fallback 'answer' did "
        "not accept the value; local: down");
}

TEST_CASE("fallback: a predicate that throws does not accept, and what it threw is the error", "[fallback][accept]") {
    Relay relay;
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const auto picky = its_relay.fallback->accept([](const std::string& value) {
            if (value.starts_with("gpt")) {
                throw std::domain_error("no JSON");
            }
            return true;
        });
        co_await run.step(&RelayRecord::text, picky, run.query().text);
    };
    CHECK(relay.run_one() == "gpt(not_accepted), claude, claude text");
    CHECK(relay.result(0).stage_results.at(0).error.type() == "std::domain_error");
    CHECK(relay.result(0).stage_results.at(0).error.message() == "no JSON");
}

TEST_CASE("fallback: a value that is not accepted is not late, either", "[fallback][accept]") {
    RelaySetup setup;
    setup.stages.at(0).timeout = 500ms;
    Relay relay(setup);
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const auto block = [](const std::string&) -> asio::awaitable<std::string> {
            co_await asio::this_coro::throw_if_cancelled(false);
            co_await asio::this_coro::reset_cancellation_state(
                [](asio::cancellation_type) { return asio::cancellation_type::none; },
                [](asio::cancellation_type) { return asio::cancellation_type::none; });
            co_await test::sleep(1s);
            co_return "late";
        };
        const sluice::Stage stubborn(its_relay.endpoints.at(0), "stubborn", block, StageOptions{.timeout = 500ms});
        const auto picky =
            sluice::Fallback("answer", stubborn, its_relay.stages.at(1)).accept([](const std::string& v) {
                return v != "late";
            });
        co_await run.step(&RelayRecord::text, picky, run.query().text);
    };
    CHECK(relay.run_one() == "stubborn(not_accepted), claude, claude text");
    CHECK_FALSE(relay.result(0).stage_results.at(0).late);
}

TEST_CASE("fallback: a filled field is skipped, and a redriven dead letter begins with the first member",
          "[fallback]") {
    Relay relay;
    relay.gpt.script = relay.claude.script = relay.local.script = [](std::size_t call) {
        if (call == 0) {
            throw std::runtime_error("down");
        }
    };
    std::vector<RelayResult> results;
    const Task<> task(relay.context.get_executor(), [&]() -> asio::awaitable<void> {
        const Query query("1", "text");
        results.push_back(co_await relay.pipeline->process_one(query));
        for (int i = 0; i != 2; ++i) {
            const sluice::Checkpoint<RelayRecord> letter(query, results.back().record);
            results.push_back(co_await relay.pipeline->process_one(letter));
        }
    });
    relay.run();
    REQUIRE(results.size() == 3);
    CHECK(results.at(0).failure()->reason == Reason::fallback);
    CHECK(results.at(1).record.text == "gpt text");
    CHECK(results.at(2).completed);
    CHECK(results.at(2).stage_results.empty());
    CHECK(relay.gpt.calls == 2);
    CHECK(relay.sink.saved == std::vector<std::string>{"gpt text"});
}

TEST_CASE("fallback: step_or_error() returns its error, and the route goes on", "[fallback]") {
    Relay relay;
    relay.gpt.script = relay.claude.script = relay_fails();
    relay.local.script = [](std::size_t call) {
        if (call == 0) {
            throw std::runtime_error("down");
        }
    };
    std::vector<std::string> errors;
    relay.route = [&](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        for (int i = 0; i != 3; ++i) {
            const auto error = co_await run.step_or_error(&RelayRecord::text, *its_relay.fallback, text);
            errors.push_back(error.type());
        }
    };
    CHECK(relay.run_one() ==
          "gpt(model), claude(model), local(model), answer(fallback), gpt(model), claude(model), local, local text");
    CHECK(errors == std::vector<std::string>{"sluice::FallbackError", "", ""});
}

TEST_CASE("fallback: side by side with other steps", "[fallback][all]") {
    Relay relay;
    relay.gpt.script = relay_fails();
    relay.claude.takes = 5s;
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        co_await run.all(run.step(&RelayRecord::text, *its_relay.fallback, text),
                         run.step(&RelayRecord::other, its_relay.stages.at(2), text));
    };
    CHECK(relay.run_one() == "gpt(model), local, claude, claude text");
    CHECK(relay.result(0).record.other == "local text");
    CHECK(relay.ended.at(0) == 6s);
    CHECK(relay.sink.saved == std::vector<std::string>{"nothing", "claude text"});
}

TEST_CASE("fallback: as one of several steps side by side it fails when the others have ended", "[fallback][all]") {
    Relay relay;
    relay.gpt.script = relay.claude.script = relay_fails();
    relay.local.takes = 9s;
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        const sluice::Fallback two("two", its_relay.stages.at(0), its_relay.stages.at(1));
        co_await run.all(run.step(&RelayRecord::text, two, text),
                         run.step(&RelayRecord::other, its_relay.stages.at(2), text));
    };
    CHECK(relay.run_one() == "gpt(model), claude(model), two(fallback), local, dead: two");
    CHECK(relay.result(0).record.other == "local text");
}

TEST_CASE("fallback: observers have the events of each stage run, and the dead letter has its name",
          "[fallback][observer]") {
    RelayObserver observer;
    sluice::Metrics metrics;
    RelaySetup setup;
    setup.observer = &observer;
    setup.stages.at(0).retry = test::retries(1, 1s);
    setup.stages.at(1).observer = &metrics;
    Relay relay(setup);
    relay.gpt.script = relay.claude.script = relay.local.script = relay_fails();
    relay.run_one();
    CHECK(observer.events == std::vector<std::string>{"gpt queued", "gpt started", "gpt failed", "gpt retry",
                                                      "gpt queued", "gpt started", "gpt failed", "gpt ended",
                                                      "local queued", "local started", "local failed", "local ended",
                                                      "answer dead"});
    const auto snapshot = metrics.snapshot();
    REQUIRE(snapshot.stages.size() == 1);
    CHECK(snapshot.stages.at(0).failed == 1);
}

TEST_CASE("fallback: metrics count a value that was not accepted as a failed stage run", "[fallback][observer]") {
    sluice::Metrics metrics;
    RelaySetup setup;
    setup.observer = &metrics;
    Relay relay(setup);
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const auto none = its_relay.fallback->accept([](const std::string&) { return false; });
        co_await run.step(&RelayRecord::text, none, run.query().text);
    };
    relay.run_one();
    const auto snapshot = metrics.snapshot();
    REQUIRE(snapshot.stages.size() == 3);
    for (const auto& stage : snapshot.stages) {
        CHECK(stage.entered == 1);
        CHECK(stage.failed == 1);
        CHECK(stage.failed_attempts == 0);
        CHECK(stage.queued + stage.running + stage.in_backoff == 0);
        CHECK(stage.latency.count() == 1);
    }
    REQUIRE(snapshot.dead_letters.size() == 1);
    CHECK(snapshot.dead_letters.at(0).stage == "answer");
    CHECK(snapshot.dead_letters.at(0).dead_letters_because(Reason::fallback) == 1);
}

TEST_CASE("fallback: observers are told of each member that is skipped, and why", "[fallback][observer]") {
    RelayObserver observer;
    RelaySetup setup = relay_with_breakers();
    setup.observer = &observer;
    SECTION("even if it is the last; a member that waits is not skipped") {
        setup.stages.at(1).while_open = WhileOpen::hold;
        Relay relay(setup);
        relay.endpoints.at(0).pause(10s);
        relay.endpoints.at(1).breaker().force_open();
        relay.endpoints.at(2).pause(10s);
        const std::size_t query = relay.start(9s);
        relay.run();
        CHECK(relay.story(query) == "claude(deadline), dead: claude");
        CHECK(observer.events ==
              std::vector<std::string>{"gpt skipped for id: deadline", "claude queued", "claude ended", "claude dead"});
    }
    SECTION("also if all are") {
        Relay relay(setup);
        relay.endpoints.at(0).breaker().force_open();
        relay.endpoints.at(1).pause(10s);
        relay.endpoints.at(2).pause(10s);
        CHECK(relay.run_one(9s) == "answer(fallback), dead: answer");
        CHECK(observer.events == std::vector<std::string>{"gpt skipped for id: breaker_open",
                                                          "claude skipped for id: deadline",
                                                          "local skipped for id: deadline", "answer dead"});
    }
    SECTION("the time that its breaker stays open counts as a pause, if it would wait for that") {
        setup.stages.at(0).while_open = WhileOpen::hold;
        Relay relay(setup);
        relay.gpt.script = relay_fails();
        relay.run_one(4s);
        observer.events.clear();
        CHECK(relay.run_one(4s) == "claude, claude text");
        CHECK(observer.events.at(0) == "gpt skipped for id: deadline");
    }
    SECTION("none is skipped if all can serve, or if the query is late") {
        Relay relay(setup);
        relay.run_one();
        relay.endpoints.at(0).breaker().force_open();
        relay.run_one(0s);
        for (const std::string& event : observer.events) {
            CHECK(event.find("skipped") == std::string::npos);
        }
    }
}

TEST_CASE("fallback: the observer of a stage is told that it was skipped, and not that of the pipeline",
          "[fallback][observer]") {
    RelayObserver own;
    RelayObserver observer;
    RelaySetup setup = relay_with_breakers();
    setup.observer = &observer;
    setup.stages.at(0).observer = &own;
    Relay relay(setup);
    relay.endpoints.at(0).breaker().force_open();
    relay.endpoints.at(1).breaker().force_open();
    CHECK(relay.run_one() == "local, local text");
    CHECK(own.events == std::vector<std::string>{"gpt skipped for id: breaker_open"});
    CHECK(observer.events.at(0) == "claude skipped for id: breaker_open");
}

TEST_CASE("fallback: what an observer does when a member is skipped counts for the next one", "[fallback][observer]") {
    RelayObserver observer;
    RelaySetup setup = relay_with_breakers();
    setup.observer = &observer;
    Relay relay(setup);
    relay.endpoints.at(0).breaker().force_open();
    SECTION("its breaker") {
        relay.endpoints.at(1).breaker().force_open();
        observer.on_skip = [&] { relay.endpoints.at(1).breaker().reset(); };
        CHECK(relay.run_one() == "claude, claude text");
    }
    SECTION("it may drop the handles to the stages") {
        relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
            auto step = [&] {
                return run.step(&RelayRecord::text,
                                sluice::Fallback("other", its_relay.stages.at(0), its_relay.stages.at(1)),
                                std::string(run.query().text));
            };
            co_await step();
        };
        observer.on_skip = [&] {
            relay.fallback.reset();
            relay.stages.clear();
            relay.endpoints.clear();
        };
        CHECK(relay.run_one() == "claude, claude text");
    }
}

TEST_CASE("fallback: a query that is cancelled when a member is skipped calls no further one, and is no dead letter",
          "[fallback][observer][cancellation]") {
    RelayObserver observer;
    RelaySetup setup = relay_with_breakers();
    setup.observer = &observer;
    setup.stages.at(2).while_open = WhileOpen::fail;
    const std::size_t skipped = GENERATE(1U, 2U, 3U);
    Relay relay(setup);
    for (std::size_t i = 0; i != skipped; ++i) {
        relay.endpoints.at(i).breaker().force_open();
    }
    observer.on_skip = [&] {
        if (observer.events.size() == skipped) {
            relay.tasks.at(0).cancel();
        }
    };
    const bool throws = GENERATE(true, false);
    relay.route = [throws](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        co_await test::sleep(1s);  // see Task
        co_await asio::this_coro::throw_if_cancelled(throws);
        co_await run.step(&RelayRecord::text, *its_relay.fallback, run.query().text);
    };
    relay.start();
    relay.run();
    CHECK(relay.tasks.at(0).aborted());
    CHECK(observer.events.size() == skipped);
    CHECK(relay.gpt.calls + relay.claude.calls + relay.local.calls == 0);
    CHECK(relay.sink.letters.empty());
}

TEST_CASE("fallback: metrics count a member that was skipped, which has no stage run", "[fallback][observer]") {
    sluice::Metrics metrics;
    RelaySetup setup = relay_with_breakers();
    setup.observer = &metrics;
    Relay relay(setup);
    relay.endpoints.at(0).breaker().force_open();
    relay.run_one();
    relay.run_one();
    const auto snapshot = metrics.snapshot();
    REQUIRE(snapshot.stages.size() == 2);
    CHECK(snapshot.stages.at(0).stage == "claude");
    CHECK(snapshot.stages.at(0).skipped == 0);
    CHECK(snapshot.stages.at(0).succeeded == 2);
    CHECK(snapshot.stages.at(1).stage == "gpt");
    CHECK(snapshot.stages.at(1).skipped == 2);
    CHECK(snapshot.stages.at(1).entered == 0);
}

TEST_CASE("fallback: cancelled at every step it ends aborted, and calls no further member",
          "[fallback][cancellation]") {
    const auto type = test::any_cancellation();
    const int calls = test::for_every_step(
        [&](test::Steps& steps) {
            RelaySetup setup = relay_with_breakers();
            setup.stages.at(0).retry = test::retries(1, 1s);
            setup.endpoints.at(0).breaker.reset();
            Relay relay(setup);
            relay.gpt.script = relay.claude.script = relay_fails();
            relay.start();
            steps.take(relay.context);
            const std::size_t before = relay.gpt.calls + relay.claude.calls + relay.local.calls;
            const bool done = relay.tasks.at(0).done();
            relay.tasks.at(0).cancel(type);
            relay.run();
            CHECK(relay.gpt.calls + relay.claude.calls + relay.local.calls == before);
            if (!done) {
                CHECK((relay.tasks.at(0).aborted() || relay.tasks.at(0).succeeded()));
                CHECK(relay.sink.letters.empty());
                if (relay.tasks.at(0).succeeded()) {
                    CHECK(relay.result(0).completed);
                }
            }
        },
        1);
    CHECK(calls > 5);
}

TEST_CASE("fallback: its context destroyed at every step", "[fallback][shutdown]") {
    const bool accepts = GENERATE(true, false);
    test::for_every_step([&](test::Steps& steps) {
        RelaySetup setup = relay_with_breakers();
        setup.stages.at(0).retry = test::retries(1, 1s);
        setup.stages.at(1).timeout = 500ms;
        auto relay = std::make_unique<Relay>(setup);
        relay->gpt.script = relay_fails();
        relay->route = [accepts](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
            const auto picky = its_relay.fallback->accept([accepts](const std::string&) { return accepts; });
            co_await run.step(&RelayRecord::text, picky, run.query().text);
        };
        relay->start();
        relay->start(3s);
        steps.take(relay->context);
    });
}

TEST_CASE("fallback: destroyed in a step, a handle may go before its stage run ends", "[fallback][shutdown]") {
    Relay relay;
    relay.gpt.script = relay_fails();
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        auto step = [&] {
            return run.step(&RelayRecord::text,
                            sluice::Fallback("other", its_relay.stages.at(0), its_relay.stages.at(1)),
                            std::string(run.query().text));
        };
        co_await step();
    };
    const std::size_t query = relay.start();
    relay.run_until(500ms);
    relay.fallback.reset();
    relay.stages.clear();
    relay.run();
    CHECK(relay.story(query) == "gpt(model), claude, claude text");
}

TEST_CASE("fallback: a cancellation while the predicate runs is not lost", "[fallback][cancellation]") {
    Relay relay;
    const bool accepts = GENERATE(true, false);
    std::size_t asked = 0;
    relay.route = [&](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const auto picky = its_relay.fallback->accept([&](const std::string&) {
            if (++asked == 3) {
                its_relay.tasks.at(0).cancel();
            }
            return asked == 3 && accepts;
        });
        co_await run.step(&RelayRecord::text, picky, run.query().text);
    };
    relay.start();
    relay.run();
    CHECK(relay.local.calls == 1);
    CHECK(relay.sink.letters.empty());
    if (accepts) {
        CHECK(relay.story(0) == "gpt(not_accepted), claude(not_accepted), local, local text");
    } else {
        CHECK(relay.tasks.at(0).aborted());
    }
}

TEST_CASE("fallback: nor is it if the route swallows it", "[fallback][cancellation]") {
    Relay relay;
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const auto picky = its_relay.fallback->accept([&](const std::string&) {
            its_relay.tasks.at(0).cancel();
            return false;
        });
        try {
            co_await run.step(&RelayRecord::text, picky, run.query().text);
        } catch (...) {
            run->text = "swallowed";
        }
    };
    relay.start();
    relay.run();
    CHECK(relay.tasks.at(0).aborted());
    CHECK(relay.gpt.calls == 1);
    CHECK(relay.claude.calls == 0);
}

TEST_CASE("fallback: cut short by the route, it leaves the field empty, and the query may go on",
          "[fallback][cancellation]") {
    Relay relay;
    relay.gpt.script = relay_fails();
    relay.claude.takes = 1h;
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        try {
            co_await sluice::with_timeout<VirtualTimer>(5s, [&]() -> asio::awaitable<void> {
                co_await run.step(&RelayRecord::text, *its_relay.fallback, run.query().text);
            });
        } catch (const sluice::TimeoutError&) {
            CHECK_FALSE(run->text);
        }
        run->text = "none";
    };
    CHECK(relay.run_one() == "gpt(model), claude(none), none");
}

TEST_CASE("fallback: a drain ends the backoff of a member, and the query is unfinished", "[fallback][drain]") {
    RelaySetup setup;
    setup.stages.at(1).retry = test::retries(1, 1min);
    Relay relay(setup);
    relay.gpt.script = relay.claude.script = relay_fails();
    const std::size_t query = relay.start();
    relay.run_until(5s);
    Task<sluice::DrainReport<RelayRecord>> report(relay.context.get_executor(),
                                                  [&] { return relay.pipeline->drain(10s); });
    relay.run();
    CHECK(relay.ended.at(query) == 5s);
    CHECK(relay.result(query).unfinished);
    CHECK(relay.local.calls == 0);
    CHECK(report.value().unfinished == 1);
    CHECK(relay.sink.letters.empty());
}

TEST_CASE("fallback: the grace of a drain lets the next member run", "[fallback][drain]") {
    Relay relay;
    relay.gpt.script = relay_fails();
    relay.claude.takes = GENERATE(5s, 1h);
    const std::size_t query = relay.start();
    relay.run_until(500ms);
    Task<sluice::DrainReport<RelayRecord>> report(relay.context.get_executor(),
                                                  [&] { return relay.pipeline->drain(10s); });
    relay.run();
    const bool in_time = relay.claude.takes == 5s;
    CHECK(relay.result(query).completed == in_time);
    CHECK(relay.result(query).unfinished == !in_time);
}

TEST_CASE("fallback: in the backoff of a member the query leaves its place in the window", "[fallback]") {
    RelaySetup setup;
    setup.window = 1;
    setup.stages.at(0).retry = test::retries(1, 10s);
    Relay relay(setup);
    relay.gpt.script = [](std::size_t call) {
        if (call != 1) {
            throw std::runtime_error("down");
        }
    };
    std::vector<RelayResult> results;
    const Task<> task(relay.context.get_executor(), [&]() -> asio::awaitable<void> {
        const std::vector<Query> queries{Query("1", "a"), Query("2", "b")};
        results = co_await relay.pipeline->process_batch(queries);
    });
    relay.run();
    REQUIRE(results.size() == 2);
    CHECK(results.at(0).record.text == "claude a");
    CHECK(results.at(1).record.text == "gpt b");
    CHECK(test::now(relay.context) == 13s);
}

TEST_CASE("fallback: a step that was cut short in a backoff comes back before the fallback calls a member",
          "[fallback]") {
    RelaySetup setup;
    setup.window = 1;
    setup.stages.at(2).retry = test::retries(1, 1h);
    Relay relay(setup);
    relay.local.script = relay_fails();
    relay.gpt.takes = 10s;
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const std::string& text = run.query().text;
        if (text == "a") {
            try {
                co_await sluice::with_timeout<VirtualTimer>(5s, [&]() -> asio::awaitable<void> {
                    co_await run.step(&RelayRecord::other, its_relay.stages.at(2), text);
                });
            } catch (const sluice::TimeoutError&) {
            }
        }
        co_await run.step(&RelayRecord::text, *its_relay.fallback, text);
    };
    std::vector<RelayResult> results;
    const Task<> task(relay.context.get_executor(), [&]() -> asio::awaitable<void> {
        const std::vector<Query> queries{Query("1", "a"), Query("2", "b")};
        results = co_await relay.pipeline->process_batch(queries);
    });
    relay.run();
    REQUIRE(results.size() == 2);
    CHECK(results.at(0).record.text == "gpt a");
    CHECK(results.at(1).record.text == "gpt b");
    CHECK(test::now(relay.context) == 21s);  // a: until 1 s; b: until 11 s; a: until 21 s
}

TEST_CASE("fallback: members may return different types, take an Attempt&, and see the same arguments", "[fallback]") {
    struct Letter {
        std::optional<std::string> text;
        std::optional<std::string> draft = "draft";
    };
    RelaySink sink;
    asio::io_context context(1);
    std::vector<std::string> seen;
    const auto note = [&](const auto& text, const auto& draft, const std::unique_ptr<int>& number) {
        seen.push_back(text + std::string(" ") + draft + " " + std::to_string(*number));
    };
    const auto words = [&](const std::string& text, const std::string& draft,
                           const std::unique_ptr<int>& number) -> asio::awaitable<const char*> {
        note(text, draft, number);
        throw std::runtime_error("down");
        co_return "";
    };
    const auto careful = [&](const std::string& text, const std::string& draft, const std::unique_ptr<int>& number,
                             sluice::Attempt& attempt) -> asio::awaitable<std::string> {
        note(text, draft, number);
        co_return text + (attempt.number() == 1 ? " careful" : "");
    };
    const sluice::Stage first(timed(context.get_executor()), "words", 1, words,
                              StageOptions{.timeout = 1s, .retry = {.max_retries = 1}});
    const sluice::Stage second(timed(context.get_executor()), "careful", 1, careful);
    const sluice::Fallback either("either", first, second);
    test::DeadLetters letters;
    sluice::Pipeline pipeline(
        timed(context.get_executor()),
        [either](sluice::Run<Letter>& run) -> asio::awaitable<void> {
            co_await run.step(&Letter::text, either, run.query().text, &Letter::draft, std::make_unique<int>(7));
        },
        letters, 1);
    Task<sluice::RecordResult<Letter>> task(context.get_executor(),
                                            [&] { return pipeline.process_one(Query("1", "t")); });
    sluice::testing::run(context);
    CHECK(task.value().record.text == "t careful");
    CHECK(seen == std::vector<std::string>{"t draft 7", "t draft 7", "t draft 7"});
}

TEST_CASE("fallback: the same stage may be a member of several, and another name tells them apart", "[fallback]") {
    Relay relay;
    relay.gpt.script = relay.claude.script = relay_fails();
    relay.route = [](Relay& its_relay, RelayRun& run) -> asio::awaitable<void> {
        const sluice::Fallback one("one", its_relay.stages.at(0), its_relay.stages.at(1));
        const sluice::Fallback two("two", its_relay.stages.at(1), its_relay.stages.at(2));
        co_await run.step_or_error(&RelayRecord::text, one, run.query().text);
        co_await run.step(&RelayRecord::text, two, run.query().text);
    };
    CHECK(relay.run_one() == "gpt(model), claude(model), one(fallback), claude(model), local, local text");
}
