// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/detail/retry_decision.hpp>
#include <sluice/stage/retry.hpp>

#include "support/probes.hpp"

#include <boost/asio/multiple_exceptions.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <initializer_list>
#include <limits>
#include <optional>
#include <set>
#include <stdexcept>
#include <string>
#include <system_error>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using sluice::Backoff;
using sluice::retry_on;
using sluice::RetryPolicy;
using std::chrono::nanoseconds;

constexpr double infinity = std::numeric_limits<double>::infinity();
constexpr double not_a_number = std::numeric_limits<double>::quiet_NaN();

Backoff backoff(nanoseconds initial, double multiplier, nanoseconds cap, double jitter = 0, std::uint64_t seed = 0) {
    return {.initial = initial, .multiplier = multiplier, .cap = cap, .jitter = jitter, .seed = seed};
}

template <class Exception>
std::exception_ptr thrown(Exception exception) {
    return std::make_exception_ptr(exception);
}

const std::exception_ptr any_error = thrown(std::runtime_error("x"));

// The message with which a stage rejects these settings.
std::string refusal(int max_retries, Backoff settings) {
    return test::refusal_of([&] { sluice::detail::require_valid("Stage 's'", RetryPolicy(max_retries, settings)); });
}

bool has(const std::string& text, std::initializer_list<const char*> parts) {
    return std::ranges::all_of(parts, [&](const char* part) { return text.find(part) != std::string::npos; });
}

std::vector<nanoseconds> delays(const RetryPolicy& policy, std::uint64_t stream = 0) {
    std::vector<nanoseconds> all;
    for (int retry = 1; retry <= 20; ++retry) {
        all.push_back(policy.delay(retry, stream));
    }
    return all;
}

}  // namespace

TEST_CASE("retry: by default there are no retries", "[retry]") {
    const RetryPolicy policy;
    CHECK(policy.max_retries == 0);
    CHECK_FALSE(policy.should_retry(1, any_error));
}

TEST_CASE("retry: N retries make N+1 attempts", "[retry]") {
    for (int retries = 0; retries != 10; ++retries) {
        const RetryPolicy policy(retries);
        int attempts = 1;
        while (policy.should_retry(attempts, any_error)) {
            ++attempts;
        }
        CHECK(attempts == retries + 1);
        CHECK(policy.max_retries == retries);
    }
    const RetryPolicy unbounded(std::numeric_limits<int>::max());
    CHECK(unbounded.should_retry(std::numeric_limits<int>::max(), any_error));
}

TEST_CASE("retry: it returns the settings that it was given, and the defaults are the documented ones", "[retry]") {
    const RetryPolicy policy(3, backoff(1ms, 3, 9ms, 0.25, 7));
    CHECK(policy.backoff.initial == 1ms);
    CHECK(policy.backoff.multiplier == 3);
    CHECK(policy.backoff.cap == 9ms);
    CHECK(policy.backoff.jitter == 0.25);
    CHECK(policy.backoff.seed == 7);
    const RetryPolicy defaults(3);
    CHECK(defaults.backoff.initial == 100ms);
    CHECK(defaults.backoff.multiplier == 2);
    CHECK(defaults.backoff.cap == std::nullopt);
    CHECK(defaults.backoff.jitter == 0.5);
    CHECK(defaults.backoff.seed == std::nullopt);
}

TEST_CASE("retry: the default cap is 30 s, or the initial delay if that is longer", "[retry]") {
    CHECK(RetryPolicy(99, Backoff{.initial = 100ms, .jitter = 0}).delay(99) == 30s);
    CHECK(RetryPolicy(99, Backoff{.initial = 60s, .jitter = 0}).delay(1) == 60s);
    CHECK(RetryPolicy(99, Backoff{.initial = 60s, .jitter = 0}).delay(99) == 60s);
}

