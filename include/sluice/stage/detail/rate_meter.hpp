// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/rate_options.hpp>
#include <sluice/stage/detail/token_ledger.hpp>
#include <sluice/stage/detail/token_meter.hpp>
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

// What RateMeter::debit() took. Each Charge is settled or refunded exactly once.
struct Charge {
    Cost granted = {.requests = 0};
    std::uint8_t metered = 0;  // bit i: dimension i had a rate, so it was debited and will be settled
};

// The rates of one endpoint, in three dimensions: requests, input tokens and output tokens. A call may begin when every
// bucket of every dimension can pay, and all are debited at once; what it cost is corrected when it ends.
//
// Exact, in integers: with the rates unchanged, in any interval of length t at most burst + amount * t / per is debited
// (and less than a nanosecond's worth more, since waits are rounded up and the rate is kept; and what is given back).
// Nobody waits when all can pay.
//
// A dimension without a rate is not metered: it pays anything, and keeps no accounts. Each operation takes time in
// proportion to the number of periods, at most 12, and allocates nothing. Costs and usages pass require_valid().
//
// Times are counted from an origin that the caller chooses, and do not decrease: a time before the latest one that was
// passed to an operation that changes the meter counts as that.
//
// Thread safety: unsafe.
class RateMeter {
public:
    using Time = std::chrono::nanoseconds;

    // The buckets are full. The rates pass require_valid().
    explicit RateMeter(const Rate& requests = Rate::unlimited, const Rate& input_tokens = Rate::unlimited,
                       const Rate& output_tokens = Rate::unlimited, Time now = Time(0)) noexcept
        : now_(now) {
        set_rate(Rate::requests, requests, now);
        set_rate(Rate::input_tokens, input_tokens, now);
        set_rate(Rate::output_tokens, output_tokens, now);
    }

    // Changes the rate of a dimension, which passes require_valid(). What has been debited stays debited: a period as
    // long as one before continues from its balance, any other from the lowest balance before, at most the new burst,
    // and a debt is kept. If the dimension had no rate, the buckets are full, or empty during a pause. An unlimited
    // rate forgets balance and debt. Calls that wait must ask again for is_affordable() and due().
    void set_rate(Rate::Dimension dimension, const Rate& rate, Time now) noexcept {
        advance(now);
        const auto index = static_cast<std::size_t>(dimension);
        const unsigned bit = bit_of(index);
        meters_[index].set_rate(dimension, rate, now_);
        if ((metered_ & bit) == 0 && is_paused()) {
            meters_[index].empty_until(paused_until_, now_);
        }
        metered_ = static_cast<std::uint8_t>(rate.periods().empty() ? metered_ & ~bit : metered_ | bit);
    }

    // Takes the cost from every bucket. Requires `due(cost, now)` to be `now` or before.
    Charge debit(const Cost& cost, Time now) noexcept {
        BOOST_ASSERT_MSG(due(cost, now) <= std::max(now, now_), "a call must not begin before it is due");
        if (metered_ == 0) {
            return {};
        }
        advance(now);
        for_each(metered_, [&](auto i) { meters_[i].debit(amount_of(cost, i), now_); });
        return {cost, metered_};
    }

    // The call ended, and used this much. What it did not use is given back, as much as fits into the burst; what it
    // used beyond its charge is a debt: the balance may become negative, and every later call waits until it is not.
    // Where the provider reports only a part, the rest of `usage` is that of `charge.granted`. A throttled call, too,
    // is settled: it used its request, but no tokens.
    void settle(const Charge& charge, const Cost& usage, Time now) noexcept {
        if (charge.metered == 0) {
            return;
        }
        advance(now);
        for_each(charge.metered,
                 [&](auto i) { meters_[i].settle(amount_of(charge.granted, i), amount_of(usage, i), now_); });
    }

    // The call ended without a report: the estimate stands.
    void settle(const Charge& charge) noexcept { settle(charge, charge.granted, now_); }

    // Undoes a debit. For a call that was granted and did not begin, because it was cancelled before the model function
    // was called: the provider knows nothing of it.
    void refund(const Charge& charge, Time now) noexcept { settle(charge, {.requests = 0}, now); }

