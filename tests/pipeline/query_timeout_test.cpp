// SPDX-License-Identifier: BSL-1.0
// The timeout of a query: every wait is cut to it, and it is exact on virtual time.
#include <sluice/pipeline/checkpoint.hpp>
#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/deadline_error.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <limits>
#include <optional>
#include <set>
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
using std::chrono::nanoseconds;
using test::Task;
using test::timed;
using test::VirtualTimer;

// No templates: see RetryDecision.
ModelError too_fast(nanoseconds retry_after) {
    return ModelError("too fast", {.kind = Verdict::throttled, .retry_after = retry_after}, 429);
}

Query with_timeout(std::string text, std::optional<nanoseconds> timeout) {
    Query query("id", std::move(text));
    query.timeout = timeout;
    return query;
}

// What a call does, by its number.
using Script = std::function<asio::awaitable<std::string>(std::size_t call)>;

struct ScriptedCall {
    Script* script;
    std::size_t* calls;

    asio::awaitable<std::string> operator()(const std::string&) const { return (*script)((*calls)++); }
};

// The same, which sees how much time is left.
struct WatchfulCall {
    std::optional<nanoseconds>* left;

    asio::awaitable<std::string> operator()(const std::string&, sluice::Attempt& attempt) const {
        return ask(*left, attempt);
    }
    static asio::awaitable<std::string> ask(std::optional<nanoseconds>& left, sluice::Attempt& attempt) {
        co_await test::sleep(1s);
        left = attempt.time_left();
        co_return "seen";
    }
};

asio::awaitable<std::string> answer_after(nanoseconds time) {
    co_await test::sleep(time);
    co_return "answer";
}

asio::awaitable<std::string> fail_after(nanoseconds time, std::string message) {
    co_await test::sleep(time);
    throw std::runtime_error(message);
}

// Takes its time, whoever cancels it.
asio::awaitable<std::string> stubborn_answer(nanoseconds time) {
    co_await asio::this_coro::reset_cancellation_state(
        [](asio::cancellation_type) { return asio::cancellation_type::none; },
        [](asio::cancellation_type) { return asio::cancellation_type::none; });
    co_await test::sleep(time);
    co_return "answer";
}

struct Pair {
    std::optional<std::string> first;
    std::optional<std::string> second;
};
using PairRun = sluice::Run<Pair>;
using PairResult = sluice::RecordResult<Pair>;

// A pipeline of two steps, on endpoints of their own, and queries through it.
class Trip {
public:
    asio::io_context context{1};
    Script first = [](std::size_t) { return answer_after(1s); };
    Script second = [](std::size_t) { return answer_after(1s); };
    std::size_t first_calls = 0;
    std::size_t second_calls = 0;
    sluice::Endpoint<VirtualTimer> endpoint;
    std::function<asio::awaitable<void>(Trip&, PairRun&)> route = &Trip::both;
    test::DeadLetters dead_letters;
    std::optional<nanoseconds> left;

    explicit Trip(const EndpointOptions& options, const StageOptions& stage_options = {}, std::ptrdiff_t window = 99)
        : endpoint(timed(context.get_executor()), "gpt", options),
          first_stage(endpoint, "first", ScriptedCall{&first, &first_calls}, stage_options),
          second_stage(timed(context.get_executor()), "second", 9, ScriptedCall{&second, &second_calls}),
          watchful_stage(endpoint, "watchful", WatchfulCall{&left}, stage_options),
          pipeline(
              timed(context.get_executor()), [this](PairRun& run) { return route(*this, run); }, dead_letters, window) {
    }

    std::size_t start(std::optional<nanoseconds> timeout) {
        const std::size_t index = tasks.size();
        tasks.emplace_back(context.get_executor(), [this, timeout, index] { return go(*this, timeout, index); });
        ended.emplace_back();
        return index;
    }

    void run() {
        sluice::testing::run(context);
        CHECK(endpoint.active() == 0);
        CHECK(endpoint.waiting() == 0);
    }
    void run_until(nanoseconds time) { test::run_until(context, time); }

    const PairResult& result(std::size_t index) { return tasks.at(index).value(); }
    const sluice::StageResult<>& last(std::size_t index) { return result(index).stage_results.back(); }

