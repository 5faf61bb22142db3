// SPDX-License-Identifier: BSL-1.0
// The rate meter against exact fractions, on random patterns of rates, costs, settlements, pauses and changes.
#include <sluice/stage/detail/rate_meter.hpp>

#include "support/rate_reference.hpp"

#include <sluice/stage/rate.hpp>

#include <boost/multiprecision/cpp_int.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <random>
#include <string>
#include <vector>

namespace {

using sluice::Cost;
using sluice::Rate;
using sluice::detail::Charge;
using sluice::detail::RateMeter;
using std::chrono::nanoseconds;
using WideInt = boost::multiprecision::int256_t;
using RateCosts = std::array<std::int64_t, 3>;

constexpr std::array dimensions_in_order{Rate::requests, Rate::input_tokens, Rate::output_tokens};
constexpr std::int64_t end_of_time = std::numeric_limits<std::int64_t>::max();

Cost to_cost(const RateCosts& costs) { return {costs[0], costs[1], costs[2]}; }

// The largest numbers of a pattern.
struct RateScale {
    std::int64_t amount;
    std::int64_t per;
    std::int64_t burst;
    std::int64_t step;   // of time
    std::int64_t begin;  // the latest time at which a pattern begins
    bool any_magnitude;  // otherwise most numbers are as long as the largest
};

constexpr RateScale small_numbers{20, 200, 12, 60, 100, false};
constexpr RateScale huge_numbers{1'000'000'000'000,   86'400'000'000'000,        1'000'000'000'000,
                                 100'000'000'000'000, 3'155'760'000'000'000'000, true};

struct RateCoverage {
    int granted = 0;
    int waited = 0;
    int too_costly = 0;
    int never = 0;
};

// One random pattern, which a meter and the reference follow.
template <class Int>
class RatePattern {
public:
    RatePattern(std::uint64_t seed, const RateScale& scale, RateCoverage& coverage)
        : random_(seed), scale_(scale), coverage_(coverage), now_(up_to(scale.begin)) {
        for (std::size_t i = 0; i < 3; ++i) {
            set_rate(i);
        }
    }

    // Returns what differs first; empty if nothing does.
    std::string run(int steps) {
        for (int step = 0; step < steps && error_.empty(); ++step) {
            switch (random_() % 10) {
                case 0:
                    now_ += up_to(scale_.step);
                    break;
                case 1:
                    pause();
                    break;
                case 2:
                    set_rate(random_() % 3);
                    break;
                case 3:
                case 4:
                case 5:
                    settle();
                    break;
                default:
                    call();
                    break;
            }
            compare();
        }
        return error_;
    }

private:
    struct OpenCharge {
        Charge charge;
        RateCosts costs;
        std::array<bool, 3> metered;
    };

    struct Sums {
        std::uint64_t granted = 0;
        std::uint64_t debt = 0;
        std::uint64_t settled = 0;
        std::uint64_t refunded = 0;
    };

    std::int64_t up_to(std::int64_t most) {
        most = scale_.any_magnitude ? most >> (random_() % 40) : most;
        return std::uniform_int_distribution<std::int64_t>(0, most)(random_);
    }
    std::int64_t positive(std::int64_t most) { return std::max<std::int64_t>(1, up_to(most)); }
    RateCosts any_costs(std::int64_t most) { return {up_to(most), up_to(most), up_to(most)}; }

    // A time to tell the meter: sometimes one before the latest.
    nanoseconds any_time() {
        return nanoseconds(random_() % 8 == 0 ? std::max<std::int64_t>(0, now_ - up_to(scale_.step)) : now_);
    }

    // The same for an operation that changes the meter, which remembers it.
    nanoseconds tell() {
        const nanoseconds time = any_time();
        latest_ = std::max<std::int64_t>(latest_, time.count());
        return time;
    }

    void expect(bool holds, const char* what) {
        if (!holds && error_.empty()) {
            error_ = what;
        }
    }

    void set_rate(std::size_t dimension) {
        Rate rate = Rate::unlimited;
        std::vector<test::ReferenceLimit> limits;
        const std::uint64_t periods = random_() % 4 == 0 ? 0 : 1 + random_() % (1 + random_() % 4);
        while (limits.size() != periods) {
            auto& per = pers_[random_() % pers_.size()];  // often as long as one before
            per = per == 0 || random_() % 4 == 0 ? positive(scale_.per) : per;
            limits.push_back({positive(scale_.amount), per, positive(scale_.burst)});
            rate = rate.also(limits.back().amount, nanoseconds(per), limits.back().burst);
        }
        meter_.set_rate(dimensions_in_order[dimension], rate, tell());
        reference_.set(dimension, limits, latest_);
    }

