// SPDX-License-Identifier: BSL-1.0
// What an EndpointObserver is told.
#include <sluice/stage/endpoint_observer.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/testing/run.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::BreakerOptions;
using sluice::BreakerStatus;
using sluice::EndpointOptions;
using sluice::Rate;
using sluice::StageOptions;
using sluice::WhileOpen;
using test::VirtualTimer;
using Answered = sluice::StageResult<std::string>;
using Strings = std::vector<std::string>;

// Opens after two failures of two, for 10 s without jitter, and closes after two probes.
constexpr BreakerOptions nervous{.minimum_calls = 2, .jitter = 0};

std::string text_of(std::chrono::nanoseconds time) {
    return std::to_string(std::chrono::duration_cast<std::chrono::milliseconds>(time).count()) + " ms";
}

// Writes down what it is told, and does what the test says.
struct EventLog : sluice::EndpointObserver {
    Strings events;
    std::vector<BreakerStatus> changes;
    std::function<void()> then = [] {};

    void on_paused(const sluice::SharedString& endpoint, std::chrono::nanoseconds remaining,
                   std::chrono::nanoseconds before) noexcept override {
        events.push_back(endpoint.str() + " paused for " + text_of(remaining) + ", before " + text_of(before));
        then();
        CHECK(endpoint == "gpt");  // even if `then` has dropped the last handle
    }
    void on_breaker(const sluice::SharedString& endpoint, BreakerStatus::State before,
                    const BreakerStatus& after) noexcept override {
        events.push_back(endpoint.str() + " " + std::string(to_string(before)) + " -> " +
                         std::string(to_string(after.state)) + ", " + std::string(to_string(after.cause)));
        changes.push_back(after);
        then();
        CHECK(endpoint == "gpt");
    }

    Strings take() { return std::exchange(events, {}); }
};

// A provider that `decide` makes fail: it gets the number of the call, and may throw.
struct WatchedModel {
    std::function<void(int, sluice::Attempt&)>* decide;
    int* calls;

    asio::awaitable<std::string> operator()(const std::string& text, sluice::Attempt& attempt) const {
        return call(*decide, (*calls)++, text, attempt);
    }
    static asio::awaitable<std::string> call(std::function<void(int, sluice::Attempt&)>& decide, int number,
                                             std::string text, sluice::Attempt& attempt) {
        co_await test::sleep(10ms);
        decide(number, attempt);
        co_return text;
    }
};

struct ObservedEndpoint {
    EventLog log;
    std::function<void(int, sluice::Attempt&)> decide = [](int, sluice::Attempt&) {};
    int calls = 0;
    std::optional<asio::io_context> context{1};
    std::optional<sluice::Endpoint<VirtualTimer>> endpoint;
    std::optional<sluice::Stage<WatchedModel, VirtualTimer>> stage;
    std::deque<test::Task<Answered>> tasks;

    explicit ObservedEndpoint(EndpointOptions options, const StageOptions& of_stage = {}) {
        options.limit = std::max<std::ptrdiff_t>(options.limit, 1);
        options.observer = &log;
        endpoint.emplace(test::timed(context->get_executor()), "gpt", options);
        stage.emplace(*endpoint, "reply", WatchedModel{&decide, &calls}, of_stage);
    }

    std::size_t start() {
        tasks.emplace_back(context->get_executor(), [copy = *stage] { return copy.run("id", std::string("text")); });
        return tasks.size() - 1;
    }
    void start(int n) {
        for (; n != 0; --n) {
            start();
        }
    }
    void run() { sluice::testing::run(*context); }
    void run_until(std::chrono::nanoseconds time) { test::run_until(*context, time); }

    // Runs two calls that fail, and cancels the one that would wait.
    void open() {
        decide = [](int, sluice::Attempt&) { throw std::runtime_error("down"); };
        const std::size_t first = tasks.size();
        start(2);
        run_until(test::now(*context) + 10ms);
        tasks[first].cancel();
        tasks[first + 1].cancel();
        run_until(test::now(*context));
        decide = [](int, sluice::Attempt&) {};
    }
};