    // Whether the query is late: the reason, and when it ended.
    bool is_late(std::size_t index, nanoseconds at) {
        REQUIRE(tasks.at(index).done());
        CHECK(ended.at(index) == at);
        return result(index).failure() && result(index).failure()->reason == Reason::deadline;
    }

    static asio::awaitable<void> both(Trip& trip, PairRun& run) {
        co_await run.step(&Pair::first, trip.first_stage, run.query().text);
        co_await run.step(&Pair::second, trip.second_stage, run.query().text);
    }

private:
    static asio::awaitable<PairResult> go(Trip& trip, std::optional<nanoseconds> timeout, std::size_t index) {
        const Query query = with_timeout("text", timeout);
        PairResult result = co_await trip.pipeline.process_one(query);
        trip.ended.at(index) = test::now(trip.context);
        co_return std::move(result);
    }

public:
    sluice::Stage<ScriptedCall, VirtualTimer> first_stage;
    sluice::Stage<ScriptedCall, VirtualTimer> second_stage;
    sluice::Stage<WatchfulCall, VirtualTimer> watchful_stage;
    sluice::Pipeline<std::function<asio::awaitable<void>(PairRun&)>, test::DeadLetters, VirtualTimer> pipeline;
    std::vector<nanoseconds> ended;
    std::deque<Task<PairResult>> tasks;
};

std::string message_of(const sluice::StageResult<>& result) { return result.error.message(); }

}  // namespace

TEST_CASE("query timeout: a call is cancelled when it is over, to the nanosecond", "[query_timeout]") {
    Trip trip({.limit = 1});
    trip.first = [](std::size_t) { return answer_after(10s); };
    const std::size_t query = trip.start(2s + 1ns);
    trip.run();
    CHECK(trip.is_late(query, 2s + 1ns));
    CHECK(message_of(trip.last(query)) == "the query's timeout of 2000.000001 ms is over");
    CHECK(trip.last(query).error.type() == "sluice::DeadlineError");
    CHECK(trip.last(query).attempts == 1);
    CHECK(trip.last(query).latency == 2s + 1ns);
    CHECK(trip.dead_letters.letters.size() == 1);
    CHECK(test::now(trip.context) == 2s + 1ns);  // no timer is left
}

TEST_CASE("query timeout: an error of the cancelled call is nested in that of the query", "[query_timeout]") {
    Trip trip({.limit = 1}, {.retry = {.max_retries = 3}});
    trip.first = [](std::size_t) -> asio::awaitable<std::string> {
        try {
            co_await test::sleep(10s);
        } catch (const std::exception&) {
            throw std::runtime_error("lost the connection");
        }
        co_return "";
    };
    const std::size_t query = trip.start(2s);
    trip.run();
    CHECK(trip.is_late(query, 2s));
    CHECK(message_of(trip.last(query)) == "the query's timeout of 2000 ms is over: lost the connection");
    CHECK(trip.first_calls == 1);
}

TEST_CASE("query timeout: it is as long as the query, not as a stage run", "[query_timeout]") {
    Trip trip({.limit = 1});
    trip.second = [](std::size_t) { return answer_after(10s); };
    const std::size_t query = trip.start(3s);
    trip.run();
    CHECK(trip.is_late(query, 3s));
    CHECK(trip.last(query).stage == "second");
    CHECK(trip.last(query).latency == 2s);
    CHECK(trip.result(query).record.first == "answer");
}

TEST_CASE("query timeout: what is ready when it is over is in time, but what follows does not begin",
          "[query_timeout]") {
    Trip trip({.limit = 1});
    const std::size_t query = trip.start(1s);
    trip.run();
    CHECK(trip.is_late(query, 1s));
    CHECK(trip.result(query).record.first == "answer");
    CHECK_FALSE(trip.result(query).stage_results.front().late);
    CHECK(trip.last(query).stage == "second");
    CHECK(trip.last(query).attempts == 0);
    CHECK(trip.second_calls == 0);

    Trip exact({.limit = 1});
    const std::size_t last = exact.start(2s);
    exact.run();
    CHECK(exact.result(last).completed);
}

TEST_CASE("query timeout: a value that comes late is kept, and the query ends before its next step",
          "[query_timeout]") {
    Trip trip({.limit = 1});
    trip.first = [](std::size_t) { return stubborn_answer(5s); };
    const std::size_t query = trip.start(2s);
    trip.run();
    CHECK(trip.is_late(query, 5s));
    CHECK(trip.result(query).stage_results.front().success);
    CHECK(trip.result(query).stage_results.front().late);
    CHECK(trip.second_calls == 0);
}

