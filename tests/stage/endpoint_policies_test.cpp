// SPDX-License-Identifier: BSL-1.0
// Rates, pauses and the breaker of an endpoint, as its stages meet them.
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/testing/run.hpp>

#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
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
using sluice::BreakerOptions;
using sluice::Cost;
using sluice::EndpointOptions;
using sluice::ModelError;
using sluice::Rate;
using sluice::Reason;
using sluice::StageOptions;
using sluice::Verdict;
using sluice::WhileOpen;
using test::Task;
using test::timed;
using test::VirtualTimer;
using Answer = sluice::StageResult<std::string>;

// No templates: see RetryDecision.
ModelError throttled(std::optional<std::chrono::nanoseconds> retry_after = std::nullopt) {
    return ModelError("slow down", {.kind = Verdict::throttled, .retry_after = retry_after}, 429);
}
ModelError down() { return ModelError("down", {.kind = Verdict::overloaded}, 503); }
ModelError no_credit() { return ModelError("no credit", {.kind = Verdict::exhausted}, 402); }

// A provider, and the calls that it got: the number of the call decides what becomes of it.
struct Provider {
    std::function<void(std::size_t)> decide = [](std::size_t) {};
    std::chrono::nanoseconds takes = 10ms;
    std::vector<std::pair<std::chrono::nanoseconds, std::string>> calls;
    asio::io_context* context = nullptr;
};

struct ProviderModel {
    Provider* provider;

    asio::awaitable<std::string> operator()(const std::string& text) const { return call(*provider, text); }

    static asio::awaitable<std::string> call(Provider& provider, std::string text) {
        const std::size_t number = provider.calls.size();
        provider.calls.emplace_back(test::now(*provider.context), text);
        co_await test::sleep(provider.takes);
        provider.decide(number);
        co_return "re " + text;
    }
};

// The same with an estimate: as many tokens as characters.
struct EstimatingModel : ProviderModel {
    static Cost cost(const std::string& text) {
        if (text == "bad") {
            return {.input_tokens = -1};
        }
        if (text == "ugly") {
            throw std::runtime_error("no estimate");
        }
        return {.input_tokens = static_cast<std::int64_t>(text.size())};
    }
};

// Takes an Attempt, and reports through it.
struct ReportingModel : ProviderModel {
    std::function<void(sluice::Attempt&)>* report = nullptr;

    static Cost cost(const std::string&) { return {.input_tokens = 10}; }

    asio::awaitable<std::string> operator()(const std::string& text, sluice::Attempt& attempt) const {
        return ask(*provider, text, attempt, *report);
    }

    static asio::awaitable<std::string> ask(Provider& provider, std::string text, sluice::Attempt& attempt,
                                            std::function<void(sluice::Attempt&)>& report) {
        report(attempt);
        co_return co_await call(provider, text);
    }
};

// A stage of an endpoint in virtual time, and queries through it: by itself, or as steps of a pipeline, which run in
// place where they can.
enum class By { stage, step };

template <class Function = ProviderModel>
class Office {
public:
    Provider provider;
    std::function<void(sluice::Attempt&)> report = [](sluice::Attempt&) {};
    asio::io_context context{1};
    sluice::Endpoint<VirtualTimer> endpoint;

    explicit Office(By by, const EndpointOptions& options, const StageOptions& stage_options = {})
        : endpoint(timed(context.get_executor()), "gpt", options),
          by_(by),
          stage_(endpoint, "reply", make_model(), stage_options),
          pipeline_(
              timed(context.get_executor()), [stage = stage_](NoteRun& run) { return route(run, stage); }, sink_, 99) {
        provider.context = &context;
    }

    std::size_t start(const std::string& text) {
        const std::size_t index = tasks_.size();
        tasks_.emplace_back(context.get_executor(), [this, text] { return ask(*this, text); });
        return index;
    }
    void cancel(std::size_t index) { tasks_[index].cancel(); }

    void run() {
        sluice::testing::run(context);
        CHECK(endpoint.active() == 0);
        CHECK(endpoint.waiting() == 0);
    }
    void run_until(std::chrono::nanoseconds time) { test::run_until(context, time); }

