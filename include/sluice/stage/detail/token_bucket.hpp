// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/multiply_divide.hpp>
#include <sluice/sync/detail/requirements.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <numeric>

namespace sluice::detail {

// By value, unlike std::max(), so that the times stay in registers.
constexpr std::chrono::nanoseconds later(std::chrono::nanoseconds a, std::chrono::nanoseconds b) noexcept {
    return a < b ? b : a;
}

// A token bucket: J. Turner, "New directions in communications (or which way to the information age?)", IEEE
// Communications Magazine, 1986. It holds up to `burst` tokens and is refilled continuously, with `amount` tokens in
// each `per`. (The generic cell rate algorithm of ITU-T I.371 is the same in terms of times instead of tokens.) While
// it has a debt, the level is below zero.
//
// The level is exact: whole tokens, and a rest in units of 1 / divisor of a token, `gain` of which come each
// nanosecond; gain / divisor is amount / per in lowest terms.
//
// A token that is due between two nanoseconds is there at the later one. If that fills the bucket, it keeps what came
// since (less than a nanosecond's worth, and less than a token) until the next nanosecond. Otherwise a line that always
// waits for a full bucket, as with a burst of 1, would be too slow by the rounding of each wait: three a second would
// begin at 0, 333'333'334 and 666'666'668 ns.
//
// Every operation takes constant time. `amount` and `burst` are from 1 to 10^15, `per` is positive.
class TokenBucket {
public:
    using Time = std::chrono::nanoseconds;

    constexpr TokenBucket() noexcept = default;

    // Full.
    constexpr TokenBucket(std::int64_t amount, Time per, std::int64_t burst, Time now) noexcept
        : level_(burst), since_(now), burst_(burst), per_(per) {
        const std::uint64_t common = std::gcd(static_cast<std::uint64_t>(amount), to_unsigned(per));
        gain_ = static_cast<std::uint64_t>(amount) / common;
        divisor_ = to_unsigned(per) / common;
    }

    // Takes the level of another bucket as it was after its last refill, but no more than fits. The fraction of a token
    // is rounded down to units of this bucket, which are at most what comes in a nanosecond.
    constexpr void continue_from(const TokenBucket& other) noexcept {
        since_ = other.since_;
        rest_ = multiply_divide(other.rest_, divisor_, 0, other.divisor_).quotient;
        level_ = other.level_;
        if (level_ > burst_ || (level_ == burst_ && rest_ >= gain_)) {
            cut_to(burst_);
        }
    }

    // The earliest time at which the level is at least `cost` if nothing else happens: `Time::min()` if it is already,
    // `Time::max()` if it never will be, or not before that time.
    constexpr Time due(std::int64_t cost) const noexcept {
        if (level_ >= cost) {
            return Time::min();
        }
        if (cost > burst_) {
            return Time::max();
        }
        // The wait is what is missing, `(cost - level_) * divisor_ - rest_` units, divided by `gain_` and rounded up.
        const auto missing = static_cast<std::uint64_t>(cost - level_);
        const std::uint64_t wait = multiply_divide(missing - 1, divisor_, divisor_ - rest_ + gain_ - 1, gain_).quotient;
        return wait < difference(Time::max(), since_) ? since_ + Time(static_cast<std::int64_t>(wait)) : Time::max();
    }

    // Adds the tokens that have come since the last refill.
    constexpr void refill(Time now) noexcept {
        if (now <= since_) {
            return;
        }
        const std::uint64_t elapsed = difference(now, since_);
        since_ = now;
        if (level_ == burst_) {
            rest_ = 0;
            return;
        }
        const auto [tokens, rest] = multiply_divide(elapsed, gain_, rest_, divisor_);
        const auto space = static_cast<std::uint64_t>(burst_ - level_);
        const bool fits = tokens < space || (tokens == space && rest < gain_);
        level_ = fits ? level_ + static_cast<std::int64_t>(tokens) : burst_;
        rest_ = fits ? rest : 0;
    }

    // Removes tokens that are there.
    constexpr void pay(std::int64_t tokens, Time now) noexcept {
        refill(now);
        level_ -= tokens;
    }

    // Removes tokens. Those that are missing are a debt, of up to 10^18.
    constexpr void take(std::int64_t tokens, Time now) noexcept {
        refill(now);
        level_ = std::max(level_ - tokens, -deepest_debt);
    }

    // Returns tokens, as many as fit. Before the first refill after empty_until(), none fit, but they reduce a debt.
    constexpr void give_back(std::int64_t tokens, Time now) noexcept {
        refill(now);
        level_ += tokens;
        cut_to(now < since_ ? 0 : burst_);
    }

    // Removes all tokens, and begins to refill at `until`, which is not before `now`. A debt stays.
    constexpr void empty_until(Time until, Time now) noexcept {
        refill(now);
        cut_to(0);
        since_ = until;
    }

    // The whole tokens at the last refill, rounded down.
    constexpr std::int64_t level() const noexcept { return level_; }
    constexpr std::int64_t burst() const noexcept { return burst_; }
    constexpr std::int64_t amount() const noexcept {
        return static_cast<std::int64_t>(gain_ * (to_unsigned(per_) / divisor_));
    }
    constexpr Time per() const noexcept { return per_; }

private:
    static constexpr std::int64_t deepest_debt = 1'000'000'000'000'000'000;

    static constexpr std::uint64_t to_unsigned(Time time) noexcept { return static_cast<std::uint64_t>(time.count()); }
    static constexpr std::uint64_t difference(Time to, Time from) noexcept {
        return to_unsigned(to) - to_unsigned(from);
    }

    constexpr void cut_to(std::int64_t most) noexcept {
        if (level_ >= most) {
            level_ = most;
            rest_ = 0;
        }
    }

    std::int64_t level_ = 0;  // at most burst_
    std::uint64_t rest_ = 0;  // less than divisor_, and than gain_ if the bucket is full
    Time since_ = {};         // the last refill, or the end of the pause in which it is empty
    std::int64_t burst_ = 1;
    std::uint64_t gain_ = 1;
    std::uint64_t divisor_ = 1;
    Time per_ = Time(1);
};

}  // namespace sluice::detail