TEST_CASE("query timeout: the wait for a slot is cut, and the line goes on as if it had not been there",
          "[query_timeout]") {
    Trip trip({.limit = 1});
    trip.first = [](std::size_t) { return answer_after(5s); };
    const std::size_t before = trip.start(std::nullopt);
    const std::size_t timed = trip.start(2s);
    const std::size_t after = trip.start(std::nullopt);
    trip.run();
    CHECK(trip.is_late(timed, 2s));
    CHECK(trip.last(timed).attempts == 0);
    CHECK(trip.last(timed).queue_time == 2s);
    CHECK(trip.ended.at(before) == 6s);
    CHECK(trip.ended.at(after) == 11s);
    CHECK(trip.first_calls == 2);
}

TEST_CASE("query timeout: whoever gets its slot when it is over does not begin, and takes nothing", "[query_timeout]") {
    const bool gated = GENERATE(false, true);
    Trip trip({.limit = 1, .requests = gated ? Rate(2, 1h, 2) : Rate::unlimited});
    const std::size_t before = trip.start(std::nullopt);
    const std::size_t timed = trip.start(1s);
    const std::size_t after = trip.start(std::nullopt);
    trip.run();
    CHECK(trip.is_late(timed, 1s));
    CHECK(trip.last(timed).attempts == 0);
    CHECK(trip.ended.at(before) == 2s);
    CHECK(trip.ended.at(after) == 3s);  // the rate had two requests
    CHECK(trip.first_calls == 2);
}

TEST_CASE("query timeout: the wait for a rate is cut, and takes nothing", "[query_timeout][rate]") {
    Trip trip({.limit = 9, .requests = Rate(1, 10s)});
    trip.start(std::nullopt);
    const std::size_t timed = trip.start(2s);
    const std::size_t after = trip.start(std::nullopt);
    trip.run();
    CHECK(trip.is_late(timed, 2s));
    CHECK(trip.ended.at(after) == 12s);
}

TEST_CASE("query timeout: nobody waits for a pause that ends too late", "[query_timeout][rate]") {
    Trip trip({.limit = 1});
    SECTION("it was paused before") {
        trip.endpoint.pause(2s);
        const std::size_t timed = trip.start(2s);
        const std::size_t longer = trip.start(2s + 1ns);
        trip.run();
        CHECK(trip.is_late(timed, 0s));
        CHECK(trip.is_late(longer, 2s + 1ns));  // it has begun, at least
        CHECK(trip.last(longer).attempts == 1);
    }
    SECTION("it is paused while queries wait") {
        trip.first = [](std::size_t) { return answer_after(5s); };
        const std::size_t untimed = trip.start(std::nullopt);
        const std::size_t second = trip.start(std::nullopt);
        const std::size_t timed = trip.start(8s);
        trip.run_until(1s);
        trip.endpoint.pause(7s);
        trip.run();
        CHECK(trip.is_late(timed, 1s));
        CHECK(trip.ended.at(untimed) == 6s);
        CHECK(trip.ended.at(second) == 14s);
    }
    SECTION("a pause without end stops only those that have a timeout") {
        trip.endpoint.pause(nanoseconds::max());
        const std::size_t timed = trip.start(nanoseconds::max());
        const std::size_t untimed = trip.start(std::nullopt);
        trip.run_until(1h);
        CHECK(trip.is_late(timed, 0s));
        CHECK_FALSE(trip.tasks.at(untimed).done());
        trip.endpoint.close();
        trip.run();
        CHECK(trip.last(untimed).reason == Reason::closed);
    }
}

TEST_CASE("query timeout: nobody waits for a breaker that stays open for longer, but for probes",
          "[query_timeout][breaker]") {
    Trip trip({.limit = 9,
               .breaker = sluice::BreakerOptions{.minimum_calls = 1, .open_time = 10s, .jitter = 0, .probes = 1}});
    trip.first = [](std::size_t call) { return call == 0 ? fail_after(1s, "down") : answer_after(5s); };
    const std::size_t opens = trip.start(30s);
    const std::size_t waiting = trip.start(10s);
    trip.run_until(1s);
    trip.run_until(2s);
    const std::size_t hopeless = trip.start(9s);
    trip.run_until(11s + 1ns);
    CHECK(trip.is_late(hopeless, 2s));
    const std::size_t probed = trip.start(4s);  // a probe runs until 16 s
    trip.run();
    static_cast<void>(waiting);
    CHECK(trip.result(opens).completed);
    CHECK(trip.is_late(probed, 15s + 1ns));
}