    bool done(std::size_t index) const { return tasks_[index].done(); }
    sluice::StageResult<>& result(std::size_t index) { return tasks_[index].value(); }
    std::chrono::nanoseconds time_of(std::size_t call) const { return provider.calls.at(call).first; }

    // The texts of the calls, in order.
    std::string texts() const {
        std::string all;
        for (const auto& [time, text] : provider.calls) {
            all += text;
        }
        return all;
    }

private:
    struct Note {
        std::optional<std::string> answer;
    };
    using NoteRun = sluice::Run<Note>;
    using OfficeStage = sluice::Stage<Function, VirtualTimer>;
    using Route = std::function<asio::awaitable<void>(NoteRun&)>;

    Function make_model() {
        Function model{{&provider}};
        if constexpr (std::is_same_v<Function, ReportingModel>) {
            model.report = &report;
        }
        return model;
    }

    static asio::awaitable<void> route(NoteRun& run, OfficeStage stage) {
        co_await run.step(&Note::answer, stage, run.query().text);
    }

    static asio::awaitable<sluice::StageResult<>> ask(Office& office, std::string text) {
        if (office.by_ == By::stage) {
            sluice::StageResult<std::string> result = co_await office.stage_.run("id", std::string(text));
            co_return std::move(result);
        }
        const sluice::Query query("id", text);
        sluice::RecordResult<Note> result = co_await office.pipeline_.process_one(query);
        co_return std::move(result.stage_results.front());
    }

    By by_;
    test::DeadLetters sink_;
    OfficeStage stage_;
    sluice::Pipeline<Route, test::DeadLetters, VirtualTimer> pipeline_;
    std::deque<Task<sluice::StageResult<>>> tasks_;
};

}  // namespace

TEST_CASE("endpoint: calls begin at its rate, in order, and hold no slot while they wait", "[endpoint][rate]") {
    const By by = GENERATE(By::stage, By::step);
    Office<> office(by, {.limit = 3, .requests = Rate(10, 1s, 2)});
    for (const char c : std::string("abcdef")) {
        office.start({c});
    }
    office.run_until(50ms);
    CHECK(office.endpoint.active() == 0);
    CHECK(office.endpoint.waiting() == 4);
    office.run();
    CHECK(office.texts() == "abcdef");
    CHECK(office.time_of(1) == 0s);
    CHECK(office.time_of(2) == 100ms);
    CHECK(office.time_of(5) == 400ms);
    CHECK(office.result(5).success);
    CHECK(office.result(5).queue_time == 400ms);
    CHECK(office.result(5).latency == 10ms);
}

TEST_CASE("endpoint: a rate may be set, raised and lifted while calls wait", "[endpoint][rate]") {
    const By by = GENERATE(By::stage, By::step);
    Office<> office(by, {.limit = 1});
    office.provider.takes = 1ms;
    office.start("a");
    office.start("b");
    office.endpoint.set_rate(Rate::requests, Rate(1, 1min));
    office.start("c");
    office.run_until(10s);
    CHECK(office.texts() == "a");
    office.endpoint.set_rate(Rate::requests, Rate(1, 10s));
    office.run_until(20s);
    CHECK(office.texts() == "ab");
    office.endpoint.set_rate(Rate::requests, Rate::unlimited);
    office.run();
    CHECK(office.time_of(2) == 20s);
    CHECK(test::refusal_of([&] { office.endpoint.set_rate(Rate::input_tokens, Rate(0, 1s)); }) ==
          "Endpoint 'gpt': input_tokens, period 1: amount must be from 1 to 10^15, got 0");
}

TEST_CASE("endpoint: tokens are estimated by the model function; what is too costly fails at once",
          "[endpoint][rate]") {
    const By by = GENERATE(By::stage, By::step);
    Office<EstimatingModel> office(by, {.limit = 9, .input_tokens = Rate(10, 1s, 5)});
    office.start("aaaaa");
    office.start("bbb");
    const std::size_t costly = office.start("cccccc");
    office.start("dd");
    office.run_until(1ms);
    REQUIRE(office.done(costly));
    CHECK(office.result(costly).reason == Reason::too_costly);
    CHECK(office.result(costly).attempts == 0);
    CHECK(office.result(costly).error.message() ==
          "a call of 6 input tokens can never begin: the burst of 10 per 1000000000 ns is 5");
    office.run();
    CHECK(office.texts() == "aaaaabbbdd");
    CHECK(office.time_of(1) == 300ms);
    CHECK(office.time_of(2) == 500ms);
}