// No templates: see RetryDecision.
sluice::ModelError wait_a_while(std::chrono::nanoseconds retry_after) {
    return sluice::ModelError("slow down", {.kind = sluice::Verdict::throttled, .retry_after = retry_after}, 429);
}
sluice::ModelError no_money() { return sluice::ModelError("no credit", {.kind = sluice::Verdict::exhausted}, 402); }

// Calls of an endpoint's functions, as a person makes them; a breaker that there is not is left alone.
void act_on(sluice::Endpoint<VirtualTimer>& endpoint, int action, bool has_breaker) {
    switch (action) {
        case 0:
            return endpoint.set_limit(endpoint.limit() == 2 ? 1 : 2);
        case 1:
            return endpoint.set_rate(Rate::requests, Rate(50, 1s, 5));
        case 2:
            return endpoint.set_rate(Rate::requests, Rate::unlimited);
        case 3:
            return endpoint.pause(100ms);
        case 4:
            return endpoint.set_limit(1);
        case 5:
            return has_breaker ? endpoint.breaker().force_open() : void();
        case 6:
            return has_breaker ? endpoint.breaker().force_closed() : void();
        case 7:
            return has_breaker ? endpoint.breaker().reset() : void();
        default:
            return endpoint.close();
    }
}

}  // namespace

// Pauses

TEST_CASE("endpoint observer: a pause that a provider asks for", "[endpoint][observer]") {
    ObservedEndpoint bench({.limit = 4});
    bench.decide = [](int call, sluice::Attempt& attempt) {
        if (call == 0) {
            throw wait_a_while(5s);
        }
        if (call == 1) {
            attempt.remaining(0, 7s);
        }
        if (call == 2) {
            attempt.remaining(3, 60s);  // some are left
        }
    };
    bench.start(3);
    bench.run();
    CHECK(bench.log.take() == Strings{"gpt paused for 5000 ms, before 0 ms", "gpt paused for 7000 ms, before 5000 ms"});
    bench.decide = [](int, sluice::Attempt& attempt) { attempt.pause(1h); };
    bench.start();
    bench.run();
    CHECK(bench.log.take() == Strings{"gpt paused for 120000 ms, before 0 ms"});
}

TEST_CASE("endpoint observer: only a pause that ends later than the one before is told", "[endpoint][observer]") {
    ObservedEndpoint bench({});
    bench.endpoint->pause(0s);
    bench.endpoint->pause(-1s);
    CHECK(bench.log.take().empty());
    bench.endpoint->pause(5s);
    bench.endpoint->pause(5s);
    bench.endpoint->pause(4s);
    CHECK(bench.log.take() == Strings{"gpt paused for 5000 ms, before 0 ms"});
    bench.run_until(2s);
    bench.endpoint->pause(3s);
    CHECK(bench.log.take().empty());
    bench.endpoint->pause(3s + 1ms);
    CHECK(bench.log.take() == Strings{"gpt paused for 3001 ms, before 3000 ms"});
    bench.run_until(6s);
    bench.endpoint->pause(std::chrono::nanoseconds::max());
    CHECK(bench.log.take() == Strings{"gpt paused for 9223372030854 ms, before 0 ms"});
}

// Breakers

TEST_CASE("endpoint observer: a breaker opens, probes and closes, each told once and in order",
          "[endpoint][observer][breaker]") {
    ObservedEndpoint bench({.limit = 2, .breaker = nervous});
    bench.decide = [](int call, sluice::Attempt&) {
        if (call < 4) {
            throw std::runtime_error("down");
        }
    };
    bench.start(5);
    bench.run_until(10s);
    CHECK(bench.log.take() == Strings{"gpt closed -> open, failure_rate"});
    CHECK(bench.log.changes.back().calls == 2);
    CHECK(bench.log.changes.back().failure_rate == 1);
    CHECK(bench.log.changes.back().remaining == 10s);
    CHECK(bench.log.changes.back().openings == 1);
    bench.run_until(10s + 15ms);
    CHECK(bench.log.take() == Strings{"gpt open -> half_open, open_time_ended"});
    bench.run_until(29s);
    CHECK(bench.log.take() == Strings{"gpt half_open -> open, probes_failed"});
    CHECK(bench.log.changes.back().remaining == 20s);
    CHECK(bench.log.changes.back().openings == 2);
    bench.run();
    CHECK(bench.log.take() ==
          Strings{"gpt open -> half_open, open_time_ended", "gpt half_open -> closed, probes_succeeded"});
    CHECK(bench.calls == 8);  // the first two and two probes failed, the first of them for good
}