    // Lets no call begin before `until`. A pause that ends no later than one before has no effect: the latest end wins.
    //
    // All tokens are removed, and come again from the end of the pause on, so that the calls that wait begin at the
    // configured rate, not all at once: the first request after one interval, per / amount, whatever the burst. (A
    // bucket that keeps one token would grant the first at the end itself, and k endpoints of one account that pause
    // together would send k at once.) What is given back during a pause reduces debts, and is lost otherwise.
    void pause(Time until, Time now) noexcept {
        advance(now);
        if (until <= now_ || until <= paused_until_) {
            return;
        }
        paused_until_ = until;
        for_each(metered_, [&](auto i) { meters_[i].empty_until(until, now_); });
    }

    // Whether the call can begin at some time: no burst is below its cost.
    bool is_affordable(const Cost& cost) const noexcept {
        bool affordable = true;
        for_each(metered_, [&](auto i) { affordable &= !meters_[i].too_small_for(amount_of(cost, i)); });
        return affordable;
    }

    // Says why a call is not affordable; empty if it is.
    std::string too_costly(const Cost& cost) const {
        std::string text;
        for_each(metered_, [&](auto i) {
            const TokenBucket* bucket = meters_[i].too_small_for(amount_of(cost, i));
            if (bucket && text.empty()) {
                text = "a call of " + std::to_string(amount_of(cost, i)) + " " + rate_dimensions[i].unit +
                       " can never begin: the burst of " + std::to_string(bucket->amount()) + " per " +
                       std::to_string(bucket->per().count()) + " ns is " + std::to_string(bucket->burst());
            }
        });
        return text;
    }

    // The earliest time, not before `now`, at which a call of this cost may begin if nothing else happens;
    // `Time::max()` if that is never. Exact: debit() is allowed then, and not a nanosecond before.
    Time due(const Cost& cost, Time now) const noexcept {
        const Time earliest = later(later(now, now_), paused_until_);
        return metered_ == 0 ? earliest : later(earliest, paid_at(cost));
    }

    // The end of the latest pause, which may be over; `Time::min()` if there was none.
    Time paused_until() const noexcept { return paused_until_; }

    // The number of periods that limit a dimension; 0 if it is unlimited.
    std::size_t periods(Rate::Dimension dimension) const noexcept { return meter(dimension).buckets().size(); }

    // What may begin at `now` in a period, in whole tokens, rounded down; negative for a debt. `period` is less than
    // periods().
    std::int64_t balance(Rate::Dimension dimension, std::size_t period, Time now) const noexcept {
        BOOST_ASSERT(period < periods(dimension));
        TokenBucket bucket = meter(dimension).buckets()[period];
        bucket.refill(std::max(now, now_));
        return bucket.level();
    }

    const TokenLedger& ledger(Rate::Dimension dimension) const noexcept { return meter(dimension).ledger(); }

    // Whether in each dimension granted + debt = settled + refunded + outstanding.
    bool is_balanced() const noexcept {
        return std::ranges::all_of(meters_, [](const TokenMeter& meter) { return meter.ledger().is_balanced(); });
    }

private:
    static constexpr unsigned bit_of(std::size_t dimension) noexcept { return 1U << dimension; }
    static constexpr std::int64_t amount_of(const Cost& cost, std::size_t dimension) noexcept {
        return cost.*rate_dimensions[dimension].cost;
    }

    // Calls the function with the index of each dimension in the set. Unrolled: a loop takes a third more instructions.
    template <class Function>
    static constexpr void for_each(std::uint8_t dimensions, Function function) {
        const auto call_if = [&](auto index) {
            if ((dimensions & bit_of(index)) != 0) {
                function(index);
            }
        };
        [&]<std::size_t... I>(std::index_sequence<I...>) {
            (call_if(std::integral_constant<std::size_t, I>()), ...);
        }(std::make_index_sequence<rate_dimensions.size()>());
    }

    // The earliest time at which every bucket can pay.
    Time paid_at(const Cost& cost) const noexcept {
        Time latest = Time::min();
        for_each(metered_, [&](auto i) { latest = later(latest, meters_[i].due(amount_of(cost, i))); });
        return latest;
    }

    void advance(Time now) noexcept { now_ = later(now_, now); }
    bool is_paused() const noexcept { return now_ < paused_until_; }
    const TokenMeter& meter(Rate::Dimension dimension) const noexcept {
        return meters_[static_cast<std::size_t>(dimension)];
    }

    std::array<TokenMeter, rate_dimensions.size()> meters_;
    Time now_;
    Time paused_until_ = Time::min();
    std::uint8_t metered_ = 0;
};

}  // namespace sluice::detail