TEST_CASE("endpoint: an estimate that throws, or is out of range, fails the query", "[endpoint][rate]") {
    const By by = GENERATE(By::stage, By::step);
    Office<EstimatingModel> office(by, {.limit = 9, .input_tokens = Rate(10, 1s, 5)});
    office.start("bad");
    office.start("ugly");
    office.start("fine");
    office.run();
    CHECK(office.result(0).error.message() == "Stage 'reply': input_tokens of a cost must be from 0 to 10^15, got -1");
    CHECK(office.result(1).error.message() == "no estimate");
    CHECK(office.result(0).reason == Reason::model);
    CHECK(office.texts() == "fine");
}

TEST_CASE("endpoint: a throttled call pauses it for all, and returns to its old place", "[endpoint][pause]") {
    const By by = GENERATE(By::stage, By::step);
    Office<> office(by, {.limit = 1});
    office.provider.decide = [](std::size_t call) {
        if (call == 1) {
            throw throttled(5s);
        }
    };
    for (const char c : std::string("abcd")) {
        office.start({c});
    }
    office.run();
    CHECK(office.texts() == "abbcd");
    CHECK(office.time_of(2) == 5020ms);
    CHECK(office.result(1).success);
    CHECK(office.result(1).attempts == 2);
    CHECK(office.result(1).queue_time == 5010ms);
}

TEST_CASE("endpoint: throttled attempts count apart from failed ones", "[endpoint][retry]") {
    const By by = GENERATE(By::stage, By::step);
    const bool with_hint = GENERATE(false, true);
    Office<> office(by, {.limit = 1},
                    {.retry = {.max_retries = 1, .backoff = {.initial = 1s, .jitter = 0}, .max_throttled = 2}});
    SECTION("as many as allowed") {
        office.provider.decide = [with_hint](std::size_t call) {
            if (call == 1) {
                throw std::runtime_error("failure");
            }
            if (call < 3) {
                throw throttled(with_hint ? std::optional<std::chrono::nanoseconds>(2s) : std::nullopt);
            }
        };
        office.start("a");
        office.run();
        CHECK(office.result(0).success);
        CHECK(office.result(0).attempts == 4);
    }
    SECTION("one more") {
        office.provider.decide = [with_hint](std::size_t) {
            throw throttled(with_hint ? std::optional<std::chrono::nanoseconds>(2s) : std::nullopt);
        };
        office.start("a");
        office.run();
        CHECK(office.result(0).error.message() == "slow down");
        CHECK(office.result(0).attempts == 4);  // the third is retried as any failure
    }
}

TEST_CASE("endpoint: by default a throttled call is tried eight times more", "[endpoint][retry]") {
    const By by = GENERATE(By::stage, By::step);
    Office<> office(by, {.limit = 1});
    office.provider.decide = [](std::size_t) { throw throttled(); };
    office.start("a");
    office.run();
    CHECK(office.provider.calls.size() == 9);
    CHECK(office.result(0).reason == Reason::model);
}

TEST_CASE("endpoint: whatever it asks for, it is paused for two minutes at most", "[endpoint][pause]") {
    const By by = GENERATE(By::stage, By::step);
    const auto kind = GENERATE(Verdict::throttled, Verdict::overloaded);
    Office<> office(by, {.limit = 1}, {.retry = {.max_retries = 1}});
    office.provider.decide = [&](std::size_t call) {
        if (call == 0) {
            throw ModelError("not now", {.kind = kind, .retry_after = 24h});
        }
    };
    office.start("a");
    office.run();
    CHECK(office.time_of(1) == 2min + 10ms);
}