TEST_CASE("endpoint observer: why a breaker opens", "[endpoint][observer][breaker]") {
    BreakerOptions options = nervous;
    options.slow = 9ms;
    ObservedEndpoint bench({.limit = 2, .breaker = options});
    SECTION("slow calls") {
        bench.start(2);
        bench.run();
        CHECK(bench.log.take() == Strings{"gpt closed -> open, slow_rate"});
    }
    SECTION("failed calls that were slow, too") {
        bench.open();
        CHECK(bench.log.take() == Strings{"gpt closed -> open, failure_rate"});
    }
    SECTION("an exhausted account, found by a call and by a probe") {
        bench.decide = [](int, sluice::Attempt&) { throw no_money(); };
        bench.start();
        bench.run_until(10s + 10ms);
        bench.start();
        bench.run();
        CHECK(bench.log.take() == Strings{"gpt closed -> open, exhausted", "gpt open -> half_open, open_time_ended",
                                          "gpt half_open -> open, exhausted"});
    }
    SECTION("slow probes") {
        bench.open();
        bench.run_until(11s);
        bench.start(2);
        bench.run();
        CHECK(bench.log.events.back() == "gpt half_open -> open, probes_failed");
    }
}

TEST_CASE("endpoint observer: a person forces and resets a breaker", "[endpoint][observer][breaker]") {
    ObservedEndpoint bench({.limit = 2, .breaker = nervous});
    bench.endpoint->breaker().reset();
    bench.endpoint->breaker().force_open();
    bench.endpoint->breaker().force_open();
    CHECK(bench.log.changes.back().forced);
    bench.endpoint->breaker().force_closed();
    CHECK(bench.log.changes.back().forced);
    bench.endpoint->breaker().reset();
    CHECK_FALSE(bench.log.changes.back().forced);
    CHECK(bench.log.take() == Strings{"gpt closed -> closed, reset", "gpt closed -> open, forced",
                                      "gpt open -> open, forced", "gpt open -> closed, forced",
                                      "gpt closed -> closed, reset"});
    CHECK(bench.log.changes.back().openings == 1);
    bench.open();
    bench.run_until(11s);  // no call has found it half-open
    bench.endpoint->breaker().force_open();
    CHECK(bench.log.take() == Strings{"gpt closed -> open, failure_rate", "gpt open -> open, forced"});
}

TEST_CASE("endpoint observer: a probe tells whether it waits in line or finds nobody there",
          "[endpoint][observer][breaker]") {
    ObservedEndpoint bench({.limit = 2, .breaker = nervous});
    bench.open();
    CHECK(bench.log.take() == Strings{"gpt closed -> open, failure_rate"});
    const bool waits = GENERATE(false, true);
    if (waits) {
        bench.start();
    }
    bench.run_until(10s + 15ms);
    CHECK(bench.log.take() == (waits ? Strings{"gpt open -> half_open, open_time_ended"} : Strings{}));
    if (!waits) {
        bench.start();
        bench.run();
        CHECK(bench.log.take() == Strings{"gpt open -> half_open, open_time_ended"});
    }
    CHECK(bench.log.changes.back().elapsed == 0s);
    CHECK(bench.calls == 3);
}

TEST_CASE("endpoint observer: in an event, the endpoint has changed as a whole", "[endpoint][observer][breaker]") {
    ObservedEndpoint bench({.limit = 2, .breaker = nervous}, {.while_open = WhileOpen::fail});
    bench.decide = [](int call, sluice::Attempt&) {
        if (call < 2) {
            throw std::runtime_error("down");
        }
    };
    int told = 0;
    bench.log.then = [&] {
        ++told;
        CHECK(bench.endpoint->waiting() == 0);  // refused
        CHECK(bench.endpoint->breaker().status().state == BreakerStatus::open);
    };
    bench.start(6);
    bench.run();
    CHECK(told == 1);
    CHECK(bench.calls == 3);  // the third began between the two that failed
    CHECK(std::ranges::count_if(bench.tasks,
                                [](auto& task) { return task.value().reason == sluice::Reason::breaker_open; }) == 3);
}