TEST_CASE("query timeout: no backoff that would end too late: the real error now", "[query_timeout]") {
    const auto timeout = GENERATE(2s, 3s, 4s);
    Trip trip({.limit = 1}, {.retry = {.max_retries = 5, .backoff = {.initial = 2s, .jitter = 0}}});
    trip.first = [](std::size_t) { return fail_after(1s, "no answer"); };
    const std::size_t query = trip.start(timeout);
    trip.run();
    if (timeout == 4s) {  // 1 s, 2 s backoff, 1 s, and then no second backoff
        CHECK(trip.is_late(query, 4s));
        CHECK(trip.last(query).attempts == 2);
    } else {
        CHECK(trip.is_late(query, 1s));
        CHECK(trip.last(query).attempts == 1);
    }
    CHECK(message_of(trip.last(query)) == "no answer");
    CHECK(trip.last(query).error.type() == "std::runtime_error");
}

TEST_CASE("query timeout: retries that are used up are no matter of time", "[query_timeout]") {
    Trip trip({.limit = 1});
    trip.first = [](std::size_t) { return fail_after(1s, "no answer"); };
    const std::size_t query = trip.start(1s + 1ns);
    trip.run();
    CHECK(trip.last(query).reason == Reason::model);
}

TEST_CASE("query timeout: whoever was throttled does not wait for a pause that ends too late",
          "[query_timeout][rate]") {
    Trip trip({.limit = 1});
    trip.first = [](std::size_t) -> asio::awaitable<std::string> {
        co_await test::sleep(1s);
        throw too_fast(20s);
    };
    const std::size_t query = trip.start(10s);
    trip.run();
    CHECK(trip.is_late(query, 1s));
    CHECK(message_of(trip.last(query)) == "too fast");
}

TEST_CASE("query timeout: an attempt ends at the earlier of its timeout and that of the query", "[query_timeout]") {
    Trip trip({.limit = 1}, {.timeout = 3s, .retry = {.max_retries = 9, .backoff = {.initial = 0s}}});
    trip.first = [](std::size_t) { return answer_after(10s); };
    const std::size_t query = trip.start(5s);
    trip.run();
    CHECK(trip.is_late(query, 5s));
    CHECK(trip.last(query).attempts == 2);
    CHECK(message_of(trip.last(query)) == "the query's timeout of 5000 ms is over: timed out after 3000 ms");
}

TEST_CASE("query timeout: the model sees how much time is left", "[query_timeout]") {
    const auto own =
        GENERATE(std::optional<nanoseconds>(), std::optional<nanoseconds>(4s), std::optional<nanoseconds>(20s));
    Trip trip({.limit = 1}, {.timeout = own});
    trip.route = [](Trip& its_trip, PairRun& run) -> asio::awaitable<void> {
        co_await run.step(&Pair::second, its_trip.second_stage, run.query().text);
        co_await run.step(&Pair::first, its_trip.watchful_stage, run.query().text);
    };
    trip.start(10s);
    trip.run();
    CHECK(trip.left == (own == 4s ? 3s : 8s));
}

TEST_CASE("query timeout: zero and less are late at once, and the longest does not overflow", "[query_timeout]") {
    const nanoseconds timeout = GENERATE(nanoseconds::min(), nanoseconds(-1), nanoseconds(0), nanoseconds::max());
    Trip trip({.limit = 1});
    const std::size_t query = trip.start(timeout);
    trip.run();
    if (timeout > 0s) {
        CHECK(trip.result(query).completed);
    } else {
        CHECK(trip.is_late(query, 0s));
        CHECK(trip.first_calls == 0);
    }
}

TEST_CASE("query timeout: an error that the route asked for may be followed only by steps that are filled",
          "[query_timeout]") {
    Trip trip({.limit = 1});
    trip.first = [](std::size_t) { return answer_after(10s); };
    trip.route = [](Trip& its_trip, PairRun& run) -> asio::awaitable<void> {
        const sluice::StageError error =
            co_await run.step_or_error(&Pair::first, its_trip.first_stage, run.query().text);
        CHECK(error);
        run->first = "fallback";
        co_await run.step(&Pair::first, its_trip.first_stage, run.query().text);
    };
    const std::size_t query = trip.start(2s);
    trip.run();
    CHECK(trip.result(query).completed);
    CHECK(trip.ended.at(query) == 2s);
}