TEST_CASE("endpoint: throttled attempts that began at once return in the order in which they came", "[endpoint]") {
    const By by = GENERATE(By::stage, By::step);
    Office<> office(by, {.limit = 2}, {.retry = {.backoff = {.initial = 1ms, .jitter = 0}}});
    office.provider.decide = [&](std::size_t call) {
        office.provider.takes = 10ms;
        if (call < 2) {
            throw throttled();
        }
    };
    office.provider.takes = 20ms;
    office.start("a");
    office.run_until(1ms);
    office.provider.takes = 10ms;
    office.start("b");
    office.run_until(5ms);
    office.endpoint.set_limit(0);
    office.run_until(1s);
    office.endpoint.set_limit(1);
    office.run();
    CHECK(office.texts() == "abab");
}

TEST_CASE("endpoint: a pause by hand, and its end", "[endpoint][pause]") {
    const By by = GENERATE(By::stage, By::step);
    Office<> office(by, {.limit = 2});
    office.endpoint.pause(3s);
    office.start("a");
    const std::size_t cancelled = office.start("b");
    office.start("c");
    office.run_until(1s);
    CHECK(office.texts().empty());
    office.cancel(cancelled);
    office.run();
    CHECK(office.time_of(0) == 3s);
    CHECK(office.texts() == "ac");
}

TEST_CASE("endpoint: an outage loses nobody who waits for its end", "[endpoint][breaker]") {
    const By by = GENERATE(By::stage, By::step);
    const bool retries = GENERATE(false, true);
    const BreakerOptions breaker{.minimum_calls = 4, .open_time = 1s, .jitter = 0, .probes = 1};
    Office<> office(by, {.limit = 4, .breaker = breaker},
                    {.retry = {.max_retries = retries ? 1 : 0, .backoff = {.initial = 1ms}}});
    office.provider.decide = [&](std::size_t) {
        if (test::now(office.context) < 10s) {
            throw down();
        }
    };
    for (int i = 0; i < 20; ++i) {
        office.start("x");
    }
    office.run();
    int lost = 0;
    for (std::size_t i = 0; i < 20; ++i) {
        lost += office.result(i).success ? 0 : 1;
    }
    CHECK(lost == (retries ? 0 : 3));  // without a retry, those that failed before the breaker opened
    // Four fail before the breaker opens, and the three that have got their slots; then three probes.
    CHECK(static_cast<int>(office.provider.calls.size()) == 20 - lost + 4 + 3 + 3);
    CHECK(office.endpoint.breaker().status().state == sluice::BreakerStatus::closed);
}

TEST_CASE("endpoint: a query that always fails does not keep the breaker open for the others", "[endpoint][breaker]") {
    const By by = GENERATE(By::stage, By::step);
    const BreakerOptions breaker{.minimum_calls = 1, .open_time = 1s, .jitter = 0, .probes = 1};
    Office<> office(by, {.limit = 1, .breaker = breaker}, {.retry = {.max_retries = 1, .backoff = {.initial = 0s}}});
    office.provider.decide = [&](std::size_t call) {
        if (office.provider.calls[call].second == "p") {
            throw down();
        }
    };
    for (const char* const text : {"p", "a", "b", "c", "d"}) {
        office.start(text);
    }
    office.run();
    // It opens the breaker, and fails as the first probe. The next ones are of others, which succeed; so after the
    // third outage its failures count.
    CHECK(office.texts() == "ppapbpcpdp");
    CHECK_FALSE(office.result(0).success);
    CHECK(office.result(4).success);
}

TEST_CASE("endpoint: who does not wait for an open breaker fails at once", "[endpoint][breaker]") {
    const By by = GENERATE(By::stage, By::step);
    Office<> office(by, {.limit = 1, .breaker = BreakerOptions{}}, {.while_open = WhileOpen::fail});
    office.endpoint.breaker().force_open();
    office.start("a");
    office.run();
    CHECK(office.result(0).reason == Reason::breaker_open);
    CHECK(office.result(0).error.message() == "the circuit breaker of endpoint 'gpt' is open");
    CHECK(office.texts().empty());
    office.endpoint.breaker().reset();
    office.start("b");
    office.run();
    CHECK(office.result(1).success);
}

