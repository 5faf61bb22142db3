// SPDX-License-Identifier: BSL-1.0
// How many wait in the line of an endpoint and for how long, who is refused since it could not be done in time, and in
// which order they are served.
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/deadline_error.hpp>
#include <sluice/stage/detail/call_times.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/drain.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/testing/run.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::BreakerOptions;
using sluice::EndpointOptions;
using sluice::LineOrder;
using sluice::ModelError;
using sluice::Rate;
using sluice::Reason;
using sluice::StageOptions;
using sluice::Verdict;
using std::chrono::nanoseconds;
using test::Task;
using test::timed;
using test::VirtualTimer;

// No templates: see RetryDecision.
ModelError asks_to_wait(nanoseconds retry_after) {
    return ModelError("not so fast", {.kind = Verdict::throttled, .retry_after = retry_after}, 429);
}

// A model whose calls take a second, unless it is told otherwise, and what was called.
struct Desk {
    std::function<nanoseconds(const std::string&)> takes = [](const std::string&) { return nanoseconds(1s); };
    std::function<void(std::size_t)> decide = [](std::size_t) {};
    std::vector<std::pair<nanoseconds, std::string>> calls;
    asio::io_context* context = nullptr;
};

struct DeskModel {
    Desk* desk;

    asio::awaitable<std::string> operator()(const std::string& text) const { return call(*desk, text); }

    static asio::awaitable<std::string> call(Desk& desk, std::string text) {
        const std::size_t number = desk.calls.size();
        desk.calls.emplace_back(test::now(*desk.context), text);
        co_await test::sleep(desk.takes(text));
        desk.decide(number);
        co_return text;
    }
};
using DeskStage = sluice::Stage<DeskModel, VirtualTimer>;

struct Form {
    std::optional<std::string> draft;
    std::optional<std::string> check;
    std::optional<std::string> answer;
};
using FormRun = sluice::Run<Form>;
using FormResult = sluice::RecordResult<Form>;

// A stage of an endpoint in virtual time, and queries through it: by itself, or as the step of a pipeline.
enum class Through { stage, step };

class Queue {
public:
    Desk desk;
    asio::io_context context{1};
    sluice::Endpoint<VirtualTimer> endpoint;

    explicit Queue(Through through, const EndpointOptions& options, const StageOptions& stage_options = {})
        : endpoint(timed(context.get_executor()), "gpt", options),
          through_(through),
          stage_(endpoint, "reply", DeskModel{&desk}, stage_options),
          pipeline_(
              timed(context.get_executor()), [stage = stage_](FormRun& run) { return route(run, stage); }, sink_, 999) {
        desk.context = &context;
    }

    std::size_t start(const std::string& text, std::optional<nanoseconds> timeout = std::nullopt) {
        const std::size_t index = tasks_.size();
        ended_.emplace_back(-1);
        tasks_.emplace_back(context.get_executor(),
                            [this, text, timeout, index] { return ask(*this, text, timeout, index); });
        return index;
    }
    void cancel(std::size_t index) { tasks_[index].cancel(); }

    void run() {
        sluice::testing::run(context);
        CHECK(endpoint.active() == 0);
        CHECK(endpoint.waiting() == 0);
    }
    void run_until(nanoseconds time) { test::run_until(context, time); }

    bool aborted(std::size_t index) const { return tasks_.at(index).aborted(); }
    const sluice::StageResult<>& result(std::size_t index) { return tasks_.at(index).value(); }
    nanoseconds ended(std::size_t index) const { return ended_.at(index); }

    // Whether its model was not called, since it failed at that time.
    bool refused(std::size_t index, Reason reason, nanoseconds at) {
        REQUIRE(tasks_.at(index).done());
        CHECK(result(index).reason == reason);
        CHECK(ended(index) == at);
        CHECK(!result(index).success);
        return result(index).attempts == 0;
    }

    nanoseconds time_of(std::size_t call) const { return desk.calls.at(call).first; }
    std::string texts() const {
        std::string all;
        for (const auto& [time, text] : desk.calls) {
            all += text;
        }
        return all;
    }

