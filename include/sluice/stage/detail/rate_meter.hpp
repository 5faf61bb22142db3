// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/rate_buckets.hpp>
#include <sluice/stage/detail/rate_options.hpp>
#include <sluice/stage/detail/token_bucket.hpp>
#include <sluice/stage/detail/token_ledger.hpp>
#include <sluice/stage/rate.hpp>

#include <boost/assert.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// The part of a cost that RateMeter::debit() took. Each Charge is settled or refunded exactly once.
struct Charge {
    Cost granted = {.requests = 0};
    std::uint8_t metered = 0;  // bit i: dimension i had a rate, so it was debited and will be settled
};

// The rates of one endpoint, in three dimensions: requests, input tokens and output tokens. A call may begin when every
// bucket of every dimension can pay, and debits them all at once. When it ends, its usage replaces its estimated cost.
//
// Exact, in integers. With the rates unchanged, the debits less the refunds of any interval of length t are at most
// burst + amount * t / per; or less than a nanosecond's worth more, since waits are rounded up and the rate is kept.
// No call waits when every bucket can pay.
//
// A dimension without a rate is not metered: it pays anything, and keeps no accounts. Each operation takes time in
// proportion to the number of periods, at most 12, and allocates nothing, except for the text of too_costly(). Rates,
// costs and usages must have passed require_valid().
//
// Times are counted from an origin that the caller chooses, and do not decrease: a time before the latest one that was
// passed to an operation that changes the meter counts as that.
//
// Thread safety: unsafe.
class RateMeter {
public:
    using Time = std::chrono::nanoseconds;

    // The buckets are full.
    explicit RateMeter(const Rate& requests = Rate::unlimited, const Rate& input_tokens = Rate::unlimited,
                       const Rate& output_tokens = Rate::unlimited, Time now = Time(0)) noexcept
        : now_(now) {
        set_rate(Rate::requests, requests, now);
        set_rate(Rate::input_tokens, input_tokens, now);
        set_rate(Rate::output_tokens, output_tokens, now);
    }

    // Changes the rate of a dimension. A period as long as one before continues from its balance, any other from the
    // lowest balance before; either has at most the new burst, and keeps a debt. If the dimension had no rate, the
    // buckets are full. During a pause, that of the shortest period is empty in any case. An unlimited rate forgets
    // balance and debt. Afterwards, ask again for is_affordable() and due() on behalf of the calls that wait.
    void set_rate(Rate::Dimension dimension, const Rate& rate, Time now) noexcept {
        advance(now);
        const unsigned bit = 1U << static_cast<unsigned>(dimension);
        buckets_.set_rate(dimension, rate, now_);
        if (now_ < paused_until_) {
            buckets_.empty_until(paused_until_, now_);
        }
        metered_ = static_cast<std::uint8_t>(rate.periods().empty() ? metered_ & ~bit : metered_ | bit);
    }

    // Takes the cost from every bucket. Requires `due(cost, now)` to be `now` or before.
    Charge debit(const Cost& cost, Time now) noexcept {
        BOOST_ASSERT_MSG(due(cost, now) <= std::max(now, now_), "a call must not begin before it is due");
        BOOST_ASSERT_MSG(is_valid(cost), "a cost must be valid");
        if (buckets_.empty()) {
            return {};
        }
        advance(now);
        buckets_.debit(cost, now_);
        for_each(metered_, [&](auto i) { ledgers_[i].grant(amount_of(cost, i)); });
        return {cost, metered_};
    }

    // The call ended, and used this much. Tokens that it did not use are given back, as many as fit into the burst.
    // Tokens that it used beyond its charge are a debt: the balance may become negative, and every later call, even one
    // that costs nothing, waits until it is not. If the provider reports only a part, take the rest of `usage` from
    // `charge.granted`. A throttled call is settled too, with its request and no tokens.
    void settle(const Charge& charge, const Cost& usage, Time now) noexcept {
        BOOST_ASSERT_MSG(is_valid(usage), "a usage must be valid");
        if (charge.metered == 0) {
            return;
        }
        advance(now);
        for_each(charge.metered, [&](auto i) {
            const std::int64_t granted = amount_of(charge.granted, i);
            const std::int64_t used = amount_of(usage, i);
            ledgers_[i].settle(granted, used);
            if (used != granted) {
                buckets_.settle(static_cast<Rate::Dimension>(i()), granted, used, now_);
            }
        });
    }

