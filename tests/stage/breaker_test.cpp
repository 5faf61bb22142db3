// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/detail/breaker_permit.hpp>
#include <sluice/stage/detail/breaker_state.hpp>

#include "support/naive_breaker.hpp"
#include "support/probes.hpp"

#include <sluice/stage/detail/breaker_options.hpp>
#include <sluice/stage/detail/breaker_window.hpp>
#include <sluice/stage/verdict.hpp>

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace breaker_tests {  // since the names of the results are not to be known in other files

namespace {

using namespace std::chrono_literals;
using sluice::BreakerOptions;
using sluice::BreakerStatus;
using sluice::Verdict;
using sluice::detail::BreakerCall;
using sluice::detail::BreakerPermit;
using sluice::detail::BreakerReport;
using sluice::detail::BreakerResult;
using sluice::detail::BreakerState;
using std::chrono::nanoseconds;
using test::NaiveBreaker;
using enum BreakerResult;

// Opens after two failures of two, for 10 s without jitter, and closes after two probes.
constexpr BreakerOptions touchy{.minimum_calls = 2, .jitter = 0};

// A breaker and its clock.
struct BreakerBench {
    BreakerState breaker;
    nanoseconds now{0};

    explicit BreakerBench(const BreakerOptions& options = touchy) : breaker(options) {}

    BreakerStatus status() const { return breaker.status(now); }
    BreakerStatus::State state() const { return status().state; }
    bool may_begin() const { return breaker.earliest(now) == now; }

    BreakerCall begin() {
        REQUIRE(may_begin());
        return breaker.begin(now);
    }
    std::vector<BreakerCall> begin(std::size_t calls) {
        return test::repeat(calls, [this] { return begin(); });
    }
    BreakerReport end(const BreakerCall& call, BreakerResult result) { return breaker.end(call, result, now); }

    // A whole call.
    BreakerReport call(BreakerResult result, nanoseconds duration = 0ns) {
        const BreakerCall begun = begin();
        now += duration;
        return end(begun, result);
    }
    void calls(int n, BreakerResult result) {
        for (; n != 0; --n) {
            call(result);
        }
    }

    // Fails until it is open.
    void open() {
        for (int calls = 1; !call(failure).opened; ++calls) {
            REQUIRE(calls != 100);
        }
    }

    // Fails until it is open, and waits until it is half-open.
    void half_open() {
        open();
        now = breaker.earliest(now);
    }

    nanoseconds wait() const { return breaker.earliest(now) - now; }
};

// The message with which an endpoint rejects these options.
std::string breaker_refusal(const BreakerOptions& options) {
    return test::refusal_of([&] { sluice::detail::require_valid("Endpoint 'e'", options); });
}

constexpr double breaker_nan = std::numeric_limits<double>::quiet_NaN();

}  // namespace

TEST_CASE("breaker: the defaults of its options are the documented ones, and valid", "[breaker]") {
    const BreakerOptions options;
    CHECK(options.failure_rate == 0.5);
    CHECK(options.minimum_calls == 10);
    CHECK(options.window == 30s);
    CHECK(options.window_calls == std::nullopt);
    CHECK(options.slow == std::nullopt);
    CHECK(options.slow_rate == 0.5);
    CHECK(options.open_time == 10s);
    CHECK(options.open_cap == std::nullopt);
    CHECK(sluice::detail::open_cap(options) == 120s);
    CHECK(sluice::detail::open_cap({.open_time = 300s}) == 300s);
    CHECK(options.jitter == 0.2);
    CHECK(options.seed == std::nullopt);
    CHECK(options.probes == 2);
    CHECK(breaker_refusal(options) == "no error");
}

TEST_CASE("breaker: an option out of range is rejected, naming the option and its value", "[breaker]") {
    const auto rule = [](std::string text) { return "Endpoint 'e': " + text; };
    CHECK(breaker_refusal({.failure_rate = 0}) == rule("failure_rate must be more than 0 and at most 1, got 0"));
    CHECK(breaker_refusal({.failure_rate = -0.5}) == rule("failure_rate must be more than 0 and at most 1, got -0.5"));
    CHECK(breaker_refusal({.failure_rate = 1.5}) == rule("failure_rate must be more than 0 and at most 1, got 1.5"));
    CHECK(breaker_refusal({.failure_rate = breaker_nan}) ==
          rule("failure_rate must be more than 0 and at most 1, got nan"));
    CHECK(breaker_refusal({.minimum_calls = 0}) == rule("minimum_calls must be at least 1, got 0"));
    CHECK(breaker_refusal({.window = 0s}) == rule("window must be positive, got 0 ns"));
    CHECK(breaker_refusal({.window = -5ns}) == rule("window must be positive, got -5 ns"));
    CHECK(breaker_refusal({.minimum_calls = 10, .window_calls = 9}) ==
          rule("window_calls must be at least minimum_calls and at most 1000000, got 9"));
    CHECK(breaker_refusal({.window_calls = 1'000'001}) ==
          rule("window_calls must be at least minimum_calls and at most 1000000, got 1000001"));
    CHECK(breaker_refusal({.slow = 0s}) == rule("slow must be positive, got 0 ns"));
    CHECK(breaker_refusal({.slow_rate = 0}) == rule("slow_rate must be more than 0 and at most 1, got 0"));
    CHECK(breaker_refusal({.slow_rate = 1.25}) == rule("slow_rate must be more than 0 and at most 1, got 1.25"));
    CHECK(breaker_refusal({.open_time = 0s}) == rule("open_time must be positive, got 0 ns"));
    CHECK(breaker_refusal({.open_time = 10ns, .open_cap = 9ns}) ==
          rule("open_cap must be at least open_time, got 9 ns"));
    CHECK(breaker_refusal({.jitter = -0.25}) == rule("jitter must be from 0 to 1, got -0.25"));
    CHECK(breaker_refusal({.jitter = 1.25}) == rule("jitter must be from 0 to 1, got 1.25"));
    CHECK(breaker_refusal({.jitter = breaker_nan}) == rule("jitter must be from 0 to 1, got nan"));
    CHECK(breaker_refusal({.probes = 0}) == rule("probes must be at least 1, got 0"));
}

TEST_CASE("breaker: options at the ends of their ranges are accepted", "[breaker]") {
    constexpr int most = std::numeric_limits<int>::max();
    CHECK(breaker_refusal({.failure_rate = std::numeric_limits<double>::min(),
                           .minimum_calls = 1,
                           .window = 1ns,
                           .window_calls = 1,
                           .slow = 1ns,
                           .slow_rate = std::numeric_limits<double>::min(),
                           .open_time = 1ns,
                           .open_cap = 1ns,
                           .jitter = 0,
                           .probes = 1}) == "no error");
    CHECK(breaker_refusal({.failure_rate = 1,
                           .minimum_calls = 1'000'000,
                           .window = nanoseconds::max(),
                           .window_calls = 1'000'000,
                           .slow = nanoseconds::max(),
                           .slow_rate = 1,
                           .open_time = nanoseconds::max(),
                           .jitter = 1,
                           .probes = most}) == "no error");
    CHECK(breaker_refusal({.minimum_calls = most}) == "no error");
}

TEST_CASE("breaker: it opens when the window has the minimum of calls and the failure rate is reached", "[breaker]") {
    BreakerBench bench({.failure_rate = 0.5, .minimum_calls = 4});
    for (const BreakerResult result : {failure, failure, success}) {
        CHECK_FALSE(bench.call(result).opened);
        CHECK(bench.state() == BreakerStatus::closed);
        CHECK(bench.may_begin());
    }
    CHECK(bench.call(failure).opened);
    CHECK(bench.state() == BreakerStatus::open);
    CHECK_FALSE(bench.may_begin());

    BreakerBench good({.failure_rate = 0.5, .minimum_calls = 4});
    good.calls(100, success);
    good.calls(99, failure);
    CHECK(good.state() == BreakerStatus::closed);  // 99 of 199
    CHECK(good.call(failure).opened);              // 100 of 200
}

TEST_CASE("breaker: a success opens it too, if it is the call that completes the minimum", "[breaker]") {
    BreakerBench bench({.failure_rate = 0.5, .minimum_calls = 4});
    bench.calls(2, failure);
    bench.call(success);
    const BreakerReport report = bench.call(success);
    CHECK(report.opened);
    CHECK_FALSE(report.spares_retry());  // it did not fail
    CHECK(bench.state() == BreakerStatus::open);
}

TEST_CASE("breaker: a rate is reached by exactly the share of calls that its literal names", "[breaker]") {
    for (int percent = 1; percent <= 100; ++percent) {
        BreakerBench bench(
            {.failure_rate = std::stod(std::to_string(percent) + "e-2"), .minimum_calls = 100, .jitter = 0});
        bench.calls(100 - percent, success);
        bench.calls(percent - 1, failure);
        CHECK(bench.state() == BreakerStatus::closed);
        CHECK(bench.call(failure).opened);
    }
}

TEST_CASE("breaker: a rate of 1 is reached by any number of failures", "[breaker]") {
    for (int minimum = 1; minimum <= 100; ++minimum) {
        BreakerBench bench({.failure_rate = 1, .minimum_calls = minimum});
        bench.calls(minimum - 1, failure);
        CHECK(bench.call(failure).opened);
    }
}

TEST_CASE("breaker: a call is slow if it takes longer than the limit, and the rate of slow calls opens it",
          "[breaker]") {
    BreakerBench bench({.minimum_calls = 2, .slow = 5s, .slow_rate = 1});
    CHECK_FALSE(bench.call(success, 5s).opened);
    CHECK(bench.status().slow_rate == 0);
    CHECK_FALSE(bench.call(success, 5s + 1ns).opened);
    CHECK(bench.status().slow_rate == 0.5);
    CHECK(bench.status().failure_rate == 0);

    BreakerBench slow({.minimum_calls = 2, .slow = 5s, .slow_rate = 1});
    slow.call(success, 5s + 1ns);
    CHECK(slow.call(success, 5s + 1ns).opened);
    CHECK(slow.status().slow_rate == 1);
    CHECK(slow.status().failure_rate == 0);
}

TEST_CASE("breaker: a slow call that fails counts as both, and by default no call is slow", "[breaker]") {
    BreakerBench bench({.minimum_calls = 4, .slow = 5s});
    bench.call(failure, 6s);
    bench.call(success);
    CHECK(bench.status().calls == 2);
    CHECK(bench.status().failure_rate == 0.5);
    CHECK(bench.status().slow_rate == 0.5);

    BreakerBench patient({.minimum_calls = 1, .slow_rate = 0.1});
    CHECK_FALSE(patient.call(success, 1000h).opened);
    CHECK(patient.status().slow_rate == 0);
}

TEST_CASE("breaker: a window of time forgets a tenth at a time, and covers from 9/10 of its length to all of it",
          "[breaker]") {
    BreakerBench bench({.minimum_calls = 100, .window = 100ns});
    bench.now = 10ns;  // the first moment of a bucket
    bench.call(failure);
    bench.now = 19ns;  // the last one
    bench.call(success);
    CHECK(bench.breaker.status(109ns).calls == 2);
    CHECK(bench.breaker.status(110ns).calls == 0);
    bench.now = 35ns;
    bench.call(success);
    CHECK(bench.breaker.status(109ns).failure_rate == 1.0 / 3);
    CHECK(bench.breaker.status(110ns).failure_rate == 0);
    CHECK(bench.breaker.status(110ns).calls == 1);
    CHECK(bench.breaker.status(129ns).calls == 1);
    CHECK(bench.breaker.status(130ns).calls == 0);
    bench.now = 129ns;
    bench.call(failure);
    CHECK(bench.status().calls == 2);
    bench.now = 5000ns;
    bench.call(success);
    CHECK(bench.status().calls == 1);
}

TEST_CASE("breaker: what a window of time forgot does not open it", "[breaker]") {
    BreakerBench bench({.minimum_calls = 3, .window = 100ns});
    bench.calls(2, failure);
    bench.now = 100ns;
    CHECK_FALSE(bench.call(failure).opened);
    bench.now = 199ns;
    CHECK_FALSE(bench.call(failure).opened);
    CHECK(bench.call(failure).opened);
}

TEST_CASE("breaker: successes before the window do not outvote an outage", "[breaker]") {
    BreakerBench bench({.jitter = 0});
    bench.calls(100'000, success);
    bench.now = 30s;
    bench.calls(9, failure);
    CHECK(bench.state() == BreakerStatus::closed);
    CHECK(bench.call(failure).opened);
}

TEST_CASE("breaker: a window of calls holds the latest ones, whenever they ended", "[breaker]") {
    BreakerBench bench({.failure_rate = 0.75, .minimum_calls = 1, .window_calls = 4, .slow = 5s, .slow_rate = 1});
    bench.call(success, 6s);
    CHECK(bench.status().slow_rate == 1);  // and open
    bench.breaker.reset(bench.now);
    bench.calls(2, success);
    bench.now += 1000h;
    bench.calls(2, failure);
    CHECK(bench.status().calls == 4);
    CHECK(bench.status().failure_rate == 0.5);
    bench.call(success, 6s);  // in place of a success
    CHECK(bench.status().calls == 4);
    CHECK(bench.status().failure_rate == 0.5);
    CHECK(bench.status().slow_rate == 0.25);
    bench.call(success);
    bench.call(success);  // in place of a failure
    CHECK(bench.status().failure_rate == 0.25);
    CHECK(bench.status().slow_rate == 0.25);
    bench.calls(2, success);  // in place of the other one, and of the slow one
    CHECK(bench.status().failure_rate == 0);
    CHECK(bench.status().slow_rate == 0);
    bench.calls(2, failure);
    CHECK(bench.call(failure).opened);
}

TEST_CASE("breaker: with a rate of 1 and a window of n calls it opens after n failures in a row", "[breaker]") {
    BreakerBench bench({.failure_rate = 1, .minimum_calls = 3, .window_calls = 3});
    for (const BreakerResult result : {failure, failure, success, failure, failure, success, success, failure}) {
        CHECK_FALSE(bench.call(result).opened);
    }
    CHECK_FALSE(bench.call(failure).opened);
    CHECK(bench.call(failure).opened);
}

TEST_CASE("breaker: a call that finds the account exhausted opens it at once", "[breaker]") {
    BreakerBench bench(BreakerOptions{.jitter = 0});
    bench.calls(1000, success);
    CHECK_FALSE(bench.status().tripped);
    const BreakerReport report = bench.call(trips);
    CHECK(report.opened);
    CHECK(report.spares_retry());
    CHECK(bench.state() == BreakerStatus::open);
    CHECK(bench.status().tripped);
    CHECK(bench.wait() == 10s);

    bench.now += 10s;
    CHECK(bench.status().tripped);
    CHECK(bench.call(failure).opened);
    CHECK_FALSE(bench.status().tripped);  // it opened for another reason
    bench.now += 20s;
    CHECK(bench.call(trips).opened);
    CHECK(bench.status().tripped);
    bench.now += 40s;
    bench.calls(2, success);
    CHECK(bench.state() == BreakerStatus::closed);
    CHECK_FALSE(bench.status().tripped);
}

TEST_CASE("breaker: calls that were ignored or cancelled are not counted", "[breaker]") {
    BreakerBench bench({.minimum_calls = 2, .slow = 1s, .slow_rate = 0.1});
    bench.call(failure);
    for (int i = 0; i != 100; ++i) {
        const BreakerReport report = bench.call(ignored, 2s);
        CHECK_FALSE((report.opened || report.closed || report.failed_probe || report.stale || report.spares_retry()));
        CHECK(bench.breaker.cancel(bench.begin()));
        bench.now = 0ns;
    }
    CHECK(bench.status().calls == 1);
    CHECK(bench.status().slow_rate == 0);
    CHECK(bench.call(failure).opened);
}

TEST_CASE("breaker: the caller's own throttling and its bad requests open nothing, its exhaustion does", "[breaker]") {
    const auto result = [](Verdict::Kind kind) { return sluice::detail::call_result({.kind = kind}); };
    CHECK(result(Verdict::transient) == failure);
    CHECK(result(Verdict::overloaded) == failure);
    CHECK(result(Verdict::throttled) == ignored);
    CHECK(result(Verdict::invalid) == ignored);
    CHECK(result(Verdict::exhausted) == trips);
    CHECK(result(static_cast<Verdict::Kind>(99)) == failure);
    CHECK(sluice::detail::call_result({}) == failure);
}

TEST_CASE("breaker: while it is open no call begins; when the time has passed it is half-open without being asked",
          "[breaker]") {
    BreakerBench bench;
    bench.now = 5s;
    bench.open();
    CHECK(bench.breaker.earliest(5s) == 15s);
    CHECK(bench.breaker.earliest(15s - 1ns) == 15s);
    CHECK(bench.breaker.earliest(15s) == 15s);
    CHECK(bench.breaker.earliest(99s) == 99s);
    CHECK(bench.breaker.status(15s - 1ns).state == BreakerStatus::open);
    CHECK(bench.breaker.status(15s - 1ns).remaining == 1ns);
    CHECK(bench.breaker.status(15s).state == BreakerStatus::half_open);
    CHECK(bench.breaker.status(15s).remaining == std::nullopt);
    CHECK(bench.breaker.status(99s).elapsed == 84s);
    CHECK(bench.breaker.generation() == 1);  // nobody has asked
    bench.now = 99s;
    CHECK(bench.begin().probe);
    CHECK(bench.breaker.generation() == 2);
    CHECK(bench.status().elapsed == 84s);
}

TEST_CASE("breaker: the open time doubles with each round that fails, up to the cap, and closing sets it back",
          "[breaker]") {
    BreakerBench bench;
    bench.open();
    for (const nanoseconds time : {10s, 20s, 40s, 80s, 120s, 120s}) {
        CHECK(bench.wait() == time);
        bench.now += time;
        CHECK(bench.call(failure).opened);
    }
    for (int i = 0; i != 1000; ++i) {
        bench.now += 120s;
        bench.call(failure);
    }
    CHECK(bench.wait() == 120s);
    bench.now += 120s;
    bench.calls(2, success);
    bench.open();
    CHECK(bench.wait() == 10s);

    BreakerBench odd({.minimum_calls = 1, .open_time = 7ns, .open_cap = 27ns, .jitter = 0});
    odd.call(failure);
    for (const nanoseconds time : {7ns, 14ns, 27ns, 27ns}) {
        CHECK(odd.wait() == time);
        odd.now += time;
        odd.call(failure);
    }
}

TEST_CASE("breaker: jitter takes from the open time a random part, anywhere between none and its share", "[breaker]") {
    const auto jitter = GENERATE(0.1, 0.2, 1.0);
    nanoseconds least = nanoseconds::max();
    nanoseconds most{0};
    for (std::uint64_t seed = 0; seed != 5'000; ++seed) {
        BreakerBench bench({.minimum_calls = 1, .open_time = 1s, .jitter = jitter, .seed = seed});
        bench.call(failure);
        least = std::min(least, bench.wait());
        most = std::max(most, bench.wait());
    }
    const auto share = [&](double part) { return nanoseconds(static_cast<std::int64_t>(1e9 * (1 - part * jitter))); };
    CHECK(least >= share(1));
    CHECK(least <= share(0.99));
    CHECK(most <= 1s);
    CHECK(most >= share(0.01));
}

TEST_CASE("breaker: the same seed produces the same open times, and each opening has its own", "[breaker]") {
    const auto open_times = [](std::optional<std::uint64_t> seed) {
        BreakerBench bench(
            {.minimum_calls = 1, .open_time = 1h, .open_cap = 1h, .jitter = 1, .seed = seed, .probes = 1});
        std::vector<nanoseconds> times;
        for (int i = 0; i != 50; ++i) {
            bench.half_open();
            times.push_back(bench.now);
            bench.call(i % 2 == 0 ? failure : success);
            times.push_back(bench.wait());
            bench.now += bench.wait();
            if (i % 2 == 0) {
                bench.call(success);
            }
        }
        return times;
    };
    CHECK(open_times(1) == open_times(1));
    CHECK(open_times(1) != open_times(2));
    CHECK(open_times(std::nullopt) == open_times(0));

    std::set<nanoseconds> seen;
    BreakerBench bench({.minimum_calls = 1, .open_time = 1h, .open_cap = 1h, .jitter = 1, .seed = 42, .probes = 1});
    for (int i = 0; i != 1000; ++i) {  // by closing, the count of the rounds begins again
        bench.half_open();
        seen.insert(bench.status().elapsed + bench.now);
        bench.call(success);
        bench.now = 0ns;
    }
    CHECK(seen.size() > 990);
}

TEST_CASE("breaker: however much of it the jitter takes, the open time is positive", "[breaker]") {
    for (std::uint64_t seed = 0; seed != 100; ++seed) {
        BreakerBench bench({.minimum_calls = 1, .open_time = 1ns, .jitter = 1, .seed = seed});
        bench.call(failure);
        CHECK(bench.wait() == 1ns);
    }
}

TEST_CASE("breaker: half-open, it admits its probes, and whoever comes after them waits for a report", "[breaker]") {
    const int probes = GENERATE(1, 2, 5);
    BreakerBench bench({.minimum_calls = 1, .probes = probes});
    bench.half_open();
    for (int i = 0; i != probes; ++i) {
        CHECK(bench.begin().probe);
    }
    CHECK(bench.breaker.earliest(bench.now) == BreakerState::never);
    CHECK(bench.breaker.earliest(bench.now + 1000h) == BreakerState::never);
}

TEST_CASE("breaker: it closes with an empty window when its probes have succeeded", "[breaker]") {
    BreakerBench bench;
    bench.half_open();
    const auto probes = bench.begin(2);
    CHECK_FALSE(bench.end(probes[0], success).closed);
    CHECK(bench.state() == BreakerStatus::half_open);
    CHECK(bench.status().calls == 1);
    CHECK_FALSE(bench.may_begin());  // a result is no place for another probe
    const BreakerReport report = bench.end(probes[1], success);
    CHECK(report.closed);
    CHECK_FALSE(report.opened);
    CHECK(bench.state() == BreakerStatus::closed);
    CHECK(bench.status().calls == 0);
    CHECK_FALSE(bench.begin().probe);
    CHECK_FALSE(bench.call(failure).opened);  // what opened it is forgotten
    CHECK(bench.status().failure_rate == 1);
}

TEST_CASE("breaker: a window of calls is empty too when it closes", "[breaker]") {
    BreakerBench bench({.minimum_calls = 2, .window_calls = 3, .slow = 1s});
    bench.half_open();
    bench.calls(2, success);
    CHECK(bench.status().calls == 0);
    bench.calls(4, success);
    CHECK(bench.status().calls == 3);
    CHECK(bench.status().failure_rate == 0);
}

TEST_CASE("breaker: a round ends as soon as its outcome is certain", "[breaker]") {
    const BreakerOptions options{.failure_rate = 0.5, .minimum_calls = 1, .jitter = 0, .probes = 4};
    SECTION("it closes when the probes that are left cannot open it") {
        BreakerBench bench(options);
        bench.half_open();
        bench.call(failure);
        bench.calls(2, success);
        CHECK(bench.state() == BreakerStatus::half_open);
        CHECK(bench.call(success).closed);

        BreakerBench early(options);
        early.half_open();
        const auto probes = early.begin(4);
        early.end(probes[3], success);
        early.end(probes[1], success);
        CHECK(early.state() == BreakerStatus::half_open);
        CHECK(early.end(probes[0], success).closed);
        const BreakerReport late = early.end(probes[2], failure);
        CHECK(late.stale);
        CHECK(late.failed_probe);
        CHECK(late.spares_retry());
        CHECK(early.state() == BreakerStatus::closed);
        CHECK(early.status().calls == 0);
    }
    SECTION("it opens when they cannot close it") {
        BreakerBench bench(options);
        bench.half_open();
        const auto probes = bench.begin(4);
        CHECK_FALSE(bench.end(probes[0], success).opened);
        CHECK_FALSE(bench.end(probes[1], failure).opened);
        const BreakerReport report = bench.end(probes[2], failure);
        CHECK(report.opened);
        CHECK(report.failed_probe);
        CHECK(bench.state() == BreakerStatus::open);
        CHECK(bench.status().calls == 3);
        CHECK(bench.end(probes[3], success).stale);
        CHECK(bench.state() == BreakerStatus::open);
    }
}

TEST_CASE("breaker: a probe that fails leads back to open, not to closed", "[breaker]") {  // Comcast/jrugged#21
    BreakerBench bench;
    bench.half_open();
    const BreakerReport report = bench.call(failure);
    CHECK(report.opened);
    CHECK(report.failed_probe);
    CHECK_FALSE(report.closed);
    CHECK(bench.state() == BreakerStatus::open);
    CHECK_FALSE(bench.may_begin());
}

TEST_CASE("breaker: any number of probes ends a round, whatever the minimum of calls and the results",
          "[breaker]") {  // resilience4j#903
    const int probes = GENERATE(1, 2, 3, 7);
    const int minimum = GENERATE(1, 2, 100);
    const double rate = GENERATE(0.01, 0.5, 1.0);
    for (unsigned results = 0; results != 1U << probes; ++results) {
        BreakerBench bench({.failure_rate = rate, .minimum_calls = minimum, .jitter = 0, .probes = probes});
        bench.half_open();
        const auto begun = bench.begin(static_cast<std::size_t>(probes));
        bool ended = false;
        int failed = 0;
        for (std::size_t i = 0; i != begun.size(); ++i) {
            const bool fails = (results >> i & 1U) != 0;
            failed += fails ? 1 : 0;
            const BreakerReport report = bench.end(begun[i], fails ? failure : success);
            ended = ended || report.opened || report.closed;
        }
        CHECK(ended);
        const bool opens = failed >= rate * probes;
        CHECK(bench.state() == (opens ? BreakerStatus::open : BreakerStatus::closed));
    }
}

TEST_CASE("breaker: a probe that is cancelled or ignored returns its place and decides nothing",
          "[breaker]") {  // resilience4j#935 and others: stuck half-open; Polly: closes
    const bool cancels = GENERATE(true, false);
    BreakerBench bench;
    bench.half_open();
    const std::uint64_t generation = bench.status().generation;
    for (int i = 0; i != 100; ++i) {
        const auto probes = bench.begin(2);
        CHECK_FALSE(bench.may_begin());
        for (const BreakerCall& probe : probes) {
            if (cancels) {
                CHECK(bench.breaker.cancel(probe));
            } else {
                const BreakerReport report = bench.end(probe, ignored);
                CHECK_FALSE((report.opened || report.closed || report.failed_probe || report.stale));
                CHECK_FALSE(report.spares_retry());
            }
            CHECK(bench.may_begin());
        }
        CHECK(bench.state() == BreakerStatus::half_open);
        CHECK(bench.status().calls == 0);
    }
    CHECK(bench.status().generation == generation);
    bench.calls(2, success);
    CHECK(bench.state() == BreakerStatus::closed);
}

TEST_CASE("breaker: a cancelled probe that is replaced does not undo the results of the others", "[breaker]") {
    BreakerBench bench;
    bench.half_open();
    const auto probes = bench.begin(2);
    bench.end(probes[0], success);
    bench.breaker.cancel(probes[1]);
    CHECK(bench.call(success).closed);
}

TEST_CASE("breaker: slow probes open it by the rate of slow calls", "[breaker]") {
    BreakerBench bench({.minimum_calls = 1, .slow = 5s, .slow_rate = 1});
    bench.half_open();
    const auto probes = bench.begin(2);
    bench.now += 5s + 1ns;
    CHECK_FALSE(bench.end(probes[0], success).closed);
    const BreakerReport report = bench.end(probes[1], success);
    CHECK(report.opened);
    CHECK_FALSE(report.failed_probe);
    CHECK(bench.status().slow_rate == 1);

    BreakerBench quick({.minimum_calls = 1, .slow = 5s, .slow_rate = 1});
    quick.half_open();
    quick.call(success, 5s + 1ns);
    CHECK(quick.call(success, 5s).closed);
}

TEST_CASE("breaker: a probe that finds the account exhausted opens it, whatever the others say", "[breaker]") {
    BreakerBench bench({.failure_rate = 1, .minimum_calls = 1, .probes = 10});
    bench.half_open();
    bench.call(success);
    CHECK(bench.call(trips).opened);
    CHECK(bench.state() == BreakerStatus::open);
    CHECK(bench.status().tripped);
}

TEST_CASE("breaker: the result of a call that began in another generation is not counted",
          "[breaker]") {  // App-vNext/Polly#216 to #218
    BreakerBench bench;
    const BreakerCall before = bench.begin();
    const BreakerCall other = bench.begin();
    const BreakerCall third = bench.begin();
    const BreakerCall fourth = bench.begin();
    bench.open();
    SECTION("neither while it is open") {
        CHECK(bench.end(before, success).stale);
        CHECK(bench.end(other, failure).stale);
        CHECK(bench.end(third, ignored).stale);
        CHECK_FALSE(bench.breaker.cancel(fourth));
        CHECK(bench.wait() == 10s);
        CHECK(bench.status().calls == 2);
    }
    SECTION("but that the account is exhausted is noted while it is open") {
        CHECK_FALSE(bench.breaker.tripped());
        const BreakerReport report = bench.end(before, trips);
        CHECK((report.stale && report.tripped && !report.opened));
        CHECK(bench.breaker.tripped());
        CHECK(bench.wait() == 10s);
        bench.breaker.force_open(bench.now);
        CHECK_FALSE(bench.end(other, trips).tripped);
        CHECK_FALSE(bench.breaker.tripped());
    }
    SECTION("nor while it is half-open: it closes nothing, opens nothing, and admits no further probe") {
        bench.now += 10s;
        const auto probes = bench.begin(2);
        CHECK(bench.end(before, success).stale);
        CHECK(bench.end(other, failure).stale);
        CHECK(bench.end(third, ignored).stale);
        CHECK(bench.end(fourth, trips).stale);
        CHECK(bench.state() == BreakerStatus::half_open);
        CHECK_FALSE(bench.may_begin());
        CHECK(bench.status().calls == 0);
        CHECK_FALSE(bench.end(probes[0], success).stale);
    }
    SECTION("nor when it is closed again") {
        bench.now += 10s;
        bench.calls(2, success);
        for (const BreakerCall& call : {before, other, third}) {
            CHECK(bench.end(call, failure).stale);
        }
        CHECK(bench.end(fourth, trips).stale);
        CHECK(bench.state() == BreakerStatus::closed);
        CHECK(bench.status().calls == 0);
    }
}

TEST_CASE("breaker: a probe of a round that was decided counts in no other", "[breaker]") {
    BreakerBench bench;
    bench.half_open();
    const auto first = bench.begin(2);
    CHECK(bench.end(first[0], failure).opened);
    bench.now += 20s;
    const auto second = bench.begin(2);
    CHECK_FALSE(bench.breaker.cancel(first[1]));
    CHECK_FALSE(bench.may_begin());
    CHECK(bench.end(first[1], success).stale);
    CHECK(bench.status().calls == 0);
    bench.end(second[0], success);
    CHECK(bench.end(second[1], success).closed);
}

TEST_CASE("breaker: whatever fails before it opens uses up a retry, the failure that opens it does not", "[breaker]") {
    BreakerBench bench(BreakerOptions{.minimum_calls = 10});
    for (int i = 0; i != 9; ++i) {
        CHECK_FALSE(bench.call(failure).spares_retry());
    }
    CHECK(bench.call(failure).spares_retry());
}

TEST_CASE("breaker: a probe that fails uses up no retry, even if it does not decide its round", "[breaker]") {
    BreakerBench bench({.failure_rate = 0.5, .minimum_calls = 1, .probes = 4});
    bench.half_open();
    const BreakerReport first = bench.call(failure);
    CHECK(first.failed_probe);
    CHECK_FALSE(first.opened);
    CHECK(first.spares_retry());
    CHECK_FALSE(bench.call(success).spares_retry());
    const BreakerReport second = bench.call(failure);
    CHECK(second.opened);
    CHECK(second.spares_retry());
}

TEST_CASE("breaker: a failure uses up no retry if the breaker opened while the call ran, however late it is",
          "[breaker]") {
    BreakerBench bench;
    const auto running = bench.begin(12);
    bench.open();
    const auto spares = [&](std::size_t i, BreakerResult result) {
        const BreakerReport report = bench.end(running[i], result);
        CHECK(report.stale);
        CHECK_FALSE(report.failed_probe);
        return report.spares_retry();
    };
    CHECK(spares(0, failure));  // open
    CHECK(spares(1, trips));
    CHECK_FALSE(spares(2, success));
    CHECK_FALSE(spares(3, ignored));
    bench.now += 10s;
    const auto probes = bench.begin(2);
    CHECK(spares(4, failure));  // half-open
    CHECK(bench.end(probes[0], failure).opened);
    CHECK(spares(5, failure));  // open again
    CHECK(bench.end(probes[1], failure).spares_retry());
    bench.now += 20s;
    bench.calls(2, success);
    CHECK(spares(6, failure));  // closed: the call hung through the outage
    CHECK_FALSE(bench.call(failure).spares_retry());
    bench.breaker.reset(bench.now);
    CHECK(spares(7, failure));
    const BreakerCall after = bench.begin();
    bench.breaker.force_closed(bench.now);
    const BreakerReport report = bench.end(after, failure);
    CHECK(report.stale);
    CHECK_FALSE(report.spares_retry());  // the breaker did not open while it ran
}

TEST_CASE("breaker: a person who opens it spares the calls that run", "[breaker]") {
    BreakerBench bench;
    const BreakerCall running = bench.begin();
    bench.breaker.force_open(bench.now);
    CHECK(bench.end(running, failure).spares_retry());
}

TEST_CASE("breaker: an outage loses only those that fail before it opens, and with one retry nobody", "[breaker]") {
    // 50 queries, 20 slots; calls take 1 s, or 7 s to fail, and the provider is down for an hour.
    const int retries = GENERATE(0, 1);
    struct Attempt {
        nanoseconds ends;
        BreakerCall call;
        int retries;
    };
    BreakerBench bench(BreakerOptions{.seed = 7});
    std::deque<int> line(50, retries);
    std::vector<Attempt> running;
    int served = 0;
    int lost = 0;
    for (int steps = 0; !line.empty() || !running.empty(); ++steps) {
        REQUIRE(steps != 10'000);
        while (!line.empty() && running.size() != 20 && bench.may_begin()) {
            running.push_back({bench.now + (bench.now < 1h ? 7s : 1s), bench.begin(), line.front()});
            line.pop_front();
        }
        const auto next = std::ranges::min_element(running, {}, &Attempt::ends);
        if (next == running.end()) {
            REQUIRE(bench.wait() > 0ns);
            bench.now = bench.breaker.earliest(bench.now);
            continue;
        }
        const Attempt attempt = *next;
        running.erase(next);
        bench.now = attempt.ends;
        const bool fails = bench.now < 1h;
        const BreakerReport report = bench.end(attempt.call, fails ? failure : success);
        if (!fails) {
            ++served;
        } else if (report.spares_retry() || attempt.retries != 0) {
            line.push_front(report.spares_retry() ? attempt.retries : attempt.retries - 1);
        } else {
            ++lost;
        }
    }
    CHECK(served + lost == 50);
    CHECK(lost == (retries == 0 ? 9 : 0));
}

TEST_CASE("breaker: its status says why it is in its state, and how often it has opened", "[breaker]") {
    using Cause = BreakerStatus::Cause;
    BreakerOptions options = touchy;
    options.slow = 1s;
    BreakerBench bench(options);
    const auto is = [&](BreakerStatus::State state, Cause cause, std::uint64_t openings) {
        CHECK(bench.status().state == state);
        CHECK(to_string(bench.status().cause) == to_string(cause));
        CHECK(bench.status().openings == openings);
    };
    is(BreakerStatus::closed, Cause::none, 0);
    bench.open();
    is(BreakerStatus::open, Cause::failure_rate, 1);
    bench.now += bench.wait();
    is(BreakerStatus::half_open, Cause::open_time_ended, 1);
    bench.call(failure);
    is(BreakerStatus::open, Cause::probes_failed, 2);
    bench.now += bench.wait();
    bench.call(success, 2s);
    is(BreakerStatus::open, Cause::probes_failed, 3);
    bench.now += bench.wait();
    bench.calls(2, success);
    is(BreakerStatus::closed, Cause::probes_succeeded, 3);
    bench.call(success, 2s);
    bench.call(success, 2s);
    is(BreakerStatus::open, Cause::slow_rate, 4);
    bench.breaker.reset(bench.now);
    is(BreakerStatus::closed, Cause::reset, 4);
    bench.call(failure, 2s);
    bench.call(failure, 2s);
    is(BreakerStatus::open, Cause::failure_rate, 5);  // rather than that of slow ones
    bench.now += bench.wait();
    bench.call(trips);
    is(BreakerStatus::open, Cause::exhausted, 6);
    bench.breaker.force_open(bench.now);
    is(BreakerStatus::open, Cause::forced, 6);
    bench.breaker.force_closed(bench.now);
    is(BreakerStatus::closed, Cause::forced, 6);
    bench.breaker.force_open(bench.now);
    is(BreakerStatus::open, Cause::forced, 7);
    bench.breaker.reset(bench.now);
    bench.call(trips);
    is(BreakerStatus::open, Cause::exhausted, 8);
}

TEST_CASE("breaker: the names of states and causes", "[breaker]") {
    using Cause = BreakerStatus::Cause;
    CHECK(to_string(BreakerStatus::closed) == "closed");
    CHECK(to_string(BreakerStatus::open) == "open");
    CHECK(to_string(BreakerStatus::half_open) == "half_open");
    CHECK(to_string(BreakerStatus::State(3)) == "unknown");
    CHECK(to_string(Cause::none) == "none");
    CHECK(to_string(Cause::failure_rate) == "failure_rate");
    CHECK(to_string(Cause::slow_rate) == "slow_rate");
    CHECK(to_string(Cause::exhausted) == "exhausted");
    CHECK(to_string(Cause::open_time_ended) == "open_time_ended");
    CHECK(to_string(Cause::probes_failed) == "probes_failed");
    CHECK(to_string(Cause::probes_succeeded) == "probes_succeeded");
    CHECK(to_string(Cause::forced) == "forced");
    CHECK(to_string(Cause::reset) == "reset");
    CHECK(to_string(Cause(9)) == "unknown");
}

TEST_CASE("breaker: forced open it admits nothing, however long it takes, until it is reset", "[breaker]") {
    BreakerBench bench;
    bench.call(failure);
    const BreakerCall running = bench.begin();
    bench.now = 3s;
    bench.breaker.force_open(bench.now);
    CHECK(bench.breaker.earliest(bench.now) == BreakerState::never);
    CHECK(bench.breaker.earliest(nanoseconds::max() - 1ns) == BreakerState::never);
    const BreakerStatus status = bench.breaker.status(5s);
    CHECK(status.state == BreakerStatus::open);
    CHECK(status.forced);
    CHECK(status.remaining == std::nullopt);
    CHECK(status.elapsed == 2s);
    CHECK(status.calls == 1);
    CHECK(status.failure_rate == 1);
    CHECK(bench.end(running, success).stale);
    CHECK(bench.state() == BreakerStatus::open);
    bench.breaker.reset(bench.now);
    CHECK(bench.state() == BreakerStatus::closed);
    CHECK_FALSE(bench.status().forced);
    CHECK(bench.may_begin());
}

TEST_CASE("breaker: it can be forced open in any state", "[breaker]") {
    const int rounds = GENERATE(0, 1, 2);
    BreakerBench bench;
    if (rounds != 0) {
        bench.half_open();
    }
    if (rounds == 2) {
        bench.call(success);
    }
    const std::uint64_t generation = bench.status().generation;
    bench.breaker.force_open(bench.now);
    CHECK(bench.status().state == BreakerStatus::open);
    CHECK(bench.status().forced);
    CHECK(bench.status().calls == (rounds == 2 ? 1 : 0));
    CHECK(bench.status().generation == generation + 1);
    CHECK_FALSE(bench.may_begin());
}

TEST_CASE("breaker: a breaker that tripped and is forced open has not tripped any more", "[breaker]") {
    BreakerBench bench;
    bench.call(trips);
    bench.breaker.force_open(bench.now);
    CHECK_FALSE(bench.status().tripped);
}

TEST_CASE("breaker: forced closed it counts, but nothing opens it", "[breaker]") {
    BreakerBench bench;
    bench.half_open();
    bench.breaker.force_closed(bench.now);
    for (int i = 0; i != 100; ++i) {
        const BreakerReport report = bench.call(i % 2 == 0 ? failure : trips);
        CHECK_FALSE(report.opened);
        CHECK_FALSE(report.spares_retry());
        CHECK(bench.may_begin());
    }
    CHECK(bench.state() == BreakerStatus::closed);
    CHECK(bench.status().forced);
    CHECK(bench.status().calls == 100);
    CHECK(bench.status().failure_rate == 1);
    bench.breaker.reset(bench.now);
    CHECK_FALSE(bench.status().forced);
    CHECK(bench.status().calls == 0);
    bench.open();
    CHECK(bench.wait() == 10s);
}

TEST_CASE("breaker: reset makes it as good as new, except that its generations go on", "[breaker]") {
    BreakerBench bench;
    bench.half_open();
    bench.call(trips);
    CHECK(bench.wait() == 20s);
    bench.breaker.reset(bench.now);
    const BreakerStatus status = bench.status();
    CHECK(status.state == BreakerStatus::closed);
    CHECK_FALSE(status.tripped);
    CHECK(status.calls == 0);
    CHECK(status.elapsed == 0ns);
    CHECK(status.generation == 4);
    bench.open();
    CHECK(bench.wait() == 10s);
}

TEST_CASE("breaker: its generation is the number of changes of its state", "[breaker]") {
    BreakerBench bench;
    CHECK(bench.breaker.generation() == 0);
    bench.open();
    CHECK(bench.breaker.generation() == 1);
    bench.now += 10s;
    CHECK(bench.status().generation == 2);
    bench.call(success);
    CHECK(bench.breaker.generation() == 2);
    bench.call(success);
    CHECK(bench.breaker.generation() == 3);
    bench.breaker.force_open(bench.now);
    CHECK(bench.breaker.generation() == 4);
    bench.breaker.force_closed(bench.now);
    CHECK(bench.breaker.generation() == 5);
    CHECK(bench.status().generation == 5);
}

TEST_CASE("breaker: its status has the counts of its window, of what opened it, and of its probes", "[breaker]") {
    BreakerBench bench({.failure_rate = 0.5, .minimum_calls = 4, .slow = 1s, .slow_rate = 0.9, .jitter = 0});
    CHECK(bench.status().failure_rate == 0);
    CHECK(bench.status().slow_rate == 0);
    bench.call(success, 2s);
    bench.call(success);
    bench.call(failure);
    CHECK(bench.status().calls == 3);
    CHECK(bench.status().failure_rate == 1.0 / 3);
    CHECK(bench.status().slow_rate == 1.0 / 3);
    CHECK(bench.status().elapsed == 2s);
    bench.call(failure);
    bench.now += 9s;
    CHECK(bench.status().calls == 4);
    CHECK(bench.status().failure_rate == 0.5);
    CHECK(bench.status().slow_rate == 0.25);
    CHECK(bench.status().elapsed == 9s);
    CHECK(bench.status().remaining == 1s);
    bench.now += 1s;
    CHECK(bench.status().calls == 0);
    CHECK(bench.status().failure_rate == 0);
    bench.call(success, 2s);
    CHECK(bench.status().calls == 1);
    CHECK(bench.status().slow_rate == 1);
    CHECK(bench.status().elapsed == 2s);
}

TEST_CASE("breaker: a clock reading that is older than another one does no harm", "[breaker]") {
    BreakerBench bench({.minimum_calls = 3, .window = 100ns, .slow = 1ns, .jitter = 0});
    bench.now = 1000ns;
    const BreakerCall call = bench.begin();
    bench.call(failure);
    bench.now = 1ns;
    CHECK_FALSE(bench.end(call, success).opened);  // took less than no time
    CHECK(bench.status().slow_rate == 0);
    CHECK(bench.status().calls == 2);
    CHECK(bench.call(failure).opened);
    bench.breaker.reset(1000ns);
    CHECK(bench.breaker.status(0ns).elapsed == 0ns);
}

TEST_CASE("breaker: times near the end of the clock do not overflow", "[breaker]") {
    const nanoseconds end = nanoseconds::max() - 1ns;
    const nanoseconds length = GENERATE(nanoseconds(1), nanoseconds(30s), nanoseconds::max());
    BreakerBench bench({.minimum_calls = 2,
                        .window = length,
                        .slow = length,
                        .slow_rate = 1,
                        .open_time = length,
                        .open_cap = nanoseconds::max(),
                        .jitter = 0});
    const BreakerCall long_call = bench.begin();
    CHECK_FALSE(bench.call(failure).opened);
    bench.now = end;
    CHECK(bench.status().calls == (length == nanoseconds::max() ? 1 : 0));
    CHECK(bench.status().elapsed == end);
    bench.end(long_call, failure);
    bench.calls(bench.state() == BreakerStatus::closed ? 1 : 0, failure);
    CHECK(bench.state() == BreakerStatus::open);
    CHECK(bench.breaker.earliest(end) == BreakerState::never);
    CHECK(bench.status().remaining == 1ns);
}

TEST_CASE("breaker: the longest open time after the longest call is never over", "[breaker]") {
    BreakerBench bench(
        {.minimum_calls = 1, .open_time = nanoseconds::max() / 2, .open_cap = nanoseconds::max(), .jitter = 0});
    bench.half_open();
    CHECK(bench.now == nanoseconds::max() / 2 + 1ns);  // 2^62 ns, as a double has it
    bench.call(failure);
    CHECK(bench.breaker.earliest(nanoseconds::max() - 1ns) == BreakerState::never);
}

TEST_CASE("breaker: the shortest window and the shortest open time work", "[breaker]") {
    BreakerBench bench({.minimum_calls = 1, .window = 1ns, .open_time = 1ns, .open_cap = 1ns, .jitter = 0});
    for (int i = 0; i != 1000; ++i) {
        bench.half_open();
        CHECK(bench.status().elapsed == 0ns);
        bench.calls(2, success);
        CHECK(bench.state() == BreakerStatus::closed);
    }
    CHECK(bench.now == 1000ns);
}

TEST_CASE("breaker: a permit that is destroyed without a report cancels its call", "[breaker]") {
    using Permit = BreakerPermit<BreakerState*>;
    static_assert(!std::is_copy_constructible_v<Permit> && !std::is_copy_assignable_v<Permit>);
    static_assert(std::is_nothrow_move_constructible_v<Permit> && std::is_nothrow_move_assignable_v<Permit>);
    BreakerBench bench;
    bench.half_open();
    const auto places = [&] {
        std::size_t free = 0;
        std::vector<BreakerCall> begun;
        for (; bench.may_begin(); ++free) {
            begun.push_back(bench.begin());
        }
        for (const BreakerCall& call : begun) {
            bench.breaker.cancel(call);
        }
        return free;
    };
    {
        const Permit permit(&bench.breaker, bench.now);
        CHECK(permit);
        CHECK(permit.is_probe());
        CHECK(places() == 1);
    }
    CHECK(places() == 2);
    CHECK_THROWS_AS(
        [&] {
            const Permit permit(&bench.breaker, bench.now);
            throw 1;
        }(),
        int);
    CHECK(places() == 2);
    {
        Permit permit(&bench.breaker, bench.now);
        Permit moved(std::move(permit));
        CHECK_FALSE(permit);  // NOLINT(bugprone-use-after-move): what it is then
        CHECK(moved);
        CHECK(places() == 1);
        permit.release();
        CHECK(places() == 1);
        permit = std::move(moved);
        CHECK(permit);
        CHECK_FALSE(moved);  // NOLINT(bugprone-use-after-move)
        CHECK(places() == 1);
        moved = Permit(&bench.breaker, bench.now);
        CHECK(places() == 0);
        moved = std::move(permit);
        CHECK(places() == 1);
        Permit& same = moved;
        moved = std::move(same);
        CHECK(moved);
        CHECK(places() == 1);
        moved = Permit();
        CHECK_FALSE(moved);
        CHECK(places() == 2);
    }
    {
        Permit permit(&bench.breaker, bench.now);
        permit.release();
        CHECK_FALSE(permit);
        CHECK(places() == 2);
    }
    CHECK(places() == 2);
    CHECK(bench.status().calls == 0);
}

TEST_CASE("breaker: a permit reports once, and then it is empty", "[breaker]") {
    BreakerBench bench({.minimum_calls = 2, .slow = 1s});
    {
        BreakerPermit<BreakerState*> permit(&bench.breaker, 1s);
        CHECK_FALSE(permit.is_probe());
        CHECK_FALSE(permit.report(failure, 3s).opened);
        CHECK_FALSE(permit);
    }
    CHECK(bench.status().calls == 1);
    CHECK(bench.status().slow_rate == 1);
    BreakerPermit<BreakerState*> permit(&bench.breaker, 1s);
    const BreakerReport report = permit.report(failure, 1s);
    CHECK(report.opened);
    CHECK(report.spares_retry());
}

TEST_CASE("breaker: a permit of an earlier generation returns no place", "[breaker]") {
    BreakerBench bench;
    bench.half_open();
    BreakerPermit<BreakerState*> old(&bench.breaker, bench.now);
    bench.call(failure);
    bench.now = bench.breaker.earliest(bench.now);
    const auto probes = bench.begin(2);
    old.release();
    CHECK_FALSE(bench.may_begin());
}

TEST_CASE("breaker: a permit tells the class around a breaker how its call ended", "[breaker]") {
    struct Line {
        BreakerState breaker{touchy};
        int reports = 0;
        int cancelled = 0;

        BreakerCall begin(nanoseconds now) noexcept { return breaker.begin(now); }
        BreakerReport end(const BreakerCall& call, BreakerResult result, nanoseconds now) noexcept {
            ++reports;
            return breaker.end(call, result, now);
        }
        void cancel(const BreakerCall& call) noexcept {
            ++cancelled;
            breaker.cancel(call);
        }
    };
    Line line;
    {
        const BreakerPermit<Line*> permit(&line, 0ns);
    }
    CHECK(line.cancelled == 1);
    CHECK(line.reports == 0);
    {
        BreakerPermit<Line*> permit(&line, 0ns);
        permit.report(success, 0ns);
    }
    CHECK(line.cancelled == 1);
    CHECK(line.reports == 1);
}

TEST_CASE("breaker: a permit keeps alive what a smart pointer leads to", "[breaker]") {
    auto breaker = std::make_shared<BreakerState>(touchy);
    const std::weak_ptr<BreakerState> watched = breaker;
    BreakerPermit<std::shared_ptr<BreakerState>> permit(std::move(breaker), 0ns);
    CHECK_FALSE(watched.expired());
    SECTION("until it has reported") { CHECK_FALSE(permit.report(success, 1s).stale); }
    SECTION("until it is released") { permit.release(); }
    CHECK(watched.expired());
}

namespace {

// Random operations on a breaker and on the naive one, which must agree on everything.
class BreakerHistory {
public:
    explicit BreakerHistory(std::uint64_t seed)
        : random_(seed), set_(any_settings()), naive_(set_), breaker_(options_of(set_, in_tenths_)) {}

    void run() {
        for (int step = 0; step != 150; ++step) {
            act();
            compare();
        }
    }

    std::size_t openings() const { return naive_.openings(); }
    int closings() const { return closings_; }
    int spared() const { return spared_; }

private:
    std::int64_t below(std::int64_t n) { return static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(n)); }
    bool one_in(std::int64_t n) { return below(n) == 0; }

    NaiveBreaker::Settings any_settings() {
        NaiveBreaker::Settings set{};
        set.failure_percent = 1 + below(100);
        set.minimum = 1 + below(8);
        in_tenths_ = 10 * (1 + below(20)) - below(10);
        set.tenth = one_in(3) ? 0 : (in_tenths_ + 9) / 10;
        set.last = static_cast<std::size_t>(set.minimum + below(10));
        set.slow = one_in(2) ? 0 : 1 + below(40);
        set.slow_percent = 1 + below(100);
        set.open = 1 + below(20);
        set.cap = set.open + below(100);
        set.probes = 1 + below(5);
        return set;
    }

    static BreakerOptions options_of(const NaiveBreaker::Settings& set, std::int64_t window) {
        BreakerOptions options{.failure_rate = static_cast<double>(set.failure_percent) / 100,
                               .minimum_calls = static_cast<int>(set.minimum),
                               .window = nanoseconds(window),
                               .slow_rate = static_cast<double>(set.slow_percent) / 100,
                               .open_time = nanoseconds(set.open),
                               .open_cap = nanoseconds(set.cap),
                               .jitter = 0,
                               .probes = static_cast<int>(set.probes)};
        if (set.tenth == 0) {
            options.window_calls = static_cast<int>(set.last);
        }
        if (set.slow != 0) {
            options.slow = nanoseconds(set.slow);
        }
        sluice::detail::require_valid("a random breaker", options);
        return options;
    }

    BreakerResult any_result() {
        if (one_in(25)) {
            up_ = !up_;  // the provider
        }
        return one_in(50) ? trips : one_in(10) ? ignored : below(10) < (up_ ? 1 : 8) ? failure : success;
    }

    static NaiveBreaker::Result same(BreakerResult result) {
        return result == success   ? NaiveBreaker::Result::success
               : result == failure ? NaiveBreaker::Result::failure
               : result == ignored ? NaiveBreaker::Result::ignored
                                   : NaiveBreaker::Result::trips;
    }

    void act() {
        if (one_in(200)) {
            naive_.force_open(now_);
            breaker_.force_open(nanoseconds(now_));
            return;
        }
        if (one_in(200)) {
            naive_.close(now_, true);
            breaker_.force_closed(nanoseconds(now_));
            return;
        }
        if (one_in(naive_.see(now_).forced ? 10 : 200)) {
            naive_.close(now_, false);
            breaker_.reset(nanoseconds(now_));
            return;
        }
        if (one_in(20)) {
            now_ = std::max<std::int64_t>(0, now_ - below(4));  // an old clock reading
            return;
        }
        if (one_in(40)) {
            now_ += below(200);
            return;
        }
        now_ += below(4);
        if (naive_.may_begin(now_) && (calls_.empty() || one_in(2))) {
            const NaiveBreaker::Call expected = naive_.begin(now_);
            const BreakerCall call = breaker_.begin(nanoseconds(now_));
            require(call.generation == expected.generation && call.probe == expected.probe &&
                    call.started.count() == expected.started);
            calls_.emplace_back(expected, call);
        } else if (!calls_.empty()) {
            const auto chosen = calls_.begin() + below(static_cast<std::int64_t>(calls_.size()));
            end(chosen->first, chosen->second);
            calls_.erase(chosen);
        }
    }

    void end(const NaiveBreaker::Call& expected, const BreakerCall& call) {
        if (one_in(10)) {
            require(breaker_.cancel(call) == !naive_.end(expected, NaiveBreaker::Result::ignored, now_).stale);
            return;
        }
        const BreakerResult result = any_result();
        const NaiveBreaker::Said said = naive_.end(expected, same(result), now_);
        const BreakerReport report = breaker_.end(call, result, nanoseconds(now_));
        require(said == NaiveBreaker::Said{report.opened, report.closed, report.failed_probe, report.stale,
                                           report.spares_retry()});
        closings_ += said.closed ? 1 : 0;
        spared_ += said.spared ? 1 : 0;
    }

    void compare() {
        const BreakerStatus status = breaker_.status(nanoseconds(now_));
        const auto number = [&](double rate) { return std::llround(rate * static_cast<double>(status.calls)); };
        require(naive_.see(now_) ==
                NaiveBreaker::Seen{status.state == BreakerStatus::closed ? 0
                                   : status.state == BreakerStatus::open ? 1
                                                                         : 2,
                                   status.forced, status.tripped, status.elapsed.count(),
                                   status.remaining ? std::optional(status.remaining->count()) : std::nullopt,
                                   status.calls, number(status.failure_rate), number(status.slow_rate),
                                   status.generation});
        const nanoseconds earliest = breaker_.earliest(nanoseconds(now_));
        require((earliest == BreakerState::never ? -1 : earliest.count()) == naive_.earliest(now_));
    }

    static void require(bool agrees) {
        if (!agrees) {
            throw std::logic_error("the breaker and the naive one differ");
        }
    }

    std::mt19937_64 random_;
    std::int64_t in_tenths_ = 0;
    NaiveBreaker::Settings set_;
    NaiveBreaker naive_;
    BreakerState breaker_;
    std::vector<std::pair<NaiveBreaker::Call, BreakerCall>> calls_;
    std::int64_t now_ = 0;
    bool up_ = true;
    int closings_ = 0;
    int spared_ = 0;
};

}  // namespace

TEST_CASE("breaker: in 10,000 random histories it does what a naive one does", "[breaker]") {
    std::size_t openings = 0;
    int closings = 0;
    int spared = 0;
    for (std::uint64_t seed = 0; seed != 10'000; ++seed) {
        INFO("seed " << seed);
        BreakerHistory history(seed);
        REQUIRE_NOTHROW(history.run());
        openings += history.openings();
        closings += history.closings();
        spared += history.spared();
    }
    CHECK(openings > 40'000);  // the histories are not trivial
    CHECK(closings > 9'000);
    CHECK(spared > 50'000);
}

}  // namespace breaker_tests