    // As many calls as are needed to know how long a call takes, one at a time.
    void learn(nanoseconds call_time, int calls = 20) {
        const auto before = std::exchange(desk.takes, [call_time](const std::string&) { return call_time; });
        for (int i = 0; i != calls; ++i) {
            start("l");
            sluice::testing::run(context);
        }
        desk.takes = before;
        desk.calls.clear();
    }

private:
    static asio::awaitable<void> route(FormRun& run, DeskStage stage) {
        co_await run.step(&Form::answer, stage, run.query().text);
    }

    static asio::awaitable<sluice::StageResult<>> ask(Queue& queue, std::string text,
                                                      std::optional<nanoseconds> timeout, std::size_t index) {
        sluice::StageResult<> result;
        if (queue.through_ == Through::stage && !timeout) {
            sluice::StageResult<std::string> own = co_await queue.stage_.run("id", std::string(text));
            result = std::move(own);
        } else {
            sluice::Query query("id", text);
            query.timeout = timeout;
            FormResult own = co_await queue.pipeline_.process_one(query);
            result = std::move(own.stage_results.back());
        }
        queue.ended_.at(index) = test::now(queue.context);
        co_return result;
    }

    Through through_;
    test::DeadLetters sink_;
    DeskStage stage_;
    sluice::Pipeline<std::function<asio::awaitable<void>(FormRun&)>, test::DeadLetters, VirtualTimer> pipeline_;
    std::vector<nanoseconds> ended_;
    std::deque<Task<sluice::StageResult<>>> tasks_;
};

}  // namespace

TEST_CASE("queue bound: whoever finds the line full fails at once, and leaves no trace", "[queue_bound]") {
    const Through through = GENERATE(Through::stage, Through::step);
    const bool gated = GENERATE(false, true);
    Queue queue(through, {.limit = 1, .requests = gated ? Rate(4, 24h, 4) : Rate::unlimited, .max_waiting = 2},
                {.retry = {.max_retries = 5}});
    for (const char c : std::string("abcd")) {
        queue.start({c});
    }
    queue.run_until(1500ms);
    CHECK(queue.refused(3, Reason::overloaded, 0s));
    CHECK(queue.result(3).error.message() == "the line of endpoint 'gpt' is full: at most 2 may wait");
    CHECK(queue.result(3).attempts == 0);
    queue.start("e");
    queue.run();
    CHECK(queue.texts() == "abce");  // the rate had four requests
    CHECK(test::now(queue.context) == 4s);
    CHECK(queue.result(4).success);
}

TEST_CASE("queue bound: with 0 none waits, and whoever need not wait begins", "[queue_bound]") {
    const Through through = GENERATE(Through::stage, Through::step);
    Queue queue(through, {.limit = 1, .requests = Rate(1, 10s), .max_waiting = 0});
    queue.start("a");
    queue.run_until(500ms);
    queue.start("b");  // no slot
    queue.run_until(2s);
    queue.start("c");  // no request
    queue.run_until(10s);
    queue.start("d");
    queue.run();
    CHECK(queue.texts() == "ad");
    CHECK(queue.refused(1, Reason::overloaded, 500ms));
    CHECK(queue.refused(2, Reason::overloaded, 2s));
}

TEST_CASE("queue bound: places in the line that come free are taken again", "[queue_bound]") {
    Queue queue(Through::stage, {.limit = 1, .max_waiting = 1});
    queue.start("a");
    const std::size_t cancelled = queue.start("b");
    queue.run_until(100ms);
    queue.cancel(cancelled);
    queue.start("c");
    queue.run_until(200ms);
    queue.start("d");
    queue.run();
    CHECK(queue.aborted(cancelled));
    CHECK(queue.texts() == "ac");
    CHECK(queue.refused(3, Reason::overloaded, 200ms));
}

TEST_CASE("queue bound: whoever returns to its old place finds one; a retry may not", "[queue_bound][retry]") {
    const Through through = GENERATE(Through::stage, Through::step);
    const bool throttled = GENERATE(false, true);
    Queue queue(through, {.limit = 1, .max_waiting = 1}, {.retry = {.max_retries = 1, .backoff = {.initial = 0s}}});
    queue.desk.decide = [throttled](std::size_t call) {
        if (call == 0) {
            throttled ? throw asks_to_wait(5s) : throw std::runtime_error("boom");
        }
    };
    queue.start("a");
    queue.start("b");
    queue.run_until(900ms);
    queue.endpoint.set_limit(0);
    queue.run_until(1s);
    CHECK(queue.endpoint.waiting() == (throttled ? 2 : 1));
    queue.endpoint.set_limit(1);
    queue.run();
    CHECK(queue.texts() == (throttled ? "aab" : "ab"));
    CHECK(queue.result(1).success);
    if (throttled) {
        CHECK(queue.result(0).success);
    } else {
        CHECK(queue.result(0).reason == Reason::overloaded);
        CHECK(queue.result(0).error.message() == "the line of endpoint 'gpt' is full: at most 1 may wait: boom");
    }
}

