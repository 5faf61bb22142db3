// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/verdict.hpp>

#include "support/models.hpp"
#include "support/probes.hpp"
#include "support/stage_bench.hpp"
#include "support/task.hpp"

#include <sluice/reason.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage/with_retry.hpp>
#include <sluice/testing/run.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/multiple_exceptions.hpp>
#include <boost/asio/this_coro.hpp>
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <exception>
#include <functional>
#include <sstream>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::ModelError;
using sluice::Reason;
using sluice::RetryPolicy;
using sluice::Verdict;
using sluice::verdict_of;
using test::refusal_of;
using test::run_one;
using test::Task;
using test::timed;
using test::VirtualTimer;

const std::exception_ptr busy = std::make_exception_ptr(
    ModelError("busy", {.kind = Verdict::throttled, .retry_after = 20ms}, 429, "rate_limit_exceeded"));

// A model function that throws these errors one after the other, then returns 1.
struct Failing {
    std::vector<std::exception_ptr> errors;
    int calls = 0;

    asio::awaitable<int> operator()() {
        co_await test::yield();
        if (const auto call = static_cast<std::size_t>(calls++); call < errors.size()) {
            std::rethrow_exception(errors[call]);
        }
        co_return 1;
    }
};

asio::awaitable<int> fail_after(std::chrono::nanoseconds delay) {
    co_await test::sleep(delay);
    throw std::runtime_error("x");
}

asio::awaitable<int> hide_the_cancellation(std::chrono::nanoseconds delay) {
    co_await asio::this_coro::throw_if_cancelled(false);
    co_await test::cancelled_within(delay);
    throw std::runtime_error("connection aborted");
}

std::exception_ptr model_error(Verdict verdict) { return std::make_exception_ptr(ModelError("x", verdict)); }

// Runs the model in a stage with three retries and no backoff.
sluice::StageResult<int> run(Failing& model, sluice::VerdictFunction verdict = &verdict_of,
                             const RetryPolicy& retry = test::retries(3)) {
    asio::io_context context(1);
    const sluice::Endpoint endpoint(timed(context.get_executor()), "e", {.limit = 1, .verdict = verdict});
    const sluice::Stage stage(endpoint, "s", std::ref(model), sluice::StageOptions{.retry = retry});
    return run_one(context, stage);
}

// The virtual time that with_retry() takes, and what it ended with.
template <class Function>
std::pair<std::chrono::nanoseconds, Task<int>> retried(const RetryPolicy& policy, Function function,
                                                       sluice::VerdictFunction verdict = &verdict_of) {
    asio::io_context context(1);
    Task<int> task(context.get_executor(), [&] { return sluice::with_retry<VirtualTimer>(policy, function, verdict); });
    const auto elapsed = sluice::testing::run(context);
    return {elapsed, std::move(task)};
}

}  // namespace

TEST_CASE("verdict: by default it is that of the ModelError, and other errors are transient", "[verdict]") {
    CHECK(verdict_of(busy).kind == Verdict::throttled);
    CHECK(verdict_of(busy).retry_after == 20ms);
    CHECK(verdict_of(test::nested_in_logic_error(busy)).kind == Verdict::transient);
    CHECK(verdict_of(std::make_exception_ptr(std::runtime_error("x"))).kind == Verdict::transient);
    CHECK(verdict_of(std::make_exception_ptr(1)).kind == Verdict::transient);
    CHECK_FALSE(verdict_of(std::make_exception_ptr(1)).retry_after);
    CHECK(verdict_of(std::make_exception_ptr(ModelError("x"))).kind == Verdict::transient);
}

TEST_CASE("verdict: of several exceptions it is that of the first, as a && throws them", "[verdict][stage]") {
    const auto in_several = [](std::exception_ptr first) {
        return std::make_exception_ptr(asio::multiple_exceptions(std::move(first)));
    };
    CHECK(verdict_of(in_several(busy)).kind == Verdict::throttled);
    CHECK(verdict_of(in_several(in_several(busy))).retry_after == 20ms);
    CHECK(verdict_of(in_several(std::make_exception_ptr(1))).kind == Verdict::transient);
    CHECK(verdict_of(in_several(nullptr)).kind == Verdict::transient);

    Failing model{{in_several(model_error({Verdict::invalid}))}};
    CHECK_FALSE(run(model).success);
    CHECK(model.calls == 1);
}

TEST_CASE("verdict: a ModelError carries status and code, and is copied without throwing", "[verdict]") {
    const ModelError error("busy", {.kind = Verdict::throttled}, 429, "rate_limit_exceeded");
    CHECK(std::string(error.what()) == "busy");
    CHECK(error.status() == 429);
    CHECK(error.code() == "rate_limit_exceeded");
    static_assert(std::is_nothrow_copy_constructible_v<ModelError>);
    static_assert(std::is_trivially_destructible_v<Verdict> && std::is_aggregate_v<Verdict>);
}

