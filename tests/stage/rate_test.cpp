// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/rate.hpp>

#include "support/probes.hpp"

#include <sluice/stage/detail/multiply_divide.hpp>
#include <sluice/stage/detail/rate_options.hpp>

#include <boost/multiprecision/cpp_int.hpp>
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <type_traits>

namespace {

using namespace std::chrono_literals;
using sluice::Cost;
using sluice::Rate;
using sluice::detail::multiply_divide;

constexpr std::int64_t default_burst_of(Rate::Dimension dimension, const Rate& rate) {
    return sluice::detail::burst_of(dimension, rate.periods()[0]);
}

std::string rate_refusal(const Rate& rate, Rate::Dimension dimension = Rate::requests) {
    return test::refusal_of([&] { sluice::detail::require_valid("Endpoint 'gpt'", dimension, rate); });
}

std::string cost_refusal(const Cost& cost) {
    return test::refusal_of([&] { sluice::detail::require_valid("Endpoint 'gpt'", cost); });
}

}  // namespace

TEST_CASE("rate: it is a value with up to four periods", "[rate]") {
    constexpr Rate one(500, 1min);
    static_assert(one.periods().size() == 1);
    static_assert(one.periods()[0] == Rate::Period{500, 60s});
    static_assert(!one.periods()[0].burst);

    constexpr Rate four = Rate(10, 1s, 3).also(500, 1min).also(20'000, 1h, 7).also(1'000'000'000'000, 24h);
    static_assert(four.periods().size() == 4);
    static_assert(four.periods()[0] == Rate::Period{10, 1s, 3});
    static_assert(four.periods()[1] == Rate::Period{500, 1min});
    static_assert(four.periods()[2] == Rate::Period{20'000, 1h, 7});
    static_assert(four.periods()[3] == Rate::Period{1'000'000'000'000, 24h});

    static_assert(one == Rate(500, 60s) && one != Rate(500, 60s, 8) && one != one.also(1, 1s));
    static_assert(std::is_trivially_destructible_v<Rate> && std::is_trivially_copyable_v<Rate>);
}

TEST_CASE("rate: a fifth period is an error that names it", "[rate]") {
    const Rate four = Rate(1, 1s).also(2, 1s).also(3, 1s).also(4, 1s);
    CHECK(test::refusal_of([&] { static_cast<void>(four.also(5, 1min)); }) ==
          "Rate: there must be at most 4 periods, got a fifth of 5 per 60000000000 ns");
}

TEST_CASE("rate: an unlimited one has no period, and may be the default of an option", "[rate]") {
    struct SomeOptions {
        Rate requests = Rate::unlimited;
    };
    static_assert(SomeOptions().requests.periods().empty());
    static_assert(SomeOptions{.requests = Rate(1, 1s)}.requests == Rate(1, 1s));
    static_assert(Rate::unlimited.also(1, 1s) == Rate(1, 1s));
    static_assert(std::is_aggregate_v<SomeOptions> && std::is_trivially_destructible_v<SomeOptions>);
}

TEST_CASE("rate: a cost is one request by default", "[rate]") {
    static_assert(Cost() == Cost{.requests = 1, .input_tokens = 0, .output_tokens = 0});
    static_assert(Cost{.input_tokens = 5} != Cost());
}

TEST_CASE("rate: the default burst of requests is what comes in a second, but at least 1 and at most the amount",
          "[rate]") {
    CHECK(default_burst_of(Rate::requests, Rate(500, 1min)) == 8);
    CHECK(default_burst_of(Rate::requests, Rate(7, 1s)) == 7);
    CHECK(default_burst_of(Rate::requests, Rate(59, 1min)) == 1);
    CHECK(default_burst_of(Rate::requests, Rate(10, 100ms)) == 10);
    CHECK(default_burst_of(Rate::requests, Rate(10'000, 24h)) == 1);
    CHECK(default_burst_of(Rate::requests, Rate(1'000'000'000'000, 24h)) == 11'574'074);
    CHECK(default_burst_of(Rate::requests, Rate(500, 1min, 3)) == 3);
    CHECK(default_burst_of(Rate::requests, Rate(1, 1ns)) == 1);
}

TEST_CASE("rate: the default burst of tokens is what comes in a minute, but at least 1 and at most the amount",
          "[rate]") {
    for (const auto dimension : {Rate::input_tokens, Rate::output_tokens}) {
        CHECK(default_burst_of(dimension, Rate(200'000, 1min)) == 200'000);
        CHECK(default_burst_of(dimension, Rate(1'000, 1s)) == 1'000);
        CHECK(default_burst_of(dimension, Rate(6'000'000, 1h)) == 100'000);
        CHECK(default_burst_of(dimension, Rate(1'440'000, 24h)) == 1'000);
        CHECK(default_burst_of(dimension, Rate(1'439, 24h)) == 1);
        CHECK(default_burst_of(dimension, Rate(1'000'000'000'000, 24h)) == 694'444'444);
        CHECK(default_burst_of(dimension, Rate(200'000, 1min, 250'000)) == 250'000);
    }
}

TEST_CASE("rate: an error names the option, the period and the value", "[rate]") {
    CHECK(rate_refusal(Rate(0, 1min)) == "Endpoint 'gpt': requests, period 1: amount must be from 1 to 10^15, got 0");
    CHECK(rate_refusal(Rate(1, 1min).also(-7, 1s), Rate::input_tokens) ==
          "Endpoint 'gpt': input_tokens, period 2: amount must be from 1 to 10^15, got -7");
    CHECK(rate_refusal(Rate(1'000'000'000'000'001, 1s)) ==
          "Endpoint 'gpt': requests, period 1: amount must be from 1 to 10^15, got 1000000000000001");
    CHECK(rate_refusal(Rate(1, 0s), Rate::output_tokens) ==
          "Endpoint 'gpt': output_tokens, period 1: per must be positive, got 0 ns");
    CHECK(rate_refusal(Rate(1, -1ns)) == "Endpoint 'gpt': requests, period 1: per must be positive, got -1 ns");
    CHECK(rate_refusal(Rate(1, 1s).also(1, 1min).also(1, 1h, 0)) ==
          "Endpoint 'gpt': requests, period 3: burst must be from 1 to 10^15, got 0");
    CHECK(rate_refusal(Rate(1, 1s, 1'000'000'000'000'001)) ==
          "Endpoint 'gpt': requests, period 1: burst must be from 1 to 10^15, got 1000000000000001");
    CHECK(cost_refusal({.requests = -1}) == "Endpoint 'gpt': requests of a cost must be from 0 to 10^15, got -1");
    CHECK(cost_refusal({.input_tokens = -2}) ==
          "Endpoint 'gpt': input_tokens of a cost must be from 0 to 10^15, got -2");
    CHECK(cost_refusal({.output_tokens = 1'000'000'000'000'001}) ==
          "Endpoint 'gpt': output_tokens of a cost must be from 0 to 10^15, got 1000000000000001");
}

TEST_CASE("rate: the ends of each range are valid", "[rate]") {
    CHECK(rate_refusal(Rate::unlimited) == "no error");
    CHECK(rate_refusal(Rate(1, 1ns, 1)) == "no error");
    CHECK(rate_refusal(Rate(1'000'000'000'000'000, std::chrono::nanoseconds::max(), 1'000'000'000'000'000)) ==
          "no error");
    CHECK(cost_refusal({0, 0, 0}) == "no error");
    CHECK(cost_refusal({1'000'000'000'000'000, 1'000'000'000'000'000, 1'000'000'000'000'000}) == "no error");
}

TEST_CASE("rate: multiply_divide is exact where the product needs 128 bits", "[rate]") {
    using boost::multiprecision::uint256_t;
    constexpr std::uint64_t largest = std::numeric_limits<std::uint64_t>::max();
    std::mt19937_64 random(1);
    const auto number = [&] {  // of any length, often at an edge
        const std::uint64_t bits = random() >> (random() % 64);
        const std::uint64_t edge = std::uint64_t{1} << (random() % 64);
        switch (random() % 4) {
            case 0:
                return edge;
            case 1:
                return edge - 1;
            default:
                return bits;
        }
    };
    int saturated = 0;
    int wrong = 0;
    for (int i = 0; i < 200'000; ++i) {
        const std::uint64_t a = number();
        const std::uint64_t b = number();
        const std::uint64_t c = number();
        const std::uint64_t divisor = number() | (random() % 2 == 0 ? 1 : std::uint64_t{1} << 63);
        const auto [quotient, remainder] = multiply_divide(a, b, c, divisor);
        const uint256_t sum = uint256_t(a) * b + c;
        if (sum / divisor > largest) {
            ++saturated;
            wrong += quotient == largest && remainder == 0 ? 0 : 1;
        } else {
            wrong += quotient == sum / divisor && remainder == sum % divisor ? 0 : 1;
        }
    }
    CHECK(wrong == 0);
    CHECK(saturated > 1000);

    CHECK(multiply_divide(largest, largest, largest, largest).quotient == largest);
    CHECK(multiply_divide(largest, largest, 0, largest).quotient == largest);
    CHECK(multiply_divide(largest, largest - 1, largest - 1, largest).quotient == largest - 1);
    CHECK(multiply_divide(largest, largest - 1, largest - 1, largest).remainder == largest - 1);
    CHECK(multiply_divide(0, largest, 5, 7).remainder == 5);
}