TEST_CASE("queue bound: whoever has waited for as long as it may leaves the line", "[queue_bound][max_wait]") {
    const Through through = GENERATE(Through::stage, Through::step);
    const bool gated = GENERATE(false, true);
    Queue queue(through, {.limit = 1, .requests = gated ? Rate(3, 24h, 3) : Rate::unlimited, .max_wait = 5s},
                {.retry = {.max_retries = 5}});
    queue.desk.takes = [](const std::string& text) { return text == "a" ? nanoseconds(7s) : 1s; };
    queue.start("a");
    const std::size_t waiter = queue.start("b");
    queue.run_until(3s);
    queue.start("c");
    queue.run_until(6s);
    CHECK(queue.refused(waiter, Reason::overloaded, 5s));
    CHECK(queue.result(waiter).error.message() == "waited 5000 ms in the line of endpoint 'gpt'");
    CHECK(queue.result(waiter).queue_time == 5s);
    CHECK(queue.result(waiter).attempts == 0);
    queue.start("d");
    queue.run();
    CHECK(queue.texts() == "acd");  // the rate had three requests
    CHECK(queue.result(2).queue_time == 4s);
    CHECK(test::now(queue.context) == 9s);  // no timer is left
}

TEST_CASE("queue bound: a slot that comes at that very time goes to the next", "[queue_bound][max_wait]") {
    const Through through = GENERATE(Through::stage, Through::step);
    const bool gated = GENERATE(false, true);
    Queue queue(through, {.limit = 1, .requests = gated ? Rate(2, 24h, 2) : Rate::unlimited, .max_wait = 1s});
    queue.start("a");
    queue.start("b");
    queue.run_until(1ns);
    queue.start("c");
    queue.run();
    CHECK(queue.refused(1, Reason::overloaded, 1s));
    CHECK(queue.texts() == "ac");
    CHECK(queue.time_of(1) == 1s);
    CHECK(queue.result(2).queue_time == 1s - 1ns);
}

TEST_CASE("queue bound: a probe that is due at that very time goes to the next", "[queue_bound][max_wait][breaker]") {
    const BreakerOptions breaker{.minimum_calls = 1, .open_time = 2s, .jitter = 0, .probes = 1};
    Queue queue(Through::stage, {.limit = 1, .breaker = breaker, .max_wait = 2s});
    queue.desk.decide = [](std::size_t call) {
        if (call == 0) {
            throw std::runtime_error("down");
        }
    };
    queue.start("a");
    queue.run_until(1s);
    queue.start("b");
    queue.run_until(2s);
    queue.start("c");
    queue.run();
    CHECK(queue.refused(1, Reason::overloaded, 3s));
    CHECK(queue.texts() == "ac");
    CHECK(queue.time_of(1) == 3s);
    CHECK(queue.endpoint.breaker().status().state == sluice::BreakerStatus::closed);
}

TEST_CASE("queue bound: the wait is bounded for whatever it is, and each begins anew", "[queue_bound][max_wait]") {
    const Through through = GENERATE(Through::stage, Through::step);
    SECTION("for a pause") {
        Queue queue(through, {.limit = 1, .max_wait = 5s});
        queue.endpoint.pause(10s);
        queue.start("a");
        queue.run();
        CHECK(queue.refused(0, Reason::overloaded, 5s));
    }
    SECTION("for a rate") {
        Queue queue(through, {.limit = 2, .requests = Rate(1, 10s), .max_wait = 5s});
        queue.start("a");
        queue.start("b");
        queue.run_until(6s);
        queue.start("c");
        queue.run();
        CHECK(queue.refused(1, Reason::overloaded, 5s));
        CHECK(queue.texts() == "ac");
        CHECK(queue.time_of(1) == 10s);
    }
    SECTION("after it was throttled") {
        Queue queue(through, {.limit = 1, .max_wait = 5s});
        queue.desk.decide = [](std::size_t call) {
            if (call == 1 || call == 2) {
                throw asks_to_wait(call == 1 ? 4s : 5s);
            }
        };
        queue.start("a");
        queue.start("b");
        queue.run();
        CHECK(queue.time_of(2) == 6s);  // it has waited for 1 s and 4 s
        CHECK(queue.ended(1) == 12s);   // and once more, for too long
        CHECK(queue.result(1).reason == Reason::overloaded);
        CHECK(queue.result(1).error.message() == "waited 5000 ms in the line of endpoint 'gpt': not so fast");
        CHECK(queue.result(1).attempts == 2);
    }
}

