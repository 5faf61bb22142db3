// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/require.hpp>

#include <algorithm>
#include <array>
#include <bit>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numbers>

namespace sluice {

/// Counts durations in buckets of fixed borders, so that a histogram has a fixed size, about 2 kB, and two of them can
/// be added.
///
/// There are 8 buckets for each doubling, from 0.61 us to 22 min; one for what is shorter; one for what is longer. A
/// value that equals a border is in the bucket below it. Every 8th border is 10 ms times a power of two, without any
/// rounding, since the boundaries that OpenTelemetry recommends for calls of models (10 ms, 20 ms, 40 ms, ... 81.92 s)
/// are such.
///
/// The number of values is not kept apart but computed from the buckets, so that the two always agree.
///
/// The buckets are logarithmic, as in DDSketch: C. Masson, J. Rim, H. Lee, "DDSketch: a fast and fully-mergeable
/// quantile sketch with relative-error guarantees", VLDB 2019.
///
/// @par Thread safety
/// Distinct objects: safe. Shared objects: unsafe.
class Histogram {
public:
    static constexpr std::size_t bucket_count = 250;

    /// The borders that are exact are 10 ms * 2^octave, for octaves from the least to the greatest.
    static constexpr int least_octave = -14;
    static constexpr int greatest_octave = 17;

    using Buckets = std::array<std::uint64_t, bucket_count>;

    /// Counts a value; one below zero counts as zero. O(1), allocates nothing.
    void add(std::chrono::nanoseconds value) noexcept {
        const auto nanoseconds = static_cast<std::uint64_t>(std::max<std::chrono::nanoseconds::rep>(0, value.count()));
        ++buckets_[bucket_of(nanoseconds)];
        add_to_sum(nanoseconds, 0);
    }

    /// Adds the values of another histogram.
    Histogram& operator+=(const Histogram& other) noexcept {
        for (std::size_t bucket = 0; bucket != bucket_count; ++bucket) {
            buckets_[bucket] += other.buckets_[bucket];
        }
        add_to_sum(other.sum_low_, other.sum_high_);
        return *this;
    }

    /// The number of values.
    std::uint64_t count() const noexcept { return sum_of(bucket_count); }

    /// The number of values of at most 10 ms * 2^octave: exact.
    /// @throws std::invalid_argument if `octave` is less than `least_octave` or more than `greatest_octave`.
    std::uint64_t count_up_to(int octave) const {
        detail::require(octave >= least_octave && octave <= greatest_octave, "Histogram",
                        "octave must be from -14 to 17", octave);
        return sum_of(1 + buckets_per_octave * static_cast<std::size_t>(octave - least_octave));
    }

    /// The sum of the values. Kept as a whole number of nanoseconds that cannot overflow; only what is returned is
    /// rounded.
    std::chrono::duration<double> sum() const noexcept {
        return std::chrono::duration<double>(
            (std::ldexp(static_cast<double>(sum_high_), 64) + static_cast<double>(sum_low_)) / 1e9);
    }

    /// Returns an estimate of the smallest value that is at least as great as a part `q` of all values: the median for
    /// 0.5. It is off by at most 4.5 % of the value. If that is at most 0.61 us, returns 0; if it is more than 22 min,
    /// returns 22 min (1310.72 s); without values, 0.
    /// @param q From 0 to 1.
    /// @throws std::invalid_argument if `q` is out of range.
    std::chrono::nanoseconds quantile(double q) const {
        detail::require(q >= 0 && q <= 1, "Histogram", "q must be from 0 to 1", q);
        const double rank = q * static_cast<double>(count());
        std::uint64_t below = buckets_[0];
        std::size_t bucket = 0;
        while (bucket + 1 != bucket_count && (below == 0 || static_cast<double>(below) < rank)) {
            below += buckets_[++bucket];
        }
        if (bucket == 0 || below == 0) {
            return std::chrono::nanoseconds(0);
        }
        const double lower = upper_bound(bucket - 1).count();
        const double middle = bucket + 1 == bucket_count ? lower : std::sqrt(lower * upper_bound(bucket).count());
        return std::chrono::nanoseconds(std::llround(middle * 1e9));
    }

    const Buckets& buckets() const noexcept { return buckets_; }

    /// The greatest value that a bucket counts; infinite for the last one.
    static std::chrono::duration<double> upper_bound(std::size_t bucket) noexcept {
        if (bucket + 1 >= bucket_count) {
            return std::chrono::duration<double>(std::numeric_limits<double>::infinity());
        }
        const int octave = static_cast<int>(bucket / buckets_per_octave) + least_octave;
        return std::chrono::duration<double>(std::ldexp(0.01 * ratios[bucket % buckets_per_octave], octave));
    }

    friend bool operator==(const Histogram&, const Histogram&) = default;

private:
    static_assert(std::numeric_limits<double>::is_iec559);

    static constexpr std::size_t buckets_per_octave = 8;
    static_assert(bucket_count == 2 + buckets_per_octave * (greatest_octave - least_octave));

    // 2^(i/8).
    static constexpr std::array<double, buckets_per_octave + 1> ratios = {1,
                                                                          1.0905077326652577,
                                                                          1.189207115002721,
                                                                          1.2968395546510096,
                                                                          std::numbers::sqrt2,
                                                                          1.5422108254079407,
                                                                          1.681792830507429,
                                                                          1.8340080864093424,
                                                                          2};

    // From the bits of the value in units of 10 ms, less one, so that a border belongs to the bucket below. The
    // exponent selects the octave. If that is cut in eight equal parts, each part but the last has one border in it.
    static std::size_t bucket_of(std::uint64_t nanoseconds) noexcept {
        constexpr int fraction_bits = 52;
        constexpr std::uint64_t bias = 1023;
        if (nanoseconds == 0) {
            return 0;
        }
        const auto bits = std::bit_cast<std::uint64_t>(static_cast<double>(nanoseconds) / 1e7) - 1;
        const int octave = static_cast<int>(bits >> fraction_bits) - static_cast<int>(bias);
        if (octave < least_octave) {
            return 0;
        }
        if (octave >= greatest_octave) {
            return bucket_count - 1;
        }
        const std::size_t part = (bits >> (fraction_bits - 3)) % buckets_per_octave;
        const std::uint64_t as_in_first = (bits & ((std::uint64_t{1} << fraction_bits) - 1)) | (bias << fraction_bits);
        const bool is_above = as_in_first >= std::bit_cast<std::uint64_t>(ratios[part + 1]);
        return 1 + buckets_per_octave * static_cast<std::size_t>(octave - least_octave) + part + is_above;
    }

    std::uint64_t sum_of(std::size_t first_buckets) const noexcept {
        std::uint64_t sum = 0;
        for (std::size_t bucket = 0; bucket != first_buckets; ++bucket) {
            sum += buckets_[bucket];
        }
        return sum;
    }

    void add_to_sum(std::uint64_t low, std::uint64_t high) noexcept {
        sum_low_ += low;
        sum_high_ += high + (sum_low_ < low);
    }

    Buckets buckets_{};
    std::uint64_t sum_low_ = 0;  // of the nanoseconds
    std::uint64_t sum_high_ = 0;
};

}  // namespace sluice