TEST_CASE("verdict: what is transient, throttled or overloaded is retried, and nothing else", "[verdict][stage]") {
    for (const auto kind : {Verdict::transient, Verdict::throttled, Verdict::overloaded}) {
        Failing model{{model_error({kind})}};
        CHECK(run(model).success);
        CHECK(model.calls == 2);
    }
    for (const auto kind : {Verdict::invalid, Verdict::exhausted}) {
        Failing model{{model_error({kind})}};
        const auto result = run(model);
        CHECK_FALSE(result.success);
        CHECK(result.reason == Reason::model);
        CHECK(result.error.message() == "x");
        CHECK(model.calls == 1);
    }
}

TEST_CASE("verdict: retry_if decides instead of it", "[verdict][stage]") {
    RetryPolicy policy = test::retries(3);
    policy.retry_if = [](const std::exception_ptr&) { return true; };
    Failing invalid{{model_error({Verdict::invalid})}};
    CHECK(run(invalid, &verdict_of, policy).success);
    policy.retry_if = sluice::retry_on<std::logic_error>;
    Failing transient{{model_error({Verdict::transient})}};
    CHECK_FALSE(run(transient, &verdict_of, policy).success);
}

TEST_CASE("verdict: the wait before a retry is the greater of backoff and retry-after", "[verdict][stage]") {
    for (const auto backoff : {5ms, 50ms}) {
        asio::io_context context(1);
        Failing model{{busy}};
        const sluice::Stage stage(timed(context.get_executor()), "s", 1, std::ref(model),
                                  sluice::StageOptions{.retry = test::retries(1, backoff)});
        Task<sluice::StageResult<int>> task(context.get_executor(), [&] { return stage.run("q"); });
        CHECK(sluice::testing::run(context) == std::max<std::chrono::nanoseconds>(backoff, 20ms));
        CHECK(task.value().success);
    }
}

TEST_CASE("verdict: an endpoint may have a function of its own, which is asked once for each failure", "[verdict]") {
    static int asked;
    asked = 0;
    const auto verdict = [](const std::exception_ptr&) {
        ++asked;
        return Verdict{.kind = asked < 3 ? Verdict::transient : Verdict::invalid};
    };
    Failing model{{9, std::make_exception_ptr(std::runtime_error("plain"))}};
    CHECK_FALSE(run(model, verdict).success);
    CHECK(asked == 3);
    CHECK(model.calls == 3);
    asked = 0;
    CHECK_FALSE(run(model, verdict, RetryPolicy{}).success);
    CHECK(asked == 1);  // the endpoint may have to be paused, even if there is no retry
}

TEST_CASE("verdict: if the function throws, there is no retry, and the error says so", "[verdict]") {
    Failing model{{busy}};
    const auto result = run(model, [](const std::exception_ptr&) -> Verdict { throw std::logic_error("what?"); });
    CHECK(model.calls == 1);
    CHECK(result.reason == Reason::model);
    CHECK(result.error.type() == "sluice::RetryPredicateError");
    CHECK(result.error.message() == "the verdict function threw std::logic_error: what?: busy");
}

TEST_CASE("reason: a failure has one, and a success has none", "[reason][stage]") {
    test::StageBench bench(1, {.timeout = 5ms});
    bench.model.latency_of = [](const std::string& text) { return text == "slow" ? 9ms : 1ms; };
    bench.model.failures["broken"] = 9;
    test::StageRun good = bench.start("good");
    test::StageRun slow = bench.start("slow");
    test::StageRun broken = bench.start("broken");
    bench.run();
    CHECK(good.value().reason == Reason::none);
    CHECK(slow.value().reason == Reason::timeout);
    CHECK(broken.value().reason == Reason::model);
}

TEST_CASE("reason: that of the last attempt counts, and a retry that succeeds leaves none", "[reason][stage]") {
    test::StageBench bench(1, {.timeout = 5ms, .retry = test::retries(1)});
    int calls = 0;
    bench.model.latency_of = [&](const std::string&) { return ++calls % 2 == 1 ? 9ms : 1ms; };
    bench.model.failures["broken"] = 9;
    test::StageRun good = bench.start("good");
    bench.run();
    CHECK(good.value().reason == Reason::none);
    CHECK(good.value().attempts == 2);
    test::StageRun broken = bench.start("broken");
    bench.run();
    CHECK(broken.value().attempts == 2);
    CHECK(broken.value().reason == Reason::model);
}

TEST_CASE("reason: it is set where the failure happens, not guessed from the type of an exception", "[reason]") {
    Failing model{{std::make_exception_ptr(sluice::TimeoutError(1s))}};
    CHECK(run(model, &verdict_of, {}).reason == Reason::model);
}

TEST_CASE("reason: it has a name, and results have not grown for it", "[reason]") {
    std::ostringstream text;
    text << Reason::none << ' ' << Reason::model << ' ' << Reason::timeout << ' ' << Reason::closed << ' '
         << Reason{255};
    CHECK(text.str() == "none model timeout closed unknown");
    static_assert(sizeof(sluice::StageResult<>) ==
                  2 * sizeof(sluice::SharedString) + 2 * sizeof(std::chrono::nanoseconds) + 8 + sizeof(void*));
}