TEST_CASE("queue bound: the earlier of the end of the wait and of the query's timeout is the reason",
          "[queue_bound][max_wait]") {
    Queue queue(Through::step, {.limit = 1, .max_wait = 5s});
    queue.desk.takes = [](const std::string&) { return 1h; };
    queue.start("a", 2h);
    queue.start("b", 5s - 1ns);
    queue.start("c", 5s);
    queue.start("d", 5s + 1ns);
    queue.run();
    CHECK(queue.refused(1, Reason::deadline, 5s - 1ns));
    CHECK(queue.refused(2, Reason::deadline, 5s));
    CHECK(queue.refused(3, Reason::overloaded, 5s));
    CHECK(queue.result(0).success);
}

TEST_CASE("queue bound: a bounded wait ends by cancellation and by closing as any other", "[queue_bound][max_wait]") {
    const Through through = GENERATE(Through::stage, Through::step);
    Queue queue(through, {.limit = 1, .max_waiting = 9, .max_wait = 5s});
    queue.desk.takes = [](const std::string&) { return 10s; };
    queue.start("a");
    const std::size_t cancelled = queue.start("b");
    queue.start("c");
    queue.run_until(1s);
    queue.cancel(cancelled);
    queue.run_until(2s);
    queue.endpoint.close();
    queue.run();
    CHECK(queue.aborted(cancelled));
    CHECK(queue.refused(2, Reason::closed, 2s));
    CHECK(test::now(queue.context) == 10s);
}

TEST_CASE("queue bound: options that are out of range are named", "[queue_bound]") {
    const auto refusal = [](const EndpointOptions& options) {
        return test::refusal_of([&] { Queue queue(Through::stage, options); });
    };
    CHECK(refusal({.limit = 1, .max_waiting = -1}) == "Endpoint 'gpt': max_waiting must not be negative, got -1");
    CHECK(refusal({.limit = 1, .max_wait = 0s}) == "Endpoint 'gpt': max_wait must be positive, got 0 ns");
    CHECK(refusal({.limit = 1, .max_wait = -5ns}) == "Endpoint 'gpt': max_wait must be positive, got -5 ns");
    CHECK(sluice::to_string(Reason::overloaded) == "overloaded");
}

TEST_CASE("queue bound: the longest wait and the most that may wait are no limits", "[queue_bound][max_wait]") {
    Queue queue(
        Through::stage,
        {.limit = 1, .max_waiting = std::numeric_limits<std::ptrdiff_t>::max(), .max_wait = nanoseconds::max()});
    queue.start("a");
    queue.start("b");
    queue.run();
    CHECK(queue.texts() == "ab");
}

TEST_CASE("queue bound: its context may be destroyed at any step while attempts wait, leave and are refused",
          "[queue_bound][stress]") {
    const bool endpoint_first = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Desk desk;
        auto context = std::make_unique<asio::io_context>(1);
        desk.context = context.get();
        desk.takes = [](const std::string&) { return 10ms; };
        desk.decide = [](std::size_t call) {
            if (call == 0) {
                throw asks_to_wait(15ms);
            }
        };
        const EndpointOptions options{.limit = 1,
                                      .requests = Rate(1, 5ms, 2),
                                      .max_waiting = 3,
                                      .max_wait = 18ms,
                                      .shed_late = true,
                                      .order = LineOrder::furthest_first};
        auto endpoint =
            std::make_optional<sluice::Endpoint<VirtualTimer>>(timed(context->get_executor()), "gpt", options);
        auto stage = std::make_optional<DeskStage>(*endpoint, "s", DeskModel{&desk});
        std::deque<Task<sluice::StageResult<std::string>>> runs;
        for (int i = 0; i != 6; ++i) {
            runs.emplace_back(context->get_executor(), [s = *stage, i] { return s.run("q", std::to_string(i)); });
        }
        steps.take(*context);
        if (endpoint_first) {
            stage.reset();
            endpoint.reset();
        }
        context.reset();
        if (endpoint) {
            CHECK(endpoint->active() == 0);
            CHECK(endpoint->waiting() == 0);
        }
    });
}

