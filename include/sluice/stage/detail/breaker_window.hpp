// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

namespace sluice::detail {

// How many calls ended, and how many of them failed or were slow. A call may be both.
struct BreakerCounts {
    std::int64_t calls = 0;
    std::int64_t failed = 0;
    std::int64_t slow = 0;

    void add(bool call_failed, bool call_slow) noexcept {
        ++calls;
        failed += call_failed ? 1 : 0;
        slow += call_slow ? 1 : 0;
    }

    BreakerCounts& operator-=(const BreakerCounts& other) noexcept {
        calls -= other.calls;
        failed -= other.failed;
        slow -= other.slow;
        return *this;
    }

    // The quotient of two whole numbers is rounded like a literal, so that 7 calls of 100 are the rate 0.07. (Their
    // product need not be: 0.07 * 100 is more than 7.)
    static double share(std::int64_t part, std::int64_t whole) noexcept {
        return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole);
    }
};

// The calls of the last `length`, in buckets that begin at the multiples of its tenth. Allocates nothing. O(1).
class TimeWindow {
public:
    // A length that is no multiple of 10 ns is rounded up to one.
    explicit TimeWindow(std::chrono::nanoseconds length) noexcept
        : width_(length.count() / buckets + (length.count() % buckets != 0 ? 1 : 0)) {}

    // Counts a call that ended `now`, which is not negative. If it is earlier than in another call, since clock
    // readings may be kept for a while, the call is counted as if it had ended in the latest bucket.
    const BreakerCounts& add(std::chrono::nanoseconds now, bool failed, bool slow) noexcept {
        forget(now);
        ring_[current_].add(failed, slow);
        counts_.add(failed, slow);
        return counts_;
    }

    void clear() noexcept {
        ring_ = {};
        counts_ = {};
    }

    BreakerCounts counts(std::chrono::nanoseconds now) const noexcept {
        TimeWindow copy = *this;
        copy.forget(now);
        return copy.counts_;
    }

private:
    static constexpr std::int64_t buckets = 10;

    void forget(std::chrono::nanoseconds now) noexcept {
        const std::int64_t past = now.count() - begin_;
        if (past < width_) {
            return;
        }
        const std::int64_t steps = past / width_;
        begin_ += steps * width_;
        for (std::int64_t i = std::min(steps, buckets); i != 0; --i) {
            current_ = (current_ + 1) % ring_.size();
            counts_ -= ring_[current_];
            ring_[current_] = {};
        }
    }

    std::array<BreakerCounts, buckets> ring_;
    BreakerCounts counts_;  // their sum
    std::size_t current_ = 0;
    std::int64_t begin_ = 0;  // of the current bucket
    std::int64_t width_;      // of a bucket
};

// The last calls, whenever they ended. Allocates once. O(1).
class CountWindow {
public:
    // `calls` is at least 1.
    explicit CountWindow(int calls) : ring_(static_cast<std::size_t>(calls)) {}

    const BreakerCounts& add(std::chrono::nanoseconds /*now*/, bool failed, bool slow) noexcept {
        Result& oldest = ring_[next_];
        counts_ -= {oldest.used ? 1 : 0, oldest.failed ? 1 : 0, oldest.slow ? 1 : 0};
        oldest = {true, failed, slow};
        counts_.add(failed, slow);
        next_ = next_ + 1 == ring_.size() ? 0 : next_ + 1;
        return counts_;
    }

    void clear() noexcept {
        std::ranges::fill(ring_, Result());
        counts_ = {};
    }

    const BreakerCounts& counts(std::chrono::nanoseconds /*now*/) const noexcept { return counts_; }

private:
    struct Result {
        bool used : 1 = false;
        bool failed : 1 = false;
        bool slow : 1 = false;
    };

    std::vector<Result> ring_;
    BreakerCounts counts_;
    std::size_t next_ = 0;  // the place of the oldest result, if all are used
};

}  // namespace sluice::detail