TEST_CASE("endpoint: an exhausted account fails those that wait, unless they hold", "[endpoint][breaker]") {
    const By by = GENERATE(By::stage, By::step);
    const WhileOpen while_open = GENERATE(WhileOpen::hold_unless_exhausted, WhileOpen::hold, WhileOpen::fail);
    Office<> office(by, {.limit = 1, .breaker = BreakerOptions{.open_time = 1s, .jitter = 0}},
                    {.while_open = while_open});
    office.provider.decide = [](std::size_t call) {
        if (call == 0) {
            throw no_credit();
        }
    };
    office.start("a");
    office.start("b");
    office.run();
    CHECK(office.result(0).success == (while_open == WhileOpen::hold));
    if (while_open != WhileOpen::hold) {
        CHECK(office.result(0).error.message() == "no credit");
        CHECK(office.result(1).reason == Reason::breaker_open);
    }
    CHECK(office.result(1).success == (while_open == WhileOpen::hold));
    CHECK(office.provider.calls.size() == (while_open == WhileOpen::hold ? 3 : 1));
}

TEST_CASE("endpoint: a call that finds the account exhausted in an outage fails those that wait, too",
          "[endpoint][breaker]") {
    const By by = GENERATE(By::stage, By::step);
    const WhileOpen while_open = GENERATE(WhileOpen::hold_unless_exhausted, WhileOpen::hold);
    Office<> office(by, {.limit = 2, .breaker = BreakerOptions{.minimum_calls = 1, .open_time = 1s, .jitter = 0}},
                    {.while_open = while_open});
    office.provider.decide = [&](std::size_t call) {
        if (call == 0) {
            throw down();
        }
        if (call == 1) {
            throw no_credit();
        }
    };
    office.start("a");
    office.run_until(5ms);
    office.start("b");
    office.start("c");
    office.run();
    const bool holds = while_open == WhileOpen::hold;
    for (std::size_t i = 0; i != 3; ++i) {
        CHECK(office.result(i).success == holds);
    }
    if (!holds) {
        CHECK(test::now(office.context) == 15ms);
        CHECK(office.result(1).error.message() == "no credit");
        CHECK(office.result(2).reason == Reason::breaker_open);
    }
    CHECK(office.provider.calls.size() == (holds ? 5 : 2));
}

TEST_CASE("endpoint: a call whose coroutine is destroyed returns its slot and its probe", "[endpoint][breaker]") {
    asio::io_context context(1);
    const BreakerOptions breaker{.minimum_calls = 1, .open_time = 1s, .jitter = 0, .probes = 1};
    sluice::Endpoint<VirtualTimer> endpoint(timed(context.get_executor()), "gpt",
                                            EndpointOptions{.limit = 1, .breaker = breaker});
    const auto model = [](const std::string& text) -> asio::awaitable<std::string> {
        return [](std::string what) -> asio::awaitable<std::string> {
            if (what == "fail") {
                throw down();
            }
            if (what == "lost") {
                const auto drop = [](auto&& handler) { const auto dropped = std::move(handler); };
                co_await asio::async_initiate<const asio::use_awaitable_t<>, void()>(drop, asio::use_awaitable);
            }
            co_return what;
        }(text);
    };
    const sluice::Stage stage(endpoint, "s", model, StageOptions{.while_open = WhileOpen::hold});
    std::deque<Task<Answer>> tasks;
    for (const char* const text : {"fail", "lost", "well"}) {
        tasks.emplace_back(context.get_executor(), [&stage, text] { return stage.run("q", std::string(text)); });
        test::poll(context);
    }
    tasks.front().cancel();
    sluice::testing::run(context);
    CHECK_FALSE(tasks[1].done());
    REQUIRE(tasks[2].succeeded());
    CHECK(tasks[2].value().success);
    CHECK(endpoint.active() == 0);
    CHECK(endpoint.breaker().status().state == sluice::BreakerStatus::closed);
}

TEST_CASE("endpoint: the breaker may be forced open and closed", "[endpoint][breaker]") {
    const By by = GENERATE(By::stage, By::step);
    Office<> office(by, {.limit = 1, .breaker = BreakerOptions{.minimum_calls = 1}});
    office.endpoint.breaker().force_open();
    CHECK(office.endpoint.breaker().status().forced);
    office.start("a");
    office.run_until(1h);
    CHECK(office.texts().empty());
    office.endpoint.breaker().force_closed();
    office.provider.decide = [](std::size_t) { throw down(); };
    office.start("b");
    office.run();
    CHECK(office.time_of(0) == 1h);
    CHECK(office.texts() == "ab");
}