TEST_CASE("call times: the median of the last 64, from 20 on", "[queue_bound][shed]") {
    sluice::detail::CallTimes times;
    for (int i = 1; i != 20; ++i) {
        times.add(i * 1ms);
        CHECK(times.median() == 0ms);
    }
    times.add(1h);
    CHECK(times.median() == 10ms);  // the lower of 10 and 11
    times.add(0ms);
    CHECK(times.median() == 10ms);  // of 21
    times.add(1h);
    CHECK(times.median() == 10ms);
    for (int i = 0; i != 64; ++i) {
        times.add(i < 32 ? 3ms : 7ms);
    }
    CHECK(times.median() == 3ms);
    times.add(7ms);
    CHECK(times.median() == 7ms);
}

TEST_CASE("shedding: whoever could not be done in time is refused, to the nanosecond", "[queue_bound][shed]") {
    Queue queue(Through::step, {.limit = 1, .requests = Rate(3, 24h, 23), .shed_late = true});
    queue.learn(2s);
    const nanoseconds begin = test::now(queue.context);
    queue.start("a", 2s - 1ns);
    queue.run();
    CHECK(queue.refused(20, Reason::deadline, begin));
    CHECK(queue.result(20).error.message() ==
          "too little is left of the query's timeout of 1999.999999 ms: a call takes 2000 ms");
    CHECK(queue.result(20).error.type() == "sluice::DeadlineError");
    CHECK(queue.desk.calls.empty());
    queue.start("b", 2s);
    queue.run();
    CHECK(queue.result(21).success);
    queue.start("c");  // has no timeout
    queue.run();
    CHECK(queue.result(22).success);
    queue.start("d", 1s);  // nothing has been paid for those that were refused, and the rate is not used up
    queue.start("e");
    queue.run();
    CHECK(queue.texts() == "bce");
    CHECK(queue.time_of(2) == begin + 2s);
}

TEST_CASE("shedding: 19 calls say nothing, nor do calls that failed; without the option none does",
          "[queue_bound][shed]") {
    const bool shed = GENERATE(false, true);
    Queue queue(Through::step, {.limit = 1, .shed_late = shed});
    queue.learn(2s, 19);
    queue.desk.decide = [](std::size_t) { throw std::runtime_error("no"); };
    queue.start("a");
    queue.run();
    queue.desk.decide = [](std::size_t) {};
    queue.desk.calls.clear();
    queue.start("b", 1s + 1ns);
    queue.run();
    CHECK(queue.result(20).success);  // the 20th
    queue.start("c", 1s + 1ns);
    queue.run();
    CHECK(queue.texts() == (shed ? "b" : "bc"));
    CHECK(queue.result(21).success != shed);
}

TEST_CASE("shedding: it is decided when a query is first in the line and a slot is free", "[queue_bound][shed]") {
    Queue queue(Through::step, {.limit = 1, .shed_late = true});
    queue.learn(2s);
    const nanoseconds begin = test::now(queue.context);
    queue.start("a");
    queue.start("b", 2900ms);  // 1.9 s are left when it could begin
    queue.start("c", 3s);
    queue.run();
    CHECK(queue.refused(21, Reason::deadline, begin + 1s));
    CHECK(queue.texts() == "ac");
    CHECK(queue.result(22).success);
    CHECK(queue.time_of(1) == begin + 1s);
}

TEST_CASE("shedding: one that returns to its old place may be refused too", "[queue_bound][shed]") {
    Queue queue(Through::step, {.limit = 1, .shed_late = true});
    queue.learn(2s);
    queue.desk.decide = [](std::size_t call) {
        if (call == 0) {
            throw asks_to_wait(1s);
        }
    };
    const nanoseconds begin = test::now(queue.context);
    queue.start("a", 4s - 1ns);
    queue.start("b");
    queue.run();
    CHECK(queue.texts() == "ab");
    CHECK(queue.result(20).reason == Reason::deadline);
    CHECK(queue.ended(20) == begin + 2s);
    CHECK(queue.result(20).error.message() ==
          "too little is left of the query's timeout of 3999.999999 ms: a call takes 2000 ms: not so fast");
    CHECK(queue.time_of(1) == begin + 2s);
}