TEST_CASE("endpoint observer: without one, and without policies, nothing is told", "[endpoint][observer]") {
    ObservedEndpoint bench({.limit = 2});
    bench.start(5);
    bench.run();
    bench.endpoint->set_limit(3);
    bench.endpoint->set_rate(Rate::requests, Rate(1, 1s));
    bench.endpoint->close();
    CHECK(bench.log.take().empty());
    CHECK(EndpointOptions().observer == nullptr);
}

// Re-entry

TEST_CASE("endpoint observer: an event may cause another, which comes before it has returned",
          "[endpoint][observer][breaker]") {
    ObservedEndpoint bench({.limit = 2, .breaker = nervous});
    int depth = 0;
    bench.log.then = [&] {
        if (++depth == 1) {
            bench.endpoint->pause(1s);
            CHECK(bench.log.events.size() == 2);
            bench.endpoint->breaker().force_closed();
            CHECK(bench.log.events.size() == 3);
        }
    };
    bench.open();
    CHECK(bench.log.take() == Strings{"gpt closed -> open, failure_rate", "gpt paused for 1000 ms, before 0 ms",
                                      "gpt open -> closed, forced"});
    bench.start();
    bench.run();
    CHECK(bench.tasks.back().value().success);
    CHECK(bench.tasks.back().value().queue_time == 1s);
}

TEST_CASE("endpoint observer: an event may close the endpoint, or cancel a query that waits",
          "[endpoint][observer][breaker]") {
    ObservedEndpoint bench({.limit = 2, .breaker = nervous});
    const bool closes = GENERATE(false, true);
    bench.log.then = [&] {
        if (closes) {
            bench.endpoint->close();
        } else {
            for (auto& task : bench.tasks) {
                task.cancel();
            }
        }
    };
    bench.decide = [](int, sluice::Attempt&) { throw std::runtime_error("down"); };
    bench.start(5);
    bench.run();
    CHECK(bench.log.take() == Strings{"gpt closed -> open, failure_rate"});
    CHECK(bench.calls == (closes ? 3 : 2));  // the third was granted a slot between the two that failed
    CHECK(bench.endpoint->active() == 0);
    CHECK(bench.endpoint->waiting() == 0);
    for (std::size_t i = 3; i != 5; ++i) {
        CHECK((closes ? bench.tasks[i].value().reason == sluice::Reason::closed : bench.tasks[i].aborted()));
    }
}

TEST_CASE("endpoint observer: an event may drop the last handle to the endpoint", "[endpoint][observer]") {
    ObservedEndpoint bench({.limit = 2, .breaker = nervous});
    std::optional<sluice::Breaker> breaker;
    bench.log.then = [&] {
        bench.stage.reset();
        bench.endpoint.reset();
        breaker.reset();
    };
    const int action = GENERATE(0, 1, 2, 3, 4);
    if (action == 0) {
        bench.endpoint->pause(1s);
    } else if (action == 1) {
        bench.endpoint->breaker().force_open();
    } else if (action == 2) {
        bench.endpoint->breaker().reset();
    } else if (action == 3) {
        breaker = bench.endpoint->breaker();
        breaker->force_open();
    } else {
        bench.open();
    }
    CHECK(bench.log.events.size() == 1);
    CHECK_FALSE(bench.endpoint);
    bench.run();
}