    void pause() {
        const std::int64_t until = std::max<std::int64_t>(0, now_ + up_to(scale_.step) - up_to(scale_.step / 4));
        meter_.pause(nanoseconds(until), tell());
        reference_.pause(until, latest_);
        expect(meter_.paused_until().count() == reference_.paused_until || reference_.paused_until == 0, "pause");
    }

    void call() {
        const RateCosts costs = any_costs(scale_.burst / 2);
        const Cost cost = to_cost(costs);
        const bool affordable = reference_.can_ever_pay(costs);
        expect(meter_.is_affordable(cost) == affordable, "is_affordable");
        expect(meter_.too_costly(cost).empty() == affordable, "too_costly");
        const nanoseconds asked = any_time();
        const std::int64_t earliest = std::max<std::int64_t>(asked.count(), latest_);
        const std::int64_t due = meter_.due(cost, asked).count();
        if (!affordable) {
            ++coverage_.too_costly;
            expect(due == end_of_time, "due, of a call that is too costly");
            return;
        }
        expect(due >= earliest, "due in the past");
        expect(due == earliest || !reference_.can_pay(costs, due - 1), "due too late");
        if (due > end_of_time / 2) {
            ++coverage_.never;
            return;
        }
        expect(reference_.can_pay(costs, due), "due too early");
        if (due > now_) {
            if (random_() % 2 == 0) {
                return;
            }
            ++coverage_.waited;
        }
        ++coverage_.granted;
        now_ = std::max(now_, due);
        OpenCharge open{meter_.debit(cost, nanoseconds(due)), costs, {}};
        for (std::size_t i = 0; i < 3; ++i) {
            open.metered[i] = !reference_.dimensions[i].empty();
            if (open.metered[i]) {
                latest_ = std::max(latest_, due);
                reference_.add(i, -costs[i], due);
                sums_[i].granted += static_cast<std::uint64_t>(costs[i]);
            }
        }
        open_.push_back(open);
    }

    void settle() {
        if (open_.empty()) {
            return;
        }
        std::swap(open_[random_() % open_.size()], open_.back());
        const OpenCharge open = open_.back();
        open_.pop_back();
        RateCosts used = any_costs(scale_.burst);
        switch (random_() % 4) {
            case 0:
                used = open.costs;
                meter_.settle(open.charge);
                break;
            case 1:
                used = {};
                meter_.refund(open.charge, tell_if_metered(open));
                break;
            default:
                meter_.settle(open.charge, to_cost(used), tell_if_metered(open));
                break;
        }
        for (std::size_t i = 0; i < 3; ++i) {
            if (open.metered[i]) {
                reference_.add(i, open.costs[i] - used[i], latest_);
                sums_[i].settled += static_cast<std::uint64_t>(used[i]);
                sums_[i].debt += static_cast<std::uint64_t>(std::max<std::int64_t>(0, used[i] - open.costs[i]));
                sums_[i].refunded += static_cast<std::uint64_t>(std::max<std::int64_t>(0, open.costs[i] - used[i]));
            }
        }
    }

    // A charge of no dimension changes nothing.
    nanoseconds tell_if_metered(const OpenCharge& open) {
        return std::ranges::find(open.metered, true) != open.metered.end() ? tell() : any_time();
    }

    void compare() {
        expect(meter_.is_balanced(), "is_balanced");
        for (std::size_t i = 0; i < 3; ++i) {
            const auto& buckets = reference_.dimensions[i];
            expect(meter_.periods(dimensions_in_order[i]) == buckets.size(), "periods");
            for (std::size_t period = 0; period < buckets.size(); ++period) {
                const std::int64_t asked = now_ + (random_() % 2 == 0 ? 0 : up_to(scale_.step));
                expect(meter_.balance(dimensions_in_order[i], period, nanoseconds(asked)) ==
                           buckets[period].tokens_at(std::max(asked, latest_)),
                       "balance");
            }
            std::uint64_t outstanding = 0;
            for (const OpenCharge& open : open_) {
                outstanding += open.metered[i] ? static_cast<std::uint64_t>(open.costs[i]) : 0;
            }
            const auto& ledger = meter_.ledger(dimensions_in_order[i]);
            expect(ledger.granted == sums_[i].granted && ledger.debt == sums_[i].debt &&
                       ledger.settled == sums_[i].settled && ledger.refunded == sums_[i].refunded &&
                       ledger.outstanding == outstanding,
                   "ledger");
        }
    }

