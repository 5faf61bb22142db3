// SPDX-License-Identifier: BSL-1.0
#include <sluice/metrics/histogram.hpp>

#include <catch2/catch_message.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/matchers/catch_matchers.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <stdexcept>
#include <vector>

using namespace std::chrono_literals;
using sluice::Histogram;
using std::chrono::nanoseconds;

namespace {

Histogram histogram_of(const std::vector<nanoseconds>& values) {
    Histogram histogram;
    for (const nanoseconds value : values) {
        histogram.add(value);
    }
    return histogram;
}

// The bucket of a value.
std::size_t bucket_with(nanoseconds value) {
    const Histogram histogram = histogram_of({value});
    const auto& buckets = histogram.buckets();
    return static_cast<std::size_t>(std::ranges::find(buckets, 1U) - buckets.begin());
}

// Uniform in the logarithm, from 1 ns to about 3 hours.
std::vector<nanoseconds> random_durations(std::size_t count, std::uint64_t seed) {
    std::mt19937_64 random(seed);
    std::vector<nanoseconds> values;
    for (std::size_t i = 0; i != count; ++i) {
        const double part = static_cast<double>(random() >> 11) * 0x1p-53;
        values.emplace_back(std::llround(std::exp2(43 * part)));
    }
    return values;
}

}  // namespace

TEST_CASE("histogram: 10 ms times a power of two is a border, and belongs to the bucket below it", "[metrics]") {
    for (int octave = Histogram::least_octave; octave <= Histogram::greatest_octave; ++octave) {
        INFO(octave);
        const nanoseconds border(static_cast<std::int64_t>(std::floor(std::ldexp(1e7, octave))));
        CHECK(histogram_of({border}).count_up_to(octave) == 1);
        CHECK(histogram_of({border + 1ns}).count_up_to(octave) == 0);
        CHECK(bucket_with(border + 1ns) == bucket_with(border) + 1);
    }
}

TEST_CASE("histogram: OpenTelemetry's boundaries for calls of models are upper bounds of buckets", "[metrics]") {
    const double boundaries[] = {0.01, 0.02, 0.04, 0.08,  0.16,  0.32,  0.64,
                                 1.28, 2.56, 5.12, 10.24, 20.48, 40.96, 81.92};
    std::size_t bucket = bucket_with(10ms);
    for (const double boundary : boundaries) {
        CHECK(Histogram::upper_bound(bucket).count() == boundary);
        bucket += 8;
    }
}