TEST_CASE("query timeout: steps side by side are cut at the same time", "[query_timeout]") {
    Trip trip({.limit = 1});
    trip.first = trip.second = [](std::size_t) { return answer_after(10s); };
    trip.route = [](Trip& its_trip, PairRun& run) -> asio::awaitable<void> {
        co_await run.all(run.step(&Pair::first, its_trip.first_stage, run.query().text),
                         run.step(&Pair::second, its_trip.second_stage, run.query().text));
    };
    const std::size_t query = trip.start(2s);
    trip.run();
    CHECK(trip.is_late(query, 2s));
    CHECK(trip.result(query).stage_results.size() == 2);
    CHECK(trip.dead_letters.letters.size() == 1);
}

TEST_CASE("query timeout: whoever comes back from a backoff does not wait for a place for longer", "[query_timeout]") {
    Trip trip({.limit = 9}, {.retry = {.max_retries = 5, .backoff = {.initial = 1s, .jitter = 0}}}, 1);
    trip.first = [](std::size_t call) { return call == 0 ? fail_after(1s, "no answer") : answer_after(60s); };
    std::vector<Query> queries{with_timeout("a", 5s), with_timeout("b", std::nullopt)};
    std::optional<nanoseconds> end_of_first;
    std::vector<PairResult> results;
    const Task task(trip.context.get_executor(), [&]() -> asio::awaitable<void> {
        auto stream = trip.pipeline.process_stream(queries);
        while (auto item = co_await stream.next()) {
            if (item->index == 0) {
                end_of_first = test::now(trip.context);
            }
            results.push_back(std::move(item->result));
        }
    });
    trip.run();
    REQUIRE(results.size() == 2);
    CHECK(end_of_first == 5s);
    CHECK(results.at(0).failure()->reason == Reason::deadline);
    CHECK(message_of(*results.at(0).failure()) == "the query's timeout of 5000 ms is over: no answer");
    CHECK(results.at(1).completed);
}

TEST_CASE("query timeout: in batches too, each from when it is taken in", "[query_timeout]") {
    Trip trip({.limit = 9}, {}, 1);
    trip.first = [](std::size_t) { return answer_after(2s); };
    const std::vector<Query> queries{with_timeout("a", 3s), with_timeout("b", 2s), with_timeout("c", 3s)};
    std::vector<PairResult> results;
    const Task task(trip.context.get_executor(),
                    [&]() -> asio::awaitable<void> { results = co_await trip.pipeline.process_batch(queries); });
    trip.run();
    REQUIRE(results.size() == 3);
    CHECK(results.at(0).completed);
    CHECK(results.at(1).failure()->reason == Reason::deadline);
    CHECK(results.at(2).completed);
    CHECK(test::now(trip.context) == 8s);
}

TEST_CASE("query timeout: a query that is redriven begins with the whole timeout", "[query_timeout]") {
    Trip trip({.limit = 9});
    trip.second = [](std::size_t call) { return answer_after(call == 0 ? 5s : 1s); };
    const Query query = with_timeout("text", 2s);
    std::optional<PairResult> first;
    std::optional<PairResult> second;
    const Task task(trip.context.get_executor(), [&]() -> asio::awaitable<void> {
        first = co_await trip.pipeline.process_one(query);
        const sluice::Checkpoint<Pair> checkpoint(first->query, first->record);
        second = co_await trip.pipeline.process_one(checkpoint);
    });
    trip.run();
    CHECK(first->failure()->reason == Reason::deadline);
    CHECK(second->completed);
    CHECK(test::now(trip.context) == 3s);
    CHECK(trip.first_calls == 1);
}

TEST_CASE("query timeout: an InferencePipeline keeps it too", "[query_timeout]") {
    asio::io_context context(1);
    test::DeadLetters dead_letters;
    const auto takes = [](nanoseconds time) { return [time](const auto&...) { return answer_after(time); }; };
    sluice::InferencePipeline pipeline(timed(context.get_executor()), takes(1s), takes(1s), takes(5s),
                                       sluice::StageLimits{1, 1, 1}, dead_letters);
    const Query query = with_timeout("text", 4s);
    const Task task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const auto result = co_await pipeline.process_one(query);
        CHECK(result.failure()->reason == Reason::deadline);
        CHECK(result.failure()->stage == "generate");
        CHECK(test::now(context) == 4s);
    });
    sluice::testing::run(context);
    CHECK(task.done());
    CHECK(dead_letters.letters.size() == 1);
}