TEST_CASE("shedding: a head that waits for a rate leaves as soon as it could not be done in time",
          "[queue_bound][shed]") {
    Queue queue(Through::step, {.limit = 9, .requests = Rate(1, 10s, 20), .shed_late = true});
    queue.learn(2s);
    queue.run_until(100s);
    for (int i = 0; i != 10; ++i) {
        queue.start("x");
    }
    queue.run_until(101s);
    CHECK(queue.desk.calls.size() == 10);
    queue.start("a", 8s);  // the next request comes at 110 s
    queue.run_until(108s);
    CHECK(queue.refused(30, Reason::deadline, 107s + 1ns));
    queue.run();
}

TEST_CASE("shedding: a probe goes to one that can be done in time", "[queue_bound][shed][breaker]") {
    const BreakerOptions breaker{.minimum_calls = 21, .open_time = 1s, .jitter = 0, .probes = 1};
    Queue queue(Through::step, {.limit = 1, .breaker = breaker, .shed_late = true});
    queue.learn(2s);
    queue.endpoint.breaker().force_open();
    const nanoseconds begin = test::now(queue.context);
    queue.start("a", 3s);
    queue.start("b", 10s);
    queue.run_until(begin + 5s);
    CHECK(queue.refused(20, Reason::deadline, begin + 1s + 1ns));
    queue.endpoint.breaker().reset();
    queue.run();
    CHECK(queue.texts() == "b");
}

namespace {

// Drafts, checks and answers, of which some share an endpoint.
class Works {
public:
    Desk desk;
    asio::io_context context{1};
    sluice::Endpoint<VirtualTimer> endpoint;
    DeskStage draft, answer;
    sluice::Stage<DeskModel, VirtualTimer> check;
    std::function<asio::awaitable<void>(Works&, FormRun&)> route = &Works::all_three;
    test::DeadLetters sink;
    sluice::Pipeline<std::function<asio::awaitable<void>(FormRun&)>, test::DeadLetters, VirtualTimer> pipeline;
    std::deque<Task<FormResult>> tasks;

    explicit Works(const EndpointOptions& options)
        : endpoint(timed(context.get_executor()), "gpt", options),
          draft(endpoint, "draft", DeskModel{&desk}),
          answer(endpoint, "answer", DeskModel{&desk}),
          check(timed(context.get_executor()), "check", 99, DeskModel{&desk}),
          pipeline(timed(context.get_executor()), [this](FormRun& run) { return route(*this, run); }, sink, 999) {
        desk.context = &context;
    }

    void start(const std::string& text, Form form = {}) {
        tasks.emplace_back(context.get_executor(), [this, text, form] { return go(*this, text, form); });
    }

    // Of the calls, without those of the check.
    std::string texts() const {
        std::string all;
        for (const auto& [time, text] : desk.calls) {
            if (text.find('?') == std::string::npos) {
                all += text + ' ';
            }
        }
        return all;
    }

    static asio::awaitable<void> all_three(Works& works, FormRun& run) {
        co_await run.step(&Form::draft, works.draft, run.query().text + "1");
        co_await run.step(&Form::check, works.check, run.query().text + "?");
        co_await run.step(&Form::answer, works.answer, run.query().text + "2");
    }

private:
    static asio::awaitable<FormResult> go(Works& works, std::string text, Form form) {
        sluice::Checkpoint<Form> checkpoint(sluice::Query("id", std::move(text)), std::move(form));
        FormResult result = co_await works.pipeline.process_one(std::move(checkpoint));
        co_return result;
    }
};

}  // namespace