TEST_CASE("retry: without a seed, the delays are those of seed 0", "[retry]") {
    CHECK(RetryPolicy(5).delay(1) == RetryPolicy(5, Backoff{.seed = 0}).delay(1));
    CHECK(RetryPolicy(5).delay(1) != RetryPolicy(5, Backoff{.seed = 1}).delay(1));
}

TEST_CASE("retry: a setting out of range is rejected, naming the setting and its value", "[retry]") {
    CHECK(has(refusal(-1, {}), {"Stage 's': ", "max_retries", "-1"}));
    CHECK(has(refusal(std::numeric_limits<int>::min(), {}), {"max_retries", "-2147483648"}));
    CHECK(has(refusal(1, backoff(-5ns, 2, 1s)), {"Stage 's': ", "initial", "-5"}));
    CHECK(has(refusal(1, backoff(1ns, 0.5, 1s)), {"Stage 's': ", "multiplier", "0.5"}));
    CHECK(has(refusal(1, backoff(1ns, -2, 1s)), {"multiplier", "-2"}));
    CHECK(has(refusal(1, backoff(1ns, infinity, 1s)), {"multiplier", "inf"}));
    CHECK(has(refusal(1, backoff(1ns, not_a_number, 1s)), {"multiplier", "nan"}));
    CHECK(has(refusal(1, backoff(10ns, 2, 9ns)), {"Stage 's': ", "cap", "9"}));
    CHECK(has(refusal(1, backoff(0ns, 2, -3ns)), {"cap", "-3"}));
    CHECK(has(refusal(1, backoff(1ns, 2, 1s, -0.25)), {"Stage 's': ", "jitter", "-0.25"}));
    CHECK(has(refusal(1, backoff(1ns, 2, 1s, 1.5)), {"jitter", "1.5"}));
    CHECK(has(refusal(1, backoff(1ns, 2, 1s, not_a_number)), {"jitter", "nan"}));
    CHECK(has(refusal(1, backoff(1ns, 2, 1s, infinity)), {"jitter", "inf"}));
}

TEST_CASE("retry: a value that is barely out of range is not printed as one in range", "[retry]") {
    CHECK(has(refusal(1, backoff(1ns, std::nextafter(1, 0), 1s)), {"got 0.9999999999999999"}));
    CHECK(has(refusal(1, backoff(1ns, 2, 1s, std::nextafter(1, 2))), {"got 1.0000000000000002"}));
    CHECK(has(refusal(1, backoff(1ns, 2, 1s, -1e-9)), {"got -0.000000001"}));
}

TEST_CASE("retry: settings at the ends of their ranges are accepted", "[retry]") {
    CHECK(refusal(0, backoff(0ns, 1, 0ns, 0)) == "no error");
    CHECK(refusal(std::numeric_limits<int>::max(), backoff(1ns, 1, 1ns, 1)) == "no error");
    CHECK(refusal(1, backoff(nanoseconds::max(), std::numeric_limits<double>::max(), nanoseconds::max(), 1)) ==
          "no error");
}

TEST_CASE("retry: without jitter the delays are exactly initial * multiplier^(retry - 1), at most the cap", "[retry]") {
    const RetryPolicy doubling(10, backoff(100ms, 2, 1s));
    CHECK(doubling.delay(1) == 100ms);
    CHECK(doubling.delay(2) == 200ms);
    CHECK(doubling.delay(3) == 400ms);
    CHECK(doubling.delay(4) == 800ms);
    CHECK(doubling.delay(5) == 1s);
    CHECK(doubling.delay(6) == 1s);
    const RetryPolicy gentle(10, backoff(16ns, 1.5, 1s));
    CHECK(gentle.delay(2) == 24ns);
    CHECK(gentle.delay(3) == 36ns);
    CHECK(gentle.delay(4) == 54ns);
    const RetryPolicy constant(10, backoff(7ms, 1, 1s));
    CHECK(constant.delay(1) == 7ms);
    CHECK(constant.delay(1'000'000) == 7ms);
}