TEST_CASE("with_retry: it repeats the call as the policy says and returns its value", "[with_retry]") {
    Failing model{{busy, busy}};
    auto [elapsed, task] = retried(test::retries(2, 30ms), std::ref(model));
    CHECK(task.value() == 1);
    CHECK(model.calls == 3);
    CHECK(elapsed == 60ms);
}

TEST_CASE("with_retry: it rethrows the last error when no retry is left or the verdict forbids one", "[with_retry]") {
    Failing model{{busy, busy, busy, busy, busy}};
    RetryPolicy policy = test::retries(2);
    policy.max_throttled = 1;
    CHECK(retried(policy, std::ref(model)).second.failed_with<ModelError>());
    CHECK(model.calls == 4);  // the second that is throttled counts as any other failure
    Failing invalid{{model_error({Verdict::invalid})}};
    CHECK(retried(test::retries(2), std::ref(invalid)).second.failed_with<ModelError>());
    CHECK(invalid.calls == 1);
    Failing other{{std::make_exception_ptr(1)}};
    CHECK(retried({}, std::ref(other)).second.failed_with<int>());
}

TEST_CASE("with_retry: if the verdict function or the predicate throws, it throws a RetryPredicateError",
          "[with_retry]") {
    Failing model{{busy}};
    CHECK(retried(test::retries(2), std::ref(model), [](const std::exception_ptr&) -> Verdict {
              throw 1;
          }).second.failed_with<sluice::RetryPredicateError>());
    CHECK(model.calls == 1);
}

TEST_CASE("with_retry: it may return nothing, and it retries what fails without suspending", "[with_retry]") {
    asio::io_context context(1);
    int calls = 0;
    Task<> task(context.get_executor(), [&] {
        return sluice::with_retry<VirtualTimer>(test::retries(100'000), [&]() -> asio::awaitable<void> {
            if (++calls <= 100'000) {
                throw 1;
            }
            return test::yield();
        });
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(calls == 100'001);
}

TEST_CASE("with_retry: a cancelled call is not repeated, nor is a backoff that is cancelled", "[with_retry]") {
    asio::io_context context(1);
    int calls = 0;
    const auto fails_late = [&calls]() -> asio::awaitable<int> {
        ++calls;
        if (calls > 1) {
            throw 1;
        }
        return fail_after(10ms);
    };
    Task<int> in_call(context.get_executor(),
                      [&] { return sluice::with_retry<VirtualTimer>(test::retries(3, 10ms), fails_late); });
    test::run_until(context, 5ms);
    in_call.cancel();
    sluice::testing::run(context);
    CHECK(in_call.aborted());
    CHECK(calls == 1);
    Task<int> in_backoff(context.get_executor(),
                         [&] { return sluice::with_retry<VirtualTimer>(test::retries(3, 10ms), fails_late); });
    test::poll(context);
    in_backoff.cancel();
    sluice::testing::run(context);
    CHECK(in_backoff.aborted());
    CHECK(calls == 2);
}

TEST_CASE("with_retry: a call that was cancelled is not repeated, whatever it threw", "[with_retry]") {
    asio::io_context context(1);
    int calls = 0;
    const auto hides_it = [&calls]() {
        ++calls;
        return hide_the_cancellation(10ms);
    };
    Task<int> task(context.get_executor(),
                   [&] { return sluice::with_retry<VirtualTimer>(test::retries(3), hides_it); });
    test::run_until(context, 5ms);
    task.cancel();
    sluice::testing::run(context);
    CHECK(task.failed_with<std::runtime_error>());
    CHECK_FALSE(task.aborted());  // its exception is a runtime_error too
    CHECK(calls == 1);
}

TEST_CASE("with_retry: it does not call again if the cancellation comes when the backoff has ended", "[with_retry]") {
    asio::io_context context(1);
    int calls = 0;
    const auto fails = [&calls]() -> asio::awaitable<int> {
        ++calls;
        throw 1;
    };
    Task<int> task(context.get_executor(), [&] {
        return [](auto function) -> asio::awaitable<int> {
            co_await asio::this_coro::throw_if_cancelled(false);
            co_return co_await sluice::with_retry<VirtualTimer>(test::retries(3, 10ms), function);
        }(fails);
    });
    test::poll(context);
    CHECK(calls == 1);
    context.restart();
    sluice::testing::VirtualTime::of(context).advance();  // the wait is over; the coroutine has not resumed
    task.cancel();
    sluice::testing::run(context);
    CHECK(task.aborted());
    CHECK(calls == 1);
}

TEST_CASE("with_retry: a policy that is out of range is refused when it is called", "[with_retry]") {
    const auto model = []() -> asio::awaitable<int> { co_return 1; };
    CHECK(refusal_of([&] { static_cast<void>(sluice::with_retry({.max_retries = -1}, model)); }) ==
          "with_retry: max_retries must not be negative, got -1");
    CHECK(refusal_of([&] { static_cast<void>(sluice::with_retry({}, model, nullptr)); }) ==
          "with_retry: the verdict function must not be empty");
}