TEST_CASE("endpoint: closing it ends the waits for rates, pauses and breakers", "[endpoint][close]") {
    const By by = GENERATE(By::stage, By::step);
    Office<> office(by, {.limit = 1, .requests = Rate(1, 24h), .breaker = BreakerOptions{}});
    office.start("a");
    office.start("b");
    office.run_until(1s);
    office.endpoint.close();
    office.run();
    CHECK(office.result(1).reason == Reason::closed);
    CHECK(test::now(office.context) == 1s);
}

TEST_CASE("endpoint: options that are out of range are named", "[endpoint]") {
    const auto refusal = [](const EndpointOptions& options) {
        return test::refusal_of([&] { Office<> office(By::stage, options); });
    };
    CHECK(refusal({.limit = 1, .requests = Rate(1, 0s)}) ==
          "Endpoint 'gpt': requests, period 1: per must be positive, got 0 ns");
    CHECK(refusal({.limit = 1, .breaker = BreakerOptions{.probes = 0}}) ==
          "Endpoint 'gpt': probes must be at least 1, got 0");
}

TEST_CASE("attempt: it says what it is for, and what is left of its timeout", "[attempt]") {
    const By by = GENERATE(By::stage, By::step);
    const bool has_timeout = GENERATE(false, true);
    StageOptions options{.retry = {.max_retries = 1, .backoff = {.initial = 0s}}};
    if (has_timeout) {
        options.timeout = 15ms;
    }
    Office<ReportingModel> office(by, {.limit = 1}, options);
    std::vector<std::string> seen;
    office.report = [&](sluice::Attempt& attempt) {
        seen.push_back(attempt.query_id().str() + ' ' + attempt.stage().str() + ' ' + std::to_string(attempt.number()));
        CHECK(attempt.time_left() == (has_timeout ? std::optional<std::chrono::nanoseconds>(15ms) : std::nullopt));
    };
    office.provider.decide = [](std::size_t call) {
        if (call == 0) {
            throw std::runtime_error("once");
        }
    };
    office.start("a");
    office.run();
    CHECK(office.result(0).success);
    CHECK(seen == std::vector<std::string>{"id reply 1", "id reply 2"});
}

TEST_CASE("attempt: what is left of the timeout becomes less, and is never negative", "[attempt]") {
    asio::io_context context(1);
    sluice::Stage stage(
        timed(context.get_executor()), "s", 1,
        [](int, sluice::Attempt& attempt) -> asio::awaitable<int> {
            return [](sluice::Attempt& own) -> asio::awaitable<int> {
                co_await test::sleep(4ms);
                CHECK(own.time_left() == 6ms);
                try {
                    co_await test::sleep(1h);
                } catch (const boost::system::system_error&) {
                    CHECK(own.time_left() == 0ms);
                }
                co_return 1;
            }(attempt);
        },
        StageOptions{.timeout = 10ms});
    const Task<sluice::StageResult<int>> task(context.get_executor(), [&] { return stage.run("q", 1); });
    sluice::testing::run(context);
    CHECK(task.succeeded());
}

TEST_CASE("attempt: reported usage replaces the estimate, however the call ends", "[attempt][rate]") {
    const By by = GENERATE(By::stage, By::step);
    const bool fails = GENERATE(false, true);
    const std::int64_t used = GENERATE(0, 10, 25);
    Office<ReportingModel> office(by, {.limit = 1, .input_tokens = Rate(1000, 1s, 10)});
    office.provider.takes = 1ms;
    office.report = [used](sluice::Attempt& attempt) {
        attempt.used({.input_tokens = 99});
        attempt.used({.input_tokens = used});
    };
    office.provider.decide = [fails](std::size_t) {
        if (fails) {
            throw std::runtime_error("paid for nothing");
        }
    };
    office.start("a");
    office.start("b");
    office.run();
    // A token a millisecond: the balance is 0 at the beginning, and `10 - used` more when the call has ended at 1 ms.
    CHECK(office.time_of(1) == std::max(1, static_cast<int>(used)) * 1ms);
}