TEST_CASE("retry: without jitter the stream makes no difference", "[retry]") {
    const RetryPolicy policy(10, backoff(100ms, 2, 1s));
    CHECK(delays(policy, 1) == delays(policy, 2));
}

TEST_CASE("retry: the delay of retry 1,000,000 is the cap", "[retry]") {
    const auto multiplier = GENERATE(1.0001, 2.0, 1e300, std::numeric_limits<double>::max());
    const RetryPolicy policy(1'000'000, backoff(1ms, multiplier, 30s));
    CHECK(policy.delay(1'000'000) == 30s);
    CHECK(policy.delay(std::numeric_limits<int>::max()) == 30s);
    const RetryPolicy jittered(1'000'000, backoff(1ms, multiplier, 30s, 0.5));
    CHECK(jittered.delay(1'000'000) <= 30s);
    CHECK(jittered.delay(1'000'000) >= 15s);
}

TEST_CASE("retry: a cap that a double cannot represent is not exceeded and does not overflow", "[retry]") {
    for (const nanoseconds cap : {nanoseconds::max(), nanoseconds::max() - 1ns, nanoseconds((1LL << 53) + 1)}) {
        for (const double jitter : {0.0, 1e-18, 0.5, 1.0}) {
            for (const nanoseconds initial : {1ns, nanoseconds(1h), cap}) {
                const RetryPolicy policy(1, backoff(initial, 1e9, cap, jitter));
                for (const int retry : {1, 2, 3, 1'000'000}) {
                    CHECK(policy.delay(retry) >= 0ns);
                    CHECK(policy.delay(retry) <= cap);
                }
            }
        }
    }
    CHECK(RetryPolicy(1, backoff(1ns, 10, nanoseconds::max())).delay(1000) == nanoseconds::max());
}

TEST_CASE("retry: if the initial delay is zero, every delay is zero", "[retry]") {
    const auto multiplier = GENERATE(1.0, 2.0, std::numeric_limits<double>::max());
    const auto jitter = GENERATE(0.0, 0.5, 1.0);
    const RetryPolicy policy(9, backoff(0ns, multiplier, 1s, jitter));
    CHECK(delays(policy) == std::vector<nanoseconds>(20, 0ns));
    CHECK(policy.delay(1'000'000) == 0ns);
}

TEST_CASE("retry: jitter subtracts a random part, anywhere between none and all of its share", "[retry]") {
    const auto jitter = GENERATE(0.1, 0.5, 1.0);
    nanoseconds least = 1h;
    nanoseconds most = 0ns;
    nanoseconds sum = 0ns;
    constexpr int seeds = 20'000;
    for (std::uint64_t seed = 0; seed != seeds; ++seed) {
        const auto delay = RetryPolicy(9, backoff(1s, 2, 3s, jitter, seed)).delay(3);  // 4 s without the cap
        least = std::min(least, delay);
        most = std::max(most, delay);
        sum += delay;
    }
    const auto share = [&](double part) { return nanoseconds(static_cast<std::int64_t>(3e9 * (1 - part * jitter))); };
    CHECK(least >= share(1));
    CHECK(least <= share(0.99));
    CHECK(most <= 3s);
    CHECK(most >= share(0.01));
    CHECK(sum / seeds >= share(0.52));
    CHECK(sum / seeds <= share(0.48));
}

TEST_CASE("retry: the same seed produces the same delays, and another seed produces others", "[retry]") {
    std::set<std::vector<nanoseconds>> seen;
    for (const std::uint64_t seed : {0ULL, 1ULL, 2ULL, 3ULL, 1ULL << 32, 1ULL << 63, ~0ULL}) {
        const RetryPolicy policy(9, backoff(1s, 1, 1s, 1, seed));
        const RetryPolicy same(3, backoff(1s, 1, 1s, 1, seed));
        CHECK(delays(policy) == delays(same));
        CHECK(delays(policy) == delays(policy));  // calling it changes nothing
        seen.insert(delays(policy));
    }
    CHECK(seen.size() == 7);
}

