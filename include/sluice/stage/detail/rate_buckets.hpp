// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/rate_options.hpp>
#include <sluice/stage/detail/token_bucket.hpp>
#include <sluice/stage/rate.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

namespace sluice::detail {

// A token bucket for each period of each dimension, in the order of the dimensions. All of them pay for each call.
//
// Times never decrease. Every operation takes time in proportion to the number of buckets. They are in one list, not in
// one for each dimension, so that due() and debit() are one loop each.
class RateBuckets {
public:
    using Time = std::chrono::nanoseconds;

    struct Entry {
        TokenBucket bucket;
        std::int64_t Cost::* cost = nullptr;
        Rate::Dimension dimension = Rate::requests;
    };

    // Replaces the buckets of a dimension; `rate` is valid. A period that is as long as one before continues from its
    // level, any other from the lowest of the levels before (counted in whole tokens; the first of equals), at most the
    // new burst. So a debt stays. Without a rate before, the buckets are full.
    constexpr void set_rate(Rate::Dimension dimension, const Rate& rate, Time now) noexcept {
        for (Entry& entry : mutable_entries()) {
            entry.bucket.refill(now);
        }
        const RateBuckets before = *this;
        size_ = 0;
        const std::span<const Entry> replaced = before.of(dimension);
        append_others(before, [&](const Entry& entry) { return entry.dimension < dimension; });
        for (const Rate::Period& period : rate.periods()) {
            TokenBucket bucket(period.amount, period.per, burst_of(dimension, period), now);
            if (!replaced.empty()) {
                bucket.continue_from(predecessor(replaced, period.per));
            }
            entries_[size_++] = {bucket, describe(dimension).cost, dimension};
        }
        append_others(before, [&](const Entry& entry) { return entry.dimension > dimension; });
    }

    // The earliest time, not before `latest`, at which every bucket can pay; see TokenBucket::due().
    constexpr Time due(const Cost& cost, Time latest) const noexcept {
        for (const Entry& entry : entries()) {
            latest = later(latest, entry.bucket.due(cost.*entry.cost));
        }
        return latest;
    }

    constexpr void debit(const Cost& cost, Time now) noexcept {
        for (Entry& entry : mutable_entries()) {
            entry.bucket.pay(cost.*entry.cost, now);
        }
    }

    // Exchanges what a call was granted in a dimension for what it used.
    constexpr void settle(Rate::Dimension dimension, std::int64_t granted, std::int64_t used, Time now) noexcept {
        for (Entry& entry : mutable_entries()) {
            if (entry.dimension == dimension && used > granted) {
                entry.bucket.take(used - granted, now);
            } else if (entry.dimension == dimension && used < granted) {
                entry.bucket.give_back(granted - used, now);
            }
        }
    }

    // Empties the bucket of the shortest period of each dimension. That alone keeps the calls that wait from beginning
    // all at once; an empty bucket of a day would hold them to its pace for hours.
    constexpr void empty_until(Time until, Time now) noexcept {
        for (Entry& entry : mutable_entries()) {
            const auto is_shorter = [&](const Entry& other) { return other.bucket.per() < entry.bucket.per(); };
            if (std::ranges::none_of(of(entry.dimension), is_shorter)) {
                entry.bucket.empty_until(until, now);
            }
        }
    }

    // The first bucket whose burst is below its part of the cost; null if there is none.
    constexpr const Entry* too_small_for(const Cost& cost) const noexcept {
        const auto found = std::ranges::find_if(
            entries(), [&](const Entry& entry) { return entry.bucket.burst() < cost.*entry.cost; });
        return found != entries().end() ? &*found : nullptr;
    }

    constexpr bool empty() const noexcept { return size_ == 0; }
    constexpr std::span<const Entry> entries() const noexcept { return {entries_.data(), size_}; }
    constexpr std::span<const Entry> of(Rate::Dimension dimension) const noexcept {
        const auto [first, last] = std::ranges::equal_range(entries(), dimension, {}, &Entry::dimension);
        return {first, last};
    }

private:
    constexpr std::span<Entry> mutable_entries() noexcept { return {entries_.data(), size_}; }

    template <class Predicate>
    constexpr void append_others(const RateBuckets& others, Predicate predicate) noexcept {
        for (const Entry& entry : others.entries()) {
            if (predicate(entry)) {
                entries_[size_++] = entry;
            }
        }
    }

    // The bucket that one with this period continues.
    static constexpr const TokenBucket& predecessor(std::span<const Entry> replaced, Time per) noexcept {
        const auto same = std::ranges::find(replaced, per, [](const Entry& entry) { return entry.bucket.per(); });
        if (same != replaced.end()) {
            return same->bucket;
        }
        return std::ranges::min_element(replaced, {}, [](const Entry& entry) { return entry.bucket.level(); })->bucket;
    }

    std::array<Entry, rate_dimensions.size() * Rate::max_periods> entries_ = {};
    std::size_t size_ = 0;
};

}  // namespace sluice::detail
