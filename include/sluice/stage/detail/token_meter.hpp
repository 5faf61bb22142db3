// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/rate_options.hpp>
#include <sluice/stage/detail/token_bucket.hpp>
#include <sluice/stage/detail/token_ledger.hpp>
#include <sluice/stage/rate.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <span>

namespace sluice::detail {

// One dimension of a rate: a bucket for each period, all of which pay for each call, and the accounts. Times never
// decrease. Every operation takes time in proportion to the number of periods.
class TokenMeter {
public:
    using Time = std::chrono::nanoseconds;

    // Replaces the buckets; `rate` is valid. A period that is as long as one before continues from its level, any other
    // from the lowest of the levels before (counted in whole tokens; the first of equals), at most the new burst. A
    // debt so stays. Without a rate before, the buckets are full.
    constexpr void set_rate(Rate::Dimension dimension, const Rate& rate, Time now) noexcept {
        for (TokenBucket& bucket : mutable_buckets()) {
            bucket.refill(now);
        }
        const TokenMeter before = *this;
        size_ = 0;
        for (const Rate::Period& period : rate.periods()) {
            TokenBucket& bucket = buckets_[size_++];
            bucket = TokenBucket(period.amount, period.per, burst_of(dimension, period), now);
            if (const TokenBucket* predecessor = before.predecessor_of(period.per)) {
                bucket.continue_from(*predecessor);
            }
        }
    }

    // The earliest time at which every bucket can pay; see TokenBucket::due().
    constexpr Time due(std::int64_t cost) const noexcept {
        Time latest = Time::min();
        for (const TokenBucket& bucket : buckets()) {
            latest = later(latest, bucket.due(cost));
        }
        return latest;
    }

    constexpr void debit(std::int64_t cost, Time now) noexcept {
        for (TokenBucket& bucket : mutable_buckets()) {
            bucket.take(cost, now);
        }
        ledger_.grant(cost);
    }

    // Exchanges what was granted for what was used.
    constexpr void settle(std::int64_t granted, std::int64_t used, Time now) noexcept {
        ledger_.settle(granted, used);
        for (TokenBucket& bucket : mutable_buckets()) {
            if (used > granted) {
                bucket.take(used - granted, now);
            } else if (used < granted) {
                bucket.give_back(granted - used, now);
            }
        }
    }

    constexpr void empty_until(Time until, Time now) noexcept {
        for (TokenBucket& bucket : mutable_buckets()) {
            bucket.empty_until(until, now);
        }
    }

    // The first bucket whose burst is below `cost`; null if there is none.
    constexpr const TokenBucket* too_small_for(std::int64_t cost) const noexcept {
        const auto found = std::ranges::find_if(buckets(), [&](const auto& bucket) { return bucket.burst() < cost; });
        return found != buckets().end() ? &*found : nullptr;
    }

    constexpr std::span<const TokenBucket> buckets() const noexcept { return {buckets_.data(), size_}; }
    constexpr const TokenLedger& ledger() const noexcept { return ledger_; }

private:
    constexpr std::span<TokenBucket> mutable_buckets() noexcept { return {buckets_.data(), size_}; }

    // The bucket that one with this period continues; null if there is none.
    constexpr const TokenBucket* predecessor_of(Time per) const noexcept {
        const auto same = std::ranges::find(buckets(), per, &TokenBucket::per);
        if (same != buckets().end()) {
            return &*same;
        }
        const auto lowest = std::ranges::min_element(buckets(), {}, &TokenBucket::level);
        return lowest != buckets().end() ? &*lowest : nullptr;
    }

    std::array<TokenBucket, Rate::max_periods> buckets_ = {};
    std::size_t size_ = 0;
    TokenLedger ledger_;
};

}  // namespace sluice::detail