TEST_CASE("query timeout: whoever cancels a query in time, or in the same turn, has cancelled it", "[query_timeout]") {
    const auto at = GENERATE(1s, 2s);
    const bool in_line = GENERATE(false, true);
    Trip trip({.limit = 1});
    trip.first = [](std::size_t) { return answer_after(10s); };
    if (in_line) {
        trip.start(std::nullopt);
    }
    const std::size_t query = trip.start(2s);
    trip.run_until(at - 1ns);
    trip.tasks.at(query).cancel();
    trip.run();
    CHECK(trip.tasks.at(query).aborted());
    CHECK(trip.dead_letters.letters.empty());
}

TEST_CASE("query timeout: of a drain's grace and a timeout the earlier counts", "[query_timeout][drain]") {
    const auto grace = GENERATE(1s, 3s);
    Trip trip({.limit = 1});
    trip.first = [](std::size_t) { return answer_after(10s); };
    const std::size_t query = trip.start(2s);
    const std::size_t waiting = trip.start(2s);
    trip.run_until(1ns);
    const Task task(trip.context.get_executor(),
                    [&]() -> asio::awaitable<void> { co_await trip.pipeline.drain(grace); });
    trip.run();
    for (const std::size_t each : {query, waiting}) {
        if (grace == 1s) {
            CHECK(trip.result(each).unfinished);
        } else {
            CHECK(trip.is_late(each, 2s));
        }
    }
}

TEST_CASE("query timeout: a call that it cuts short fails for the breaker only if its stage has no timeout",
          "[query_timeout][breaker]") {
    const bool has_timeout = GENERATE(false, true);
    Trip trip({.limit = 9, .breaker = sluice::BreakerOptions{.minimum_calls = 1}},
              {.timeout = has_timeout ? std::optional<nanoseconds>(1min) : std::nullopt});
    trip.first = [](std::size_t) { return answer_after(10s); };
    trip.start(2s);
    trip.run_until(3s);
    CHECK(trip.endpoint.breaker().status().state ==
          (has_timeout ? sluice::BreakerStatus::closed : sluice::BreakerStatus::open));
    trip.run();
}

namespace {

// Delivers each query at its time.
struct PunctualSource {
    std::vector<std::pair<nanoseconds, Query>>* items;
    std::size_t next_item = 0;

    asio::awaitable<std::optional<Query>> next() { return deliver(*this); }
    static asio::awaitable<std::optional<Query>> deliver(PunctualSource& source) {
        if (source.next_item == source.items->size()) {
            co_return std::nullopt;
        }
        auto& item = source.items->at(source.next_item);
        const auto now = VirtualTimer::now(co_await asio::this_coro::executor).time_since_epoch();
        if (now < item.first) {
            co_await test::sleep(item.first - now);
        }
        ++source.next_item;
        co_return item.second;
    }
};

struct CountingSlowSink {
    nanoseconds time;
    int running = 0;
    int peak = 0;

    asio::awaitable<void> put(const Query&, const sluice::StageResult<>&) { return run(*this); }
    static asio::awaitable<void> run(CountingSlowSink& sink) {
        sink.peak = std::max(sink.peak, ++sink.running);
        co_await test::sleep(sink.time);
        --sink.running;
    }
};

}  // namespace

TEST_CASE("query timeout: the error before is nested in that of a query whose later attempt is cut short",
          "[query_timeout]") {
    Trip trip({.limit = 1}, {.retry = {.max_retries = 3, .backoff = {.initial = 1s, .jitter = 0}}});
    trip.first = [](std::size_t call) { return call == 0 ? fail_after(1s, "no answer") : answer_after(60s); };
    const std::size_t query = trip.start(5s);
    trip.run();
    CHECK(trip.is_late(query, 5s));
    CHECK(trip.last(query).attempts == 2);
    CHECK(message_of(trip.last(query)) == "the query's timeout of 5000 ms is over: no answer");
}