    std::mt19937_64 random_;
    const RateScale& scale_;
    RateCoverage& coverage_;
    std::int64_t now_;
    std::int64_t latest_ = 0;  // that the meter was told by an operation that changes it
    std::array<std::int64_t, 3> pers_ = {};
    RateMeter meter_;
    test::ReferenceMeter<Int> reference_;
    std::vector<OpenCharge> open_;
    std::array<Sums, 3> sums_;
    std::string error_;
};

template <class Int>
RateCoverage compare_patterns(std::uint64_t patterns, int steps, const RateScale& scale) {
    RateCoverage coverage;
    for (std::uint64_t seed = 1; seed <= patterns; ++seed) {
        const std::string difference = RatePattern<Int>(seed, scale, coverage).run(steps);
        if (!difference.empty()) {
            CAPTURE(seed, difference);
            REQUIRE(difference.empty());
        }
    }
    return coverage;
}

// A call that began, or what a call gave back.
struct Debit {
    std::int64_t time;
    std::int64_t tokens;  // negative: given back
};

// The numbers of tokens in all windows that begin and end with a call, against burst + amount * t / per, and less than
// one nanosecond's worth more.
int windows_above(const test::ReferenceLimit& limit, const std::vector<Debit>& debits) {
    int above = 0;
    for (std::size_t from = 0; from < debits.size(); ++from) {
        std::int64_t tokens = 0;
        for (std::size_t to = from; to < debits.size(); ++to) {
            tokens += debits[to].tokens;
            const std::int64_t time = debits[to].time - debits[from].time;
            above += (tokens - limit.burst) * limit.per < limit.amount * (time + 1) ? 0 : 1;
        }
    }
    return above;
}

}  // namespace

TEST_CASE("rate meter: 18,000 random patterns of small numbers have the due times and balances of exact fractions",
          "[rate]") {
    const RateCoverage coverage = compare_patterns<std::int64_t>(18'000, 25, small_numbers);
    CHECK(coverage.granted > 30'000);
    CHECK(coverage.waited > 10'000);
    CHECK(coverage.too_costly > 5'000);
}

TEST_CASE("rate meter: 2,000 random patterns of huge numbers have the due times and balances of exact fractions",
          "[rate]") {
    const RateCoverage coverage = compare_patterns<WideInt>(2'000, 40, huge_numbers);
    CHECK(coverage.granted > 3'000);
    CHECK(coverage.waited > 1'000);
    CHECK(coverage.never > 100);
}

TEST_CASE("rate meter: in no window does more begin than the burst and the rate allow", "[rate]") {
    std::mt19937_64 random(1);
    const auto up_to = [&](std::int64_t most) { return std::uniform_int_distribution<std::int64_t>(0, most)(random); };
    int above = 0;
    int tight = 0;  // patterns that reach the bound: with a nanosecond less they would be above it
    for (int pattern = 0; pattern < 500; ++pattern) {
        std::vector<test::ReferenceLimit> limits;
        Rate rate = Rate::unlimited;
        const auto periods = static_cast<std::size_t>(1 + up_to(3));
        while (limits.size() != periods) {
            limits.push_back({1 + up_to(20), 1 + up_to(1'000), 1 + up_to(10)});
            rate = rate.also(limits.back().amount, nanoseconds(limits.back().per), limits.back().burst);
        }
        const std::int64_t dearest = std::ranges::min(limits, {}, &test::ReferenceLimit::burst).burst;
        RateMeter meter(rate);
        std::vector<Debit> debits;
        nanoseconds now(0);
        while (debits.size() < 60) {
            const Cost cost{.requests = 1 + up_to(dearest - 1)};
            now = meter.due(cost, now + nanoseconds(up_to(3) == 0 ? up_to(2'000) : 0));
            const Charge charge = meter.debit(cost, now);
            debits.push_back({now.count(), cost.requests});
            if (up_to(9) == 0) {
                meter.pause(now + nanoseconds(up_to(500)), now);
            }
            if (up_to(9) == 0) {
                const std::int64_t used = up_to(cost.requests);
                meter.settle(charge, {.requests = used}, now);
                debits.push_back({now.count(), used - cost.requests});
            }
        }
        for (const test::ReferenceLimit& limit : limits) {
            above += windows_above(limit, debits);
            tight += windows_above({limit.amount, limit.per, limit.burst - 1}, debits) != 0 ? 1 : 0;
        }
    }
    CHECK(above == 0);
    CHECK(tight > 500);
}