TEST_CASE("histogram: a value is above the upper bound of the bucket before, and at most that of its own",
          "[metrics]") {
    for (const nanoseconds value : random_durations(20'000, 1)) {
        const std::size_t bucket = bucket_with(value);
        const double seconds = static_cast<double>(value.count()) / 1e9;
        INFO(value.count() << " ns in " << bucket);
        REQUIRE(seconds <= Histogram::upper_bound(bucket).count());
        REQUIRE((bucket == 0 || seconds > Histogram::upper_bound(bucket - 1).count()));
    }
    for (std::size_t bucket = 1; bucket + 1 != Histogram::bucket_count; ++bucket) {
        const auto inside = nanoseconds(static_cast<std::int64_t>(Histogram::upper_bound(bucket).count() * 1e9));
        CHECK(bucket_with(inside) == bucket);
        CHECK(bucket_with(inside + 1ns) == bucket + 1);
    }
}

TEST_CASE("histogram: what is too short or too long has a bucket of its own", "[metrics]") {
    CHECK(bucket_with(nanoseconds::min()) == 0);
    CHECK(bucket_with(-1ns) == 0);
    CHECK(bucket_with(0ns) == 0);
    CHECK(bucket_with(610ns) == 0);
    CHECK(bucket_with(611ns) == 1);
    CHECK(bucket_with(1'310'720ms) == Histogram::bucket_count - 2);
    CHECK(bucket_with(1'310'720ms + 1ns) == Histogram::bucket_count - 1);
    CHECK(bucket_with(nanoseconds::max()) == Histogram::bucket_count - 1);
    CHECK(std::isinf(Histogram::upper_bound(Histogram::bucket_count - 1).count()));
}

TEST_CASE("histogram: a quantile is off by at most 4.5 %", "[metrics]") {
    auto values = random_durations(5000, 2);
    std::erase_if(values, [](nanoseconds value) { return value <= 611ns || value > 1'310'720ms; });
    const Histogram histogram = histogram_of(values);
    std::ranges::sort(values);
    for (const double q : {0.0, 0.001, 0.01, 0.1, 0.25, 0.5, 0.75, 0.9, 0.99, 0.999, 1.0}) {
        const auto rank = static_cast<std::size_t>(std::ceil(q * static_cast<double>(values.size())));
        const auto exact = static_cast<double>(values[std::max<std::size_t>(rank, 1) - 1].count());
        INFO(q);
        CHECK(std::abs(static_cast<double>(histogram.quantile(q).count()) / exact - 1) <= 0.045);
    }
}

TEST_CASE("histogram: a quantile of one value is that value's, whatever the part", "[metrics]") {
    const Histogram histogram = histogram_of({10ms});
    CHECK(histogram.quantile(0) == histogram.quantile(1));
    CHECK(std::abs(static_cast<double>(histogram.quantile(0.5).count()) / 1e7 - 1) <= 0.045);
}

TEST_CASE("histogram: quantiles of nothing, and of values that are too short or too long", "[metrics]") {
    CHECK(Histogram().quantile(0) == 0ns);
    CHECK(Histogram().quantile(1) == 0ns);
    CHECK(histogram_of({5ns, 600ns}).quantile(1) == 0ns);
    CHECK(histogram_of({24h}).quantile(0.5) == 1'310'720ms);
    CHECK(histogram_of({0ns, 24h}).quantile(0.5) == 0ns);
    CHECK(histogram_of({0ns, 24h}).quantile(0.6) == 1'310'720ms);
}

TEST_CASE("histogram: the number of values is that of its buckets, and two are added bucket by bucket", "[metrics]") {
    const auto first = random_durations(300, 3);
    const auto second = random_durations(500, 4);
    Histogram sum = histogram_of(first);
    sum += histogram_of(second);
    auto both = first;
    both.insert(both.end(), second.begin(), second.end());
    CHECK(sum == histogram_of(both));
    CHECK(sum.count() == 800);
    CHECK(Histogram().count() == 0);
    CHECK(histogram_of({10ms, 10ms + 1ns, 20ms, 21ms}).count_up_to(0) == 1);
    CHECK(histogram_of({10ms, 10ms + 1ns, 20ms, 21ms}).count_up_to(1) == 3);
}

TEST_CASE("histogram: the sum is exact, and does not overflow", "[metrics]") {
    CHECK(histogram_of({1ms, 2ms, 250us, -5ms}).sum().count() == 0.00325);
    const Histogram century = histogram_of({nanoseconds::max(), nanoseconds::max()});  // 2^64 - 2 ns
    Histogram sum = century;
    sum += century;
    sum.add(1s);
    CHECK(std::abs(sum.sum().count() / (2 * 18446744073.709551614 + 1) - 1) < 1e-15);
}

TEST_CASE("histogram: an argument that is out of range is named", "[metrics]") {
    const Histogram histogram;
    using Catch::Matchers::Message;
    CHECK_THROWS_MATCHES(histogram.quantile(1.5), std::invalid_argument,
                         Message("Histogram: q must be from 0 to 1, got 1.5"));
    CHECK_THROWS_MATCHES(histogram.quantile(-0.25), std::invalid_argument,
                         Message("Histogram: q must be from 0 to 1, got -0.25"));
    CHECK_THROWS_AS(histogram.quantile(std::numeric_limits<double>::quiet_NaN()), std::invalid_argument);
    CHECK_THROWS_MATCHES(histogram.count_up_to(18), std::invalid_argument,
                         Message("Histogram: octave must be from -14 to 17, got 18"));
    CHECK_THROWS_AS(histogram.count_up_to(-15), std::invalid_argument);
}