TEST_CASE("query timeout: a stream whose results nobody takes takes in no more than window and backoffs allow",
          "[query_timeout]") {
    const bool has_timeout = GENERATE(false, true);
    asio::io_context context(1);
    int calls = 0;
    std::set<std::string> seen;
    const auto model = [&](const std::string& text) {
        ++calls;
        seen.insert(text);
        return fail_after(1s, "no answer");
    };
    sluice::Stage stage(
        timed(context.get_executor()), "first", 9, model,
        StageOptions{.retry = {.max_retries = 5, .backoff = {.initial = 500ms, .cap = 500ms, .jitter = 0}}});
    test::DeadLetters dead_letters;
    sluice::Pipeline pipeline(
        timed(context.get_executor()),
        [&](PairRun& run) -> asio::awaitable<void> { co_await run.step(&Pair::first, stage, run.query().text); },
        dead_letters, 1, sluice::PipelineOptions{.max_in_backoff = 2});
    std::vector<Query> queries;
    for (int i = 0; i != 200; ++i) {
        queries.push_back(
            with_timeout(std::to_string(i), has_timeout ? std::optional<nanoseconds>(1900ms) : std::nullopt));
    }
    const Task task(context.get_executor(), [&]() -> asio::awaitable<void> {
        auto stream = pipeline.process_stream(queries);
        co_await stream.next();
        co_await test::sleep(1000s);  // a slow consumer
        CHECK(seen.size() <= 5);      // one taken, one in the window, two in backoff (and one on its way)
        co_await stream.close();
    });
    sluice::testing::run(context);
    CHECK(task.done());
}

TEST_CASE("query timeout: no more dead letters are delivered at once than window and backoffs allow",
          "[query_timeout]") {
    const bool has_timeout = GENERATE(false, true);
    asio::io_context context(1);
    const auto model = [&](const std::string&) { return fail_after(1s, "no answer"); };
    sluice::Stage stage(
        timed(context.get_executor()), "first", 9, model,
        StageOptions{.retry = {.max_retries = 5, .backoff = {.initial = 500ms, .cap = 500ms, .jitter = 0}}});
    CountingSlowSink sink{100s};
    sluice::Pipeline pipeline(
        timed(context.get_executor()),
        [&](PairRun& run) -> asio::awaitable<void> { co_await run.step(&Pair::first, stage, run.query().text); }, sink,
        1, sluice::PipelineOptions{.max_in_backoff = 2});
    std::vector<Query> queries;
    for (int i = 0; i != 80; ++i) {
        queries.push_back(
            with_timeout(std::to_string(i), has_timeout ? std::optional<nanoseconds>(1900ms) : std::nullopt));
    }
    const Task task(context.get_executor(),
                    [&]() -> asio::awaitable<void> { co_await pipeline.process_batch(queries); });
    sluice::testing::run(context);
    CHECK(task.done());
    CHECK(sink.peak <= 3);
}

TEST_CASE("query timeout: a call that is slow counts as slow, although its query cuts it short",
          "[query_timeout][breaker]") {
    const bool stage_timeout = GENERATE(false, true);
    Trip trip({.limit = 9, .breaker = sluice::BreakerOptions{.minimum_calls = 4, .slow = 2s}},
              {.timeout = stage_timeout ? std::optional<nanoseconds>(1min) : std::nullopt});
    trip.first = [](std::size_t) { return answer_after(10min); };
    for (int i = 0; i != 8; ++i) {
        trip.start(20s);
    }
    trip.run_until(21s);
    CHECK(trip.endpoint.breaker().status().state == sluice::BreakerStatus::open);
    trip.run();
}

TEST_CASE("query timeout: no backoff before a pause that ends too late", "[query_timeout][rate]") {
    Trip trip({.limit = 9}, {.retry = {.max_retries = 5, .backoff = {.initial = 5s, .jitter = 0}}});
    trip.first = [](std::size_t) { return fail_after(1s, "no answer"); };
    const std::size_t query = trip.start(10s);
    trip.run_until(500ms);
    trip.endpoint.pause(1min);
    trip.run();
    CHECK(trip.is_late(query, 1s));
    CHECK(message_of(trip.last(query)) == "no answer");
}