TEST_CASE("line order: what has begun is completed first, or what has come first", "[queue_bound][order]") {
    const LineOrder order = GENERATE(LineOrder::first_come, LineOrder::furthest_first);
    Works works({.limit = 1, .order = order});
    works.desk.takes = [](const std::string& text) {
        return nanoseconds(text.find('?') == std::string::npos ? 1s : 0s);
    };
    for (const char c : std::string("abc")) {
        works.start({c});
    }
    sluice::testing::run(works.context);
    CHECK(works.texts() == (order == LineOrder::first_come ? "a1 b1 c1 a2 b2 c2 " : "a1 b1 a2 b2 c1 c2 "));
    for (auto& task : works.tasks) {
        CHECK(task.value().completed);
    }
}

TEST_CASE("line order: a drain finds queries that are completed, not 30 that are half-done", "[queue_bound][order]") {
    const LineOrder order = GENERATE(LineOrder::first_come, LineOrder::furthest_first);
    Works works({.limit = 5, .order = order});
    works.route = [](Works& own, FormRun& run) -> asio::awaitable<void> {
        co_await run.step(&Form::draft, own.draft, run.query().text);
        co_await run.step(&Form::answer, own.answer, run.query().text);
    };
    std::vector<sluice::Query> queries;
    for (int i = 0; i != 30; ++i) {
        queries.emplace_back(std::to_string(i), "q");
    }
    Task<std::vector<FormResult>> batch(works.context.get_executor(),
                                        [&] { return works.pipeline.process_batch(queries); });
    test::run_until(works.context, 5500ms);
    Task<sluice::DrainReport<Form>> drain(works.context.get_executor(), [&] { return works.pipeline.drain(500ms); });
    sluice::testing::run(works.context);
    const auto& results = batch.value();
    const auto completed = std::ranges::count_if(results, [](const FormResult& result) { return result.completed; });
    const auto drafted =
        std::ranges::count_if(results, [](const FormResult& result) { return result.record.draft.has_value(); });
    CHECK(completed == (order == LineOrder::first_come ? 0 : 12));
    CHECK(completed + drafted == 30);  // five calls a second, for six seconds
}

TEST_CASE("shedding: during a drain, whoever could not be done within its grace does not begin",
          "[queue_bound][shed][drain]") {
    const bool shed = GENERATE(false, true);
    const bool waits_for_rate = GENERATE(false, true);
    Works works({.limit = 1, .requests = waits_for_rate ? Rate(1, 10s, 21) : Rate::unlimited, .shed_late = shed});
    works.desk.takes = [](const std::string&) { return nanoseconds(2s); };
    works.route = [](Works& own, FormRun& run) -> asio::awaitable<void> {
        co_await run.step(&Form::answer, own.answer, run.query().text);
    };
    for (int i = 0; i != 20; ++i) {
        works.start("l");
        sluice::testing::run(works.context);
    }
    if (waits_for_rate) {  // use it up
        works.endpoint.pause(1ns);
        works.endpoint.set_rate(Rate::requests, Rate(1, 10s));
        test::run_until(works.context, test::now(works.context) + 10s + 1ns);
    }
    works.desk.calls.clear();
    const nanoseconds begin = test::now(works.context);
    works.start("a");
    test::run_until(works.context, begin + (waits_for_rate ? 5s : 1s));
    works.start("b");
    test::run_until(works.context, begin + (waits_for_rate ? 6s : 1s));
    const nanoseconds grace = waits_for_rate ? 5s : 2s;
    const Task<sluice::DrainReport<Form>> drain(works.context.get_executor(),
                                                [&] { return works.pipeline.drain(grace); });
    sluice::testing::run(works.context);
    CHECK(works.tasks[20].value().completed);
    CHECK(works.tasks[21].value().unfinished);
    CHECK(works.tasks[21].value().stage_results.front().attempts == (shed ? 0 : 1));
    CHECK(works.texts() == (shed ? "a " : "a b "));
    // 2 s before the grace is over; or when there is a slot, since then 1 s is left.
    const nanoseconds gives_up = waits_for_rate ? 9s + 1ns : 2s;
    CHECK(test::now(works.context) == begin + (shed ? gives_up : waits_for_rate ? nanoseconds(11s) : 3s));
}