TEST_CASE("endpoint observer: an event may do anything to the endpoint, at every event",
          "[endpoint][observer][breaker]") {
    const int action = GENERATE(0, 1, 2, 3, 4, 5, 6, 7, 8);
    const bool fails = GENERATE(false, true);
    ObservedEndpoint bench({.limit = 2, .requests = Rate(100, 1s, 3), .breaker = nervous},
                           {.retry = test::retries(1), .while_open = fails ? WhileOpen::fail : WhileOpen::hold});
    bench.decide = [](int call, sluice::Attempt& attempt) {
        if (call % 3 == 2) {
            throw std::runtime_error("down");
        }
        if (call % 7 == 6) {
            attempt.pause(50ms);
        }
    };
    int depth = 0;
    bench.log.then = [&] {
        if (depth++ < 20) {  // or it would never end
            act_on(*bench.endpoint, action, true);
        }
    };
    bench.start(12);
    sluice::testing::run_until_stalled(*bench.context);  // until it is reset, if it was forced open
    bench.log.then = [] {};
    bench.endpoint->breaker().reset();
    bench.run();
    CHECK(depth > 0);
    CHECK(bench.endpoint->active() == 0);
    CHECK(bench.endpoint->waiting() == 0);
    for (const auto& task : bench.tasks) {
        CHECK(task.succeeded());
    }
}

TEST_CASE("endpoint observer: the events are a chain, whatever happens", "[endpoint][observer][breaker]") {
    for (unsigned seed = 0; seed != 200; ++seed) {
        INFO("seed " << seed);
        std::minstd_rand random(seed);
        ObservedEndpoint bench({.limit = 2, .requests = Rate(100, 1s, 3), .breaker = nervous},
                               {.retry = test::retries(1)});
        bench.decide = [&](int, sluice::Attempt& attempt) {
            const auto outcome = random() % 6;
            if (outcome < 3) {
                throw std::runtime_error("down");
            }
            if (outcome == 3) {
                attempt.pause(std::chrono::milliseconds(random() % 100));
            }
        };
        int left = 30;
        bench.log.then = [&] {
            if (random() % 4 == 0 && left-- > 0) {
                act_on(*bench.endpoint, static_cast<int>(random() % 8), true);
            }
        };
        for (int step = 1; step != 30; ++step) {
            if (random() % 4 == 0) {
                act_on(*bench.endpoint, static_cast<int>(random() % 8), true);
            }
            if (random() % 6 == 0 && !bench.tasks.empty()) {
                bench.tasks[random() % bench.tasks.size()].cancel();
            }
            bench.start(static_cast<int>(random() % 3));
            bench.run_until(step * std::chrono::seconds(1 + random() % 2));
        }
        bench.log.then = [] {};
        bench.endpoint->breaker().reset();
        bench.decide = [](int, sluice::Attempt&) {};
        bench.run();
        CHECK(bench.endpoint->active() == 0);
        CHECK(bench.endpoint->waiting() == 0);
        std::string state = "closed";
        for (const std::string& event : bench.log.events) {
            if (event.find(" -> ") == std::string::npos) {
                continue;
            }
            const std::size_t arrow = event.find(" -> ");
            CHECK(event.substr(4, arrow - 4) == state);
            state = event.substr(arrow + 4, event.find(',') - arrow - 4);
        }
        CHECK(state == to_string(bench.endpoint->breaker().status().state));
        std::uint64_t openings = 0;
        for (std::size_t i = 0; i != bench.log.changes.size(); ++i) {
            const BreakerStatus& change = bench.log.changes[i];
            openings += change.state == BreakerStatus::open &&
                        (i == 0 || bench.log.changes[i - 1].state != BreakerStatus::open);
            CHECK((i == 0 || bench.log.changes[i - 1].generation < change.generation));
        }
        CHECK(bench.endpoint->breaker().status().openings >= openings);
    }
}

TEST_CASE("endpoint observer: the context is destroyed at every step", "[endpoint][observer][shutdown]") {
    test::for_every_step([](test::Steps& steps) {
        ObservedEndpoint bench({.limit = 2, .requests = Rate(100, 1s, 1), .breaker = nervous},
                               {.retry = test::retries(1)});
        bench.decide = [](int call, sluice::Attempt&) {
            if (call < 4) {
                throw std::runtime_error("down");
            }
        };
        bench.log.then = [&] {
            if (bench.log.events.size() < 5) {
                bench.endpoint->pause(10ms);
                bench.endpoint->set_limit(3);
            }
        };
        bench.start(5);
        steps.take(*bench.context);
        bench.context.reset();
        bench.log.then = [] {};
        bench.log.events.clear();
        bench.endpoint->pause(1h);
        bench.endpoint->breaker().force_open();
        CHECK(bench.log.events.size() == 2);
    });
}
