// SPDX-License-Identifier: BSL-1.0
// Two endpoints with every policy behind a fallback, in which each piece of user code fails in turn: each query ends
// once, nobody waits for ever, and every slot, token and retry is given back.
#include <sluice/metrics/metrics.hpp>
#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry_budget.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/testing/fuse.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/scripted_model.hpp>

#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <optional>
#include <set>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::Rate;
using sluice::Verdict;
using sluice::testing::Fuse;
using test::Task;
using test::timed;
using test::VirtualTimer;

using FusedCalls = sluice::testing::ScriptedModel<std::string(const std::string&)>;

constexpr std::int64_t input_tokens = 100;

// A model that estimates its tokens, and reports more than it has estimated.
struct FusedModel {
    FusedCalls calls;
    Fuse fuse;

    asio::awaitable<std::string> operator()(const std::string& text, sluice::Attempt& attempt) const {
        return call(calls, fuse, text, attempt);
    }
    sluice::Cost cost(const std::string&) const {
        fuse.point();
        return {.input_tokens = input_tokens};
    }

    static asio::awaitable<std::string> call(FusedCalls calls, Fuse fuse, std::string text, sluice::Attempt& attempt) {
        std::string answer = co_await calls(text);
        attempt.used({.input_tokens = input_tokens + 50});
        fuse.point();
        co_return answer;
    }
};

struct FusedAnswer {
    std::optional<std::string> text;
};

struct FusedSink {
    Fuse fuse;
    std::multiset<std::string> letters;

    void put(const sluice::Query& query, const sluice::StageResult<>&, const FusedAnswer&) {
        fuse.point();
        letters.insert(query.id.str());
    }
    void save(const sluice::Query&, const FusedAnswer&) { fuse.point(); }
};

sluice::EndpointOptions every_policy() {
    return {.limit = 2,
            .requests = Rate(20, 1s, 2),
            .input_tokens = Rate(60 * input_tokens, 1min, 3 * input_tokens),
            .breaker = sluice::BreakerOptions{.minimum_calls = 2, .open_time = 500ms, .jitter = 0, .probes = 1},
            .retry_budget = sluice::RetryBudget{.ratio = 0.2, .min_retries = 1},
            .max_waiting = 3,
            .max_wait = 5s};
}

std::exception_ptr fused_error(Verdict::Kind kind) {
    return std::make_exception_ptr(sluice::ModelError("injected", {.kind = kind}));
}

struct Endings {
    std::size_t completed = 0;
    std::size_t lost = 0;
};

Endings run_policies(const Fuse& fuse, std::optional<std::chrono::nanoseconds> timeout) {
    INFO("point " << fuse.number());
    const auto model = [&fuse](std::chrono::nanoseconds latency) {
        const auto script = [fuse, latency](std::size_t call, const std::string& text) {
            fuse.point();
            if (call % 3 == 1) throw sluice::ModelError("busy", {.kind = Verdict::overloaded}, 503);
            if (call % 5 == 2) throw sluice::ModelError("slow down", {Verdict::throttled, 200ms}, 429);
            return FusedCalls::Call{.answer = text, .latency = latency};
        };
        return FusedModel{FusedCalls(script, 2), fuse};
    };
    const FusedModel quick = model(30ms);
    const FusedModel thorough = model(400ms);
    FusedSink sink{fuse, {}};
    asio::io_context context(1);
    const auto executor = timed(context.get_executor());
    const sluice::Endpoint alpha(executor, "alpha", every_policy());
    const sluice::Endpoint beta(executor, "beta", every_policy());
    sluice::StageOptions options;
    options.timeout = 300ms;
    options.retry = test::retries(1, 20ms);
    const sluice::Stage first(alpha, "first", quick, options);
    options.timeout = std::nullopt;
    const sluice::Stage second(beta, "second", thorough, options);
    const auto both = sluice::Fallback("both", first, second).accept([fuse](const std::string& value) {
        fuse.point();
        return value != "query 3";
    });
    sluice::Metrics metrics;
    metrics.watch(alpha);
    metrics.watch(beta);

    auto route = [&](sluice::Run<FusedAnswer>& run) -> asio::awaitable<void> {
        co_await run.step(&FusedAnswer::text, both, run.query().text);
    };
    sluice::Pipeline pipeline(executor, route, sink, 4);
    auto queries = test::make_queries(8);
    for (auto& query : queries) query.timeout = timeout;
    Task<std::vector<sluice::RecordResult<FusedAnswer>>> batch(
        context.get_executor(), [&] { return pipeline.process_batch(std::move(queries)); });
    sluice::testing::run(context);  // which fails if somebody still waits

    REQUIRE(batch.succeeded());
    REQUIRE(batch.value().size() == 8);
    Endings endings;
    for (const auto& result : batch.value()) {
        CHECK_FALSE(result.unfinished);
        CHECK((!result.completed || result.record.text.has_value()));  // what save() throws for has its value
        const auto letters = sink.letters.count(result.query.id.str());
        CHECK(letters == (result.completed || result.dead_letter_error ? 0 : 1));
        ++(result.completed ? endings.completed : endings.lost);
    }
    CHECK(quick.calls.most_running() <= 2);
    CHECK(thorough.calls.most_running() <= 2);
    for (const auto& endpoint : {alpha, beta}) {
        CHECK(endpoint.active() == 0);
        CHECK(endpoint.waiting() == 0);
        CHECK(endpoint.retries() == 0);
    }
    const sluice::MetricsSnapshot snapshot = metrics.snapshot();
    CHECK(snapshot.endpoints.size() == 2);
    for (const auto& endpoint : snapshot.endpoints) {
        CHECK(endpoint.rate(Rate::input_tokens).granted > 0);
        for (const auto& rate : endpoint.rates) {
            CHECK(rate.outstanding == 0);
            CHECK(rate.granted + rate.debt == rate.settled + rate.refunded);
        }
    }
    return endings;
}

}  // namespace

TEST_CASE("fuse: behind every policy, whatever fails, each query ends once, and all is given back",
          "[fuse][policies]") {
    const auto timeout =
        GENERATE(std::optional<std::chrono::nanoseconds>(), std::optional<std::chrono::nanoseconds>(2s));
    const auto error =
        GENERATE(std::exception_ptr(nullptr), fused_error(Verdict::throttled), fused_error(Verdict::exhausted));
    std::size_t most = 0;
    const int points = sluice::testing::fuse_each(
        [&](const Fuse& fuse) { most = std::max(most, run_policies(fuse, timeout).completed); }, error);
    CHECK(points > 8 * 3);
    CHECK(most > 0);
}