TEST_CASE("attempt: a usage that is out of range is refused", "[attempt][rate]") {
    Office<ReportingModel> office(By::stage, {.limit = 1});
    office.report = [](sluice::Attempt& attempt) { attempt.used({.output_tokens = -1}); };
    office.start("a");
    office.run();
    CHECK(office.result(0).error.message() == "Attempt::used: output_tokens of a cost must be from 0 to 10^15, got -1");
}

TEST_CASE("attempt: it pauses the endpoint, by itself or since nothing remains", "[attempt][pause]") {
    const By by = GENERATE(By::stage, By::step);
    const std::int64_t remaining = GENERATE(-1, 0, 1);
    Office<ReportingModel> office(by, {.limit = 1});
    office.report = [remaining](sluice::Attempt& attempt) {
        if (remaining < 0) {
            attempt.pause(2s);
        } else {
            attempt.remaining(remaining, 2s);
        }
    };
    office.start("a");
    office.start("b");
    office.run();
    CHECK(office.time_of(1) == (remaining == 1 ? 10ms : 2s));
}

TEST_CASE("attempt: a function that can be called without one gets none", "[attempt]") {
    asio::io_context context(1);
    const auto generic = [](auto&&... args) -> asio::awaitable<std::size_t> {
        return [](std::size_t count) -> asio::awaitable<std::size_t> { co_return count; }(sizeof...(args));
    };
    sluice::Stage stage(timed(context.get_executor()), "s", 1, generic);
    Task<sluice::StageResult<std::size_t>> task(context.get_executor(), [&] { return stage.run("q", 1, 2); });
    sluice::testing::run(context);
    CHECK(task.value().data == 2);
}

TEST_CASE("attempt: the models of an InferencePipeline may take one", "[attempt]") {
    asio::io_context context(1);
    test::DeadLetters sink;
    int attempts = 0;
    const auto model = [&](const std::string& text, sluice::Attempt& attempt) -> asio::awaitable<std::string> {
        attempts += attempt.number();
        return [](std::string copy) -> asio::awaitable<std::string> { co_return copy; }(text);
    };
    const auto generate = [](const std::string& intent, const std::string& entities, const std::string&,
                             sluice::Attempt&) -> asio::awaitable<std::string> {
        return [](std::string copy) -> asio::awaitable<std::string> { co_return copy; }(intent + entities);
    };
    const auto executor = timed(context.get_executor());
    sluice::InferencePipeline pipeline(executor, model, model, generate, sluice::StageLimits{1, 1, 1}, sink);
    const sluice::Query query("q", "x");
    const auto process = [&] { return pipeline.process_one(query); };
    Task<sluice::PipelineResult<std::string, std::string, std::string>> task(context.get_executor(), process);
    sluice::testing::run(context);
    CHECK(task.value().response == "xx");
    CHECK(attempts == 2);
}

TEST_CASE("endpoint: its context may be destroyed at any step while calls wait for rates, pauses and a breaker",
          "[endpoint][stress]") {
    const bool endpoint_first = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Provider provider;
        auto context = std::make_unique<asio::io_context>(1);
        provider.context = context.get();
        provider.decide = [](std::size_t call) {
            if (call == 0 || call == 2) {
                throw throttled(call == 0 ? std::optional<std::chrono::nanoseconds>(20ms) : std::nullopt);
            }
            if (call == 3 || call == 4) {
                throw down();
            }
        };
        const EndpointOptions options{.limit = 2,
                                      .requests = Rate(1, 5ms, 2),
                                      .breaker = BreakerOptions{.minimum_calls = 2, .open_time = 30ms, .jitter = 0}};
        auto endpoint =
            std::make_optional<sluice::Endpoint<VirtualTimer>>(timed(context->get_executor()), "gpt", options);
        auto stage = std::make_optional<sluice::Stage<ProviderModel, VirtualTimer>>(
            *endpoint, "s", ProviderModel{&provider},
            StageOptions{.retry = {.backoff = {.initial = 2ms, .jitter = 0}}});
        std::deque<Task<Answer>> runs;
        for (int i = 0; i != 5; ++i) {
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
            endpoint->pause(1s);
            endpoint->set_rate(Rate::requests, Rate(9, 1s));
            endpoint->breaker().reset();
        }
    });
}