TEST_CASE("retry: delays differ between streams and between retries", "[retry]") {
    const RetryPolicy policy(9, backoff(1s, 1, 1s, 1, 42));
    std::set<nanoseconds> seen;
    for (std::uint64_t stream = 0; stream != 100; ++stream) {
        for (int retry = 1; retry <= 100; ++retry) {
            seen.insert(policy.delay(retry, stream));
        }
    }
    CHECK(seen.size() > 9'990);  // of 10,000 values out of a billion
}

TEST_CASE("retry: a copy decides like the original", "[retry]") {
    const RetryPolicy policy(2, backoff(1s, 2, 9s, 0.5, 5), retry_on<std::runtime_error>);
    const RetryPolicy copy = policy;
    CHECK(delays(copy) == delays(policy));
    CHECK(copy.should_retry(2, any_error));
    CHECK_FALSE(copy.should_retry(3, any_error));
    CHECK_FALSE(copy.should_retry(1, thrown(1)));
}

TEST_CASE("retry: while there are retries left, a predicate decides which exceptions are retried", "[retry]") {
    static int asked;
    asked = 0;
    const RetryPolicy policy(2, {}, [](const std::exception_ptr& error) {
        ++asked;
        return error == any_error;
    });
    CHECK(policy.should_retry(1, any_error));
    CHECK_FALSE(policy.should_retry(1, thrown(1)));
    CHECK(asked == 2);
    CHECK_FALSE(policy.should_retry(3, any_error));
    CHECK(asked == 2);
}

TEST_CASE("retry: an exception of the predicate propagates", "[retry]") {
    const RetryPolicy policy(2, {}, [](const std::exception_ptr&) -> bool { throw std::logic_error("predicate"); });
    CHECK_THROWS_AS(policy.should_retry(1, any_error), std::logic_error);
}

TEST_CASE("retry: retry_on() accepts the given types and those derived from them, and no others", "[retry]") {
    const auto predicate = retry_on<std::runtime_error, std::bad_alloc, int>;
    CHECK(predicate(thrown(std::runtime_error("x"))));
    CHECK(predicate(thrown(std::range_error("derived"))));
    CHECK(predicate(thrown(std::system_error(std::make_error_code(std::errc::timed_out)))));
    CHECK(predicate(thrown(std::bad_alloc())));
    CHECK(predicate(thrown(1)));
    CHECK_FALSE(predicate(thrown(std::logic_error("x"))));
    CHECK_FALSE(predicate(thrown(1L)));
    CHECK_FALSE(predicate(thrown(std::string("x"))));
    CHECK_FALSE(predicate(std::make_exception_ptr(std::exception())));  // a base is not enough
}

TEST_CASE("retry: retry_on() looks into exceptions that contain others", "[retry]") {
    const auto predicate = retry_on<std::range_error>;
    const auto in_several = [](std::exception_ptr first) {
        return std::make_exception_ptr(boost::asio::multiple_exceptions(std::move(first)));
    };
    const auto nest = [](const std::exception_ptr& inner) { return test::nested_in_logic_error(inner); };
    const auto inner = thrown(std::range_error("x"));
    CHECK(predicate(in_several(inner)));
    CHECK(predicate(nest(inner)));
    CHECK(predicate(nest(in_several(nest(inner)))));
    CHECK(retry_on<std::logic_error>(nest(thrown(1))));
    CHECK_FALSE(predicate(nest(thrown(1))));
    CHECK_FALSE(predicate(in_several(any_error)));
    CHECK_FALSE(predicate(in_several(nullptr)));
    CHECK(retry_on<boost::asio::multiple_exceptions>(in_several(inner)));
    CHECK(retry_on<std::exception>(in_several(thrown(1))));
}