TEST_CASE("query timeout: a delivered query does not wait for a place for longer", "[query_timeout]") {
    const auto timeout = GENERATE(std::optional<nanoseconds>(2s), std::optional<nanoseconds>());
    Trip trip({.limit = 9}, {.retry = {.max_retries = 5, .backoff = {.initial = 1s, .jitter = 0}}}, 1);
    trip.first = [](std::size_t call) { return call == 0 ? fail_after(1s, "no answer") : answer_after(60s); };
    // the first is away from 1 s to 2 s, and then has its place; the second comes at 3 s while the source was asked.
    std::vector<std::pair<nanoseconds, Query>> items{{0s, with_timeout("a", std::nullopt)},
                                                     {3s, with_timeout("b", timeout)}};
    std::vector<std::pair<std::size_t, nanoseconds>> ends;
    std::vector<PairResult> results;
    const Task task(trip.context.get_executor(), [&]() -> asio::awaitable<void> {
        PunctualSource source{&items};
        auto stream = trip.pipeline.process_stream(source);
        while (auto item = co_await stream.next()) {
            ends.emplace_back(item->index, test::now(trip.context));
            results.push_back(std::move(item->result));
        }
    });
    trip.run();
    REQUIRE(ends.size() == 2);
    if (timeout) {
        CHECK(ends.at(0) == std::pair(std::size_t(1), nanoseconds(5s)));
        CHECK(results.at(0).failure()->reason == Reason::deadline);
        CHECK(results.at(0).failure()->attempts == 0);
    }
}

TEST_CASE("query timeout: a query that is late before it has a place is away until it has been delivered",
          "[query_timeout]") {
    asio::io_context context(1);
    std::vector<nanoseconds> calls;
    const auto model = [&](const std::string&) {
        calls.push_back(test::now(context));
        return calls.size() < 3 ? fail_after(calls.size() == 1 ? 1s : 5s, "no answer") : answer_after(1s);
    };
    sluice::Stage stage(timed(context.get_executor()), "first", 9, model,
                        StageOptions{.retry = {.max_retries = 5, .backoff = {.initial = 1s, .cap = 1s, .jitter = 0}}});
    CountingSlowSink sink{100s};
    sluice::Pipeline pipeline(
        timed(context.get_executor()),
        [&](PairRun& run) -> asio::awaitable<void> { co_await run.step(&Pair::first, stage, run.query().text); }, sink,
        1, sluice::PipelineOptions{.max_in_backoff = 1});
    // a is away from 1 s to 2 s, so that b is asked for. b is late at 5 s, and its letter takes until 105 s. So a keeps
    // its place from 7 s to 8 s, and c is asked for when a has ended.
    std::vector<std::pair<nanoseconds, Query>> items{
        {0s, with_timeout("a", std::nullopt)}, {3s, with_timeout("b", 2s)}, {3s, with_timeout("c", std::nullopt)}};
    const Task task(context.get_executor(), [&]() -> asio::awaitable<void> {
        PunctualSource source{&items};
        co_await pipeline.process_batch(source);
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(sink.peak == 1);
    CHECK(calls == std::vector<nanoseconds>{0s, 2s, 8s, 9s});
}

TEST_CASE("query timeout: a verdict function that throws on the error of a late query is reported", "[query_timeout]") {
    const bool late = GENERATE(false, true);
    const auto verdict = [](const std::exception_ptr&) -> Verdict { throw std::logic_error("bug"); };
    Trip trip({.limit = 1, .verdict = verdict}, {.retry = {.max_retries = 3}});
    trip.first = [](std::size_t) -> asio::awaitable<std::string> {
        try {
            co_await test::sleep(3s);
        } catch (const std::exception&) {
        }
        throw std::runtime_error("lost the connection");
    };
    const std::size_t query = trip.start(late ? 2s : 20s);
    trip.run();
    CAPTURE(message_of(trip.last(query)));
    CHECK(message_of(trip.last(query)).find("bug") != std::string::npos);
}

TEST_CASE("query timeout: its context may be destroyed at every step", "[query_timeout][shutdown]") {
    test::for_every_step([](test::Steps& steps) {
        Trip trip({.limit = 1}, {.timeout = 3s, .retry = {.max_retries = 1, .backoff = {.initial = 1s, .jitter = 0}}});
        trip.first = [](std::size_t call) { return call == 0 ? fail_after(1s, "no answer") : answer_after(3s); };
        trip.start(3s);
        trip.start(4s);
        trip.start(8s);
        steps.take(trip.context);
    });
}