    // The call ended without a report: the estimate stands.
    void settle(const Charge& charge) noexcept { settle(charge, charge.granted, now_); }

    // Gives back the whole charge. For the line, if a call was cancelled after its grant and before its model function
    // was called: the provider knows nothing of it.
    void refund(const Charge& charge, Time now) noexcept { settle(charge, {.requests = 0}, now); }

    // Lets no call begin before `until`. A pause that ends no later than one before has no effect: the latest end wins.
    //
    // Empties the bucket of each dimension's shortest period, which begins to refill at the end of the pause. So the
    // calls that wait begin at the configured rate, not all at once: the first request one interval, per / amount,
    // after the end, even with a burst of 1. (If the bucket kept one token, k processes that share an account and were
    // told the same end would send k at once.) Tokens given back to it during a pause reduce debts, and are lost
    // otherwise. The buckets of longer periods go on as without a pause.
    void pause(Time until, Time now) noexcept {
        advance(now);
        if (until <= now_ || until <= paused_until_) {
            return;
        }
        paused_until_ = until;
        buckets_.empty_until(until, now_);
    }

    // Whether the call can begin at some time: no burst is below its cost.
    bool is_affordable(const Cost& cost) const noexcept { return !buckets_.too_small_for(cost); }

    // Says why a call is not affordable; empty if it is.
    std::string too_costly(const Cost& cost) const {
        const RateBuckets::Entry* entry = buckets_.too_small_for(cost);
        if (!entry) {
            return {};
        }
        const TokenBucket& bucket = entry->bucket;
        return "a call of " + std::to_string(cost.*entry->cost) + " " + describe(entry->dimension).unit +
               " can never begin: the burst of " + std::to_string(bucket.amount()) + " per " +
               std::to_string(bucket.per().count()) + " ns is " + std::to_string(bucket.burst());
    }

    // The earliest time, not before `now`, at which a call of this cost may begin if nothing else happens;
    // `Time::max()` if that is never. Exact: debit() is allowed then, and not a nanosecond before.
    Time due(const Cost& cost, Time now) const noexcept {
        const Time earliest = later(later(now, now_), paused_until_);
        return buckets_.empty() ? earliest : buckets_.due(cost, earliest);
    }

    // The end of the latest pause, which may be over; `Time::min()` if there was none.
    Time paused_until() const noexcept { return paused_until_; }

    // The number of periods that limit a dimension; 0 if it is unlimited.
    std::size_t periods(Rate::Dimension dimension) const noexcept { return buckets_.of(dimension).size(); }

    // The bucket of a period as it is at `now`. `period` is less than periods().
    TokenBucket bucket(Rate::Dimension dimension, std::size_t period, Time now) const noexcept {
        BOOST_ASSERT(period < periods(dimension));
        TokenBucket bucket = buckets_.of(dimension)[period].bucket;
        bucket.refill(std::max(now, now_));
        return bucket;
    }

    // What may begin at `now` in a period, in whole tokens, rounded down; negative for a debt. `period` is less than
    // periods().
    std::int64_t balance(Rate::Dimension dimension, std::size_t period, Time now) const noexcept {
        return bucket(dimension, period, now).level();
    }

    const TokenLedger& ledger(Rate::Dimension dimension) const noexcept {
        return ledgers_[static_cast<std::size_t>(dimension)];
    }

    // Whether in each dimension granted + debt = settled + refunded + outstanding.
    bool is_balanced() const noexcept { return std::ranges::all_of(ledgers_, &TokenLedger::is_balanced); }

private:
    static constexpr std::int64_t amount_of(const Cost& cost, std::size_t dimension) noexcept {
        return cost.*rate_dimensions[dimension].cost;
    }

    // Calls the function with the index of each dimension in the set. A constant, since that takes fewer instructions.
    template <class Function>
    static constexpr void for_each(unsigned dimensions, Function function) {
        const auto call_if = [&](auto index) {
            if ((dimensions >> index & 1U) != 0) {
                function(index);
            }
        };
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (call_if(std::integral_constant<std::size_t, I>()), ...);
        }(std::make_index_sequence<rate_dimensions.size()>());
    }

    void advance(Time now) noexcept { now_ = later(now_, now); }

    RateBuckets buckets_;
    std::array<TokenLedger, rate_dimensions.size()> ledgers_;
    Time now_;
    Time paused_until_ = Time::min();
    std::uint8_t metered_ = 0;  // bit i: dimension i has a rate
};

}  // namespace sluice::detail