TEST_CASE("line order: steps in place, and those that are skipped since their fields are filled, count",
          "[queue_bound][order]") {
    Works works({.limit = 1, .order = LineOrder::furthest_first});
    works.desk.takes = [](const std::string& text) { return nanoseconds(text == "w" ? 10s : 1s); };
    works.route = [](Works& own, FormRun& run) -> asio::awaitable<void> {
        const std::string text = run.query().text;
        if (text.starts_with('c')) {
            co_await run.step(&Form::check, own.check, text + "?");
        }
        if (text.starts_with('s')) {
            co_await run.step(&Form::draft, own.draft, text);
        }
        co_await run.step(&Form::answer, own.answer, text);
    };
    works.start("w");  // occupies the endpoint
    works.start("a");
    works.start("b");
    works.start("c");                                                                // checks in place
    works.start("s", {.draft = "", .check = std::nullopt, .answer = std::nullopt});  // has its draft
    sluice::testing::run(works.context);
    CHECK(works.texts() == "w s c a b ");
}

TEST_CASE("line order: steps that have failed do not count, nor do they for a later run", "[queue_bound][order]") {
    Works works({.limit = 1, .order = LineOrder::furthest_first});
    works.desk.takes = [](const std::string& text) {
        if (text == "f?") {
            throw std::runtime_error("no");
        }
        return nanoseconds(text == "w" ? 10s : 1s);
    };
    works.route = [](Works& own, FormRun& run) -> asio::awaitable<void> {
        const std::string text = run.query().text;
        if (text != "a" && text != "w") {
            co_await run.step_or_error(&Form::check, own.check, text + "?");
        }
        co_await run.step(&Form::answer, own.answer, text);
    };
    works.start("w");
    test::run_until(works.context, 1s);
    works.start("f");
    works.start("c");
    test::run_until(works.context, 4s);
    works.start("a");
    sluice::testing::run(works.context);
    CHECK(works.texts() == "w c f a ");
}

TEST_CASE("line order: a run of a stage alone has completed no steps", "[queue_bound][order]") {
    Works works({.limit = 1, .order = LineOrder::furthest_first});
    std::deque<Task<sluice::StageResult<std::string>>> alone;
    const auto start_alone = [&](std::string text) {
        alone.emplace_back(works.context.get_executor(), [&works, text] { return works.answer.run("id", text); });
    };
    start_alone("x");
    works.start("a");
    start_alone("y");
    sluice::testing::run(works.context);
    CHECK(works.texts() == "x a1 y a2 ");  // neither had completed a step when y came

    works.desk.calls.clear();
    const nanoseconds begin = test::now(works.context);
    works.start("b");
    test::run_until(works.context, begin + 1200ms);  // it checks until 2 s
    start_alone("x");
    start_alone("y");
    sluice::testing::run(works.context);
    CHECK(works.texts() == "b1 x b2 y ");
}

TEST_CASE("line order: the line is in order even if it is as long as it may be, and whoever finds it full is refused",
          "[queue_bound][order]") {
    Works works({.limit = 1, .max_waiting = 2, .order = LineOrder::furthest_first});
    works.desk.takes = [](const std::string& text) { return nanoseconds(text == "w1" ? 10s : 1s); };
    works.start("w");
    works.start("a");
    test::run_until(works.context, 1s);
    works.start("b", {.draft = "", .check = "", .answer = std::nullopt});
    works.start("c", {.draft = "", .check = "", .answer = std::nullopt});
    sluice::testing::run(works.context);
    CHECK(works.tasks[3].value().failure()->reason == Reason::overloaded);
    CHECK(works.texts().starts_with("w1 b2 "));
}

TEST_CASE("line order: one that returns to its old place does so among those with as many steps",
          "[queue_bound][order]") {
    Works works({.limit = 1, .order = LineOrder::furthest_first});
    works.route = [](Works& own, FormRun& run) -> asio::awaitable<void> {
        co_await run.step(&Form::draft, own.draft, run.query().text);
        co_await run.step(&Form::answer, own.answer, run.query().text);
    };
    works.desk.decide = [](std::size_t call) {
        if (call == 0 || call == 2) {
            throw asks_to_wait(5s);
        }
    };
    works.start("a");  // its draft is refused once
    test::run_until(works.context, 100ms);
    works.start("b");
    works.start("c", {.draft = "", .check = std::nullopt, .answer = std::nullopt});
    works.start("d", {.draft = "", .check = std::nullopt, .answer = std::nullopt});  // refused once
    works.start("e", {.draft = "", .check = std::nullopt, .answer = std::nullopt});
    sluice::testing::run(works.context);
    CHECK(works.texts() == "a c d d e a b a b ");
}
