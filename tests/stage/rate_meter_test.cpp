// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage/detail/rate_meter.hpp>

#include <sluice/stage/rate.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace std::chrono_literals;
using sluice::Cost;
using sluice::Rate;
using sluice::detail::Charge;
using sluice::detail::RateMeter;
using std::chrono::nanoseconds;

constexpr nanoseconds century = 876'600h;

Cost input_cost(std::int64_t tokens) { return {.requests = 0, .input_tokens = tokens}; }
RateMeter input_meter(const Rate& rate) { return RateMeter(Rate::unlimited, rate); }

// The times at which this many calls begin that come at `now` and begin as soon as they may.
std::vector<nanoseconds> begin_calls(RateMeter& meter, std::size_t calls, nanoseconds now, const Cost& cost = {}) {
    std::vector<nanoseconds> times;
    while (times.size() != calls) {
        now = meter.due(cost, now);
        meter.debit(cost, now);
        times.push_back(now);
    }
    return times;
}

// Whether a call is due at `time`, asked at `now`, and not a nanosecond before.
bool is_due_exactly(const RateMeter& meter, const Cost& cost, nanoseconds now, nanoseconds time) {
    return meter.due(cost, now) == time && meter.due(cost, time) == time && meter.due(cost, time - 1ns) == time;
}

}  // namespace

TEST_CASE("rate meter: the burst begins at once, and the rest at the rate", "[rate]") {
    RateMeter meter(Rate(10, 1s, 3));
    CHECK(begin_calls(meter, 6, 0s) == std::vector<nanoseconds>{0s, 0s, 0s, 100ms, 200ms, 300ms});
    CHECK(is_due_exactly(meter, {}, 300ms, 400ms));
}

TEST_CASE("rate meter: without a burst the default of the dimension holds", "[rate]") {
    const RateMeter meter(Rate(500, 1min), Rate(200'000, 1min), Rate(1'440'000, 24h));
    CHECK(meter.balance(Rate::requests, 0, 0s) == 8);
    CHECK(meter.balance(Rate::input_tokens, 0, 0s) == 200'000);
    CHECK(meter.balance(Rate::output_tokens, 0, 0s) == 1'000);
}

TEST_CASE("rate meter: a rate that is no whole number of nanoseconds does not drift", "[rate]") {
    for (const std::int64_t amount : {3, 7, 11, 999'999'937}) {
        RateMeter meter(Rate(amount, 1s, 1));
        std::int64_t late = 0;
        for (std::int64_t call = 0; call < 10'000; ++call) {
            const nanoseconds time = meter.due({}, 0s);
            meter.debit({}, time);
            late += time.count() == (call * 1'000'000'000 + amount - 1) / amount ? 0 : 1;  // rounded up
        }
        CHECK(late == 0);
    }
}

TEST_CASE("rate meter: what is refilled in small steps is what is refilled in one", "[rate]") {
    RateMeter often = input_meter(Rate(7, 1s, 1'000));
    RateMeter once = often;
    often.debit(input_cost(1'000), 0s);
    once.debit(input_cost(1'000), 0s);
    for (nanoseconds now = 0s; now < 1s; now += 333'331ns) {
        often.debit(input_cost(0), now);
    }
    CHECK(often.due(input_cost(50), 0s) == once.due(input_cost(50), 0s));
    CHECK(often.due(input_cost(50), 0s) == 7'142'857'143ns);
}

TEST_CASE("rate meter: a rest fills a bucket up to its burst, and no further", "[rate]") {
    RateMeter meter(Rate(7, 1s, 2));
    begin_calls(meter, 2, 0s);
    CHECK(begin_calls(meter, 4, 1h + 1ns) ==
          std::vector<nanoseconds>{1h + 1ns, 1h + 1ns, 1h + 142'857'144ns, 1h + 285'714'287ns});
}

TEST_CASE("rate meter: every period and every dimension has to pay, and all are debited at once", "[rate]") {
    RateMeter meter(Rate(2, 1s, 2).also(3, 1min, 3), Rate(100, 1s, 100), Rate(10, 1s, 10));
    const Cost cost{.input_tokens = 60, .output_tokens = 1};
    meter.debit(cost, 0s);
    CHECK(meter.balance(Rate::requests, 0, 0s) == 1);
    CHECK(meter.balance(Rate::requests, 1, 0s) == 2);
    CHECK(meter.balance(Rate::input_tokens, 0, 0s) == 40);
    CHECK(meter.balance(Rate::output_tokens, 0, 0s) == 9);
    CHECK(is_due_exactly(meter, cost, 0s, 200ms));             // input tokens are short
    CHECK(is_due_exactly(meter, {.requests = 2}, 0s, 500ms));  // the period of a second
    CHECK(is_due_exactly(meter, {.output_tokens = 10}, 0s, 100ms));
    CHECK(meter.due({}, 0s) == 0s);
    meter.debit({.requests = 2}, 500ms);
    CHECK(is_due_exactly(meter, {}, 500ms, 20s));  // the period of a minute
    CHECK(meter.periods(Rate::requests) == 2);
    CHECK(meter.periods(Rate::input_tokens) == 1);
}

TEST_CASE("rate meter: a call dearer than a burst is not affordable, and the text says why", "[rate]") {
    const RateMeter meter(Rate(2, 1s, 2), Rate(1'000, 1min, 500).also(10'000, 24h, 100), Rate(10, 1s, 10));
    CHECK(meter.is_affordable({2, 100, 10}));
    CHECK(meter.too_costly({2, 100, 10}).empty());
    CHECK_FALSE(meter.is_affordable({.input_tokens = 101}));
    CHECK(meter.due({.input_tokens = 101}, 0s) == nanoseconds::max());
    CHECK_FALSE(meter.is_affordable({.requests = 3}));
    CHECK_FALSE(meter.is_affordable({.output_tokens = 11}));
    CHECK(meter.too_costly({.input_tokens = 101}) ==
          "a call of 101 input tokens can never begin: the burst of 10000 per 86400000000000 ns is 100");
    CHECK(meter.too_costly({.requests = 3, .input_tokens = 501}) ==
          "a call of 3 requests can never begin: the burst of 2 per 1000000000 ns is 2");
    CHECK(meter.too_costly({.output_tokens = 11}) ==
          "a call of 11 output tokens can never begin: the burst of 10 per 1000000000 ns is 10");
}

TEST_CASE("rate meter: what a call did not use is given back, as much as fits", "[rate]") {
    RateMeter meter = input_meter(Rate(100, 1s, 100));
    const Charge charge = meter.debit(input_cost(80), 0s);
    CHECK(charge.granted == input_cost(80));
    CHECK(is_due_exactly(meter, input_cost(100), 0s, 800ms));
    meter.settle(charge, input_cost(30), 10ms);
    CHECK(meter.balance(Rate::input_tokens, 0, 10ms) == 71);
    const Charge another = meter.debit(input_cost(71), 10ms);
    meter.settle(another, input_cost(0), 500ms);
    CHECK(meter.balance(Rate::input_tokens, 0, 500ms) == 100);
    CHECK(meter.is_balanced());
}

TEST_CASE("rate meter: what a call used beyond its charge is a debt, for which every later call waits", "[rate]") {
    RateMeter meter = input_meter(Rate(100, 1s, 100));
    const Charge charge = meter.debit(input_cost(90), 0s);
    meter.settle(charge, input_cost(300), 0s);
    CHECK(meter.balance(Rate::input_tokens, 0, 0s) == -200);
    CHECK(is_due_exactly(meter, input_cost(0), 0s, 2s));
    CHECK(is_due_exactly(meter, input_cost(100), 0s, 3s));
    CHECK(meter.ledger(Rate::input_tokens).debt == 210);
    CHECK(meter.is_balanced());
}

TEST_CASE("rate meter: without a report the estimate stands", "[rate]") {
    RateMeter meter(Rate(1, 1s, 1), Rate(100, 1s, 100));
    const Charge charge = meter.debit({.input_tokens = 60}, 0s);
    meter.settle(charge);
    CHECK(meter.balance(Rate::requests, 0, 0s) == 0);
    CHECK(meter.balance(Rate::input_tokens, 0, 0s) == 40);
    CHECK(meter.ledger(Rate::input_tokens).settled == 60);
    CHECK(meter.ledger(Rate::input_tokens).outstanding == 0);
    CHECK(meter.is_balanced());
}

TEST_CASE("rate meter: a call that never began gives everything back", "[rate]") {
    RateMeter meter(Rate(1, 1s, 1), Rate(100, 1s, 100), Rate(50, 1s, 50));
    const Charge charge = meter.debit({1, 60, 50}, 0s);
    meter.refund(charge, 0s);
    CHECK(meter.due({1, 100, 50}, 0s) == 0s);
    for (const auto dimension : {Rate::requests, Rate::input_tokens, Rate::output_tokens}) {
        CHECK(meter.ledger(dimension).refunded == meter.ledger(dimension).granted);
        CHECK(meter.ledger(dimension).settled == 0);
    }
    CHECK(meter.is_balanced());
}

TEST_CASE("rate meter: the accounts name what is granted, owed, used, given back and outstanding", "[rate]") {
    RateMeter meter = input_meter(Rate(1'000, 1s, 1'000));
    const Charge more = meter.debit(input_cost(100), 0s);
    const Charge less = meter.debit(input_cost(200), 0s);
    meter.debit(input_cost(400), 0s);
    meter.settle(more, input_cost(130), 0s);
    meter.settle(less, input_cost(150), 0s);
    const auto& ledger = meter.ledger(Rate::input_tokens);
    CHECK(ledger.granted == 700);
    CHECK(ledger.debt == 30);
    CHECK(ledger.settled == 280);
    CHECK(ledger.refunded == 50);
    CHECK(ledger.outstanding == 400);
    CHECK(meter.is_balanced());
    auto wrong = ledger;
    ++wrong.debt;
    CHECK_FALSE(wrong.is_balanced());
}

TEST_CASE("rate meter: no call begins during a pause, and its end is no stampede", "[rate]") {
    RateMeter meter(Rate(10, 1s, 5), Rate(1'000, 1s, 1'000));
    meter.pause(20s, 1s);
    CHECK(meter.paused_until() == 20s);
    CHECK(meter.balance(Rate::requests, 0, 19s) == 0);
    CHECK(is_due_exactly(meter, {.requests = 0}, 2s, 20s));
    CHECK(is_due_exactly(meter, {.requests = 0, .input_tokens = 500}, 2s, 20s + 500ms));
    CHECK(begin_calls(meter, 3, 2s) == std::vector<nanoseconds>{20s + 100ms, 20s + 200ms, 20s + 300ms});
}

TEST_CASE("rate meter: a pause empties only the bucket of the shortest period", "[rate]") {
    const Rate::Period day{10'000'000, 24h, 200'000};
    RateMeter meter = input_meter(Rate(200'000, 1min, 50'000).also(day.amount, day.per, day.burst));
    SECTION("of all that there are then") {}
    SECTION("of those that are set during the pause") {
        meter = input_meter(Rate(day.amount, day.per, day.burst).also(200'000, 1min, 50'000));
        meter.pause(2s, 1s);
        meter.set_rate(Rate::input_tokens, Rate(day.amount, day.per, day.burst), 1s);
        CHECK(meter.balance(Rate::input_tokens, 0, 1s) == 0);
        meter = input_meter(Rate(day.amount, day.per, day.burst).also(200'000, 1min, 50'000));
    }
    meter.pause(2s, 1s);
    CHECK(is_due_exactly(meter, input_cost(20'000), 1s, 2s + 6s));
    CHECK(meter.balance(Rate::input_tokens, 0, 1s) + meter.balance(Rate::input_tokens, 1, 1s) == 200'000);
}

TEST_CASE("rate meter: with a burst of 1 the first call after a pause begins one interval later", "[rate]") {
    RateMeter meter(Rate(1, 1s, 1));
    meter.pause(20s, 0s);
    CHECK(begin_calls(meter, 3, 0s) == std::vector<nanoseconds>{21s, 22s, 23s});
}

TEST_CASE("rate meter: the latest end of a pause wins, and a shorter one changes nothing", "[rate]") {
    RateMeter meter(Rate(10, 1s, 5));
    meter.pause(10s, 0s);
    meter.pause(5s, 1s);
    CHECK(is_due_exactly(meter, {}, 1s, 10s + 100ms));
    meter.pause(10s, 2s);
    CHECK(is_due_exactly(meter, {}, 2s, 10s + 100ms));
    meter.pause(12s, 3s);
    CHECK(is_due_exactly(meter, {}, 3s, 12s + 100ms));
    CHECK(meter.paused_until() == 12s);
}

TEST_CASE("rate meter: a pause that is over has no effect", "[rate]") {
    RateMeter meter(Rate(10, 1s, 5));
    meter.pause(2s, 2s);
    meter.pause(1s, 2s);
    CHECK(meter.paused_until() == nanoseconds::min());
    CHECK(meter.balance(Rate::requests, 0, 2s) == 5);
    meter.pause(3s, 2s);
    CHECK(meter.balance(Rate::requests, 0, 3s + 500ms) == 5);
    meter.pause(3s + 200ms, 3s + 500ms);
    CHECK(meter.balance(Rate::requests, 0, 3s + 500ms) == 5);
    meter.pause(4s, 3s + 500ms);
    CHECK(is_due_exactly(meter, {}, 3s + 500ms, 4s + 100ms));
}

TEST_CASE("rate meter: a debt outlasts a pause, and what is given back meanwhile only reduces it", "[rate]") {
    RateMeter meter = input_meter(Rate(100, 1s, 100));
    const Charge dear = meter.debit(input_cost(50), 0s);
    const Charge open = meter.debit(input_cost(50), 0s);
    meter.settle(dear, input_cost(80), 0s);
    CHECK(meter.balance(Rate::input_tokens, 0, 0s) == -30);
    meter.pause(10s, 100ms);
    CHECK(meter.balance(Rate::input_tokens, 0, 10s) == -20);
    CHECK(is_due_exactly(meter, input_cost(0), 1s, 10s + 200ms));
    meter.settle(open, input_cost(0), 5s);
    CHECK(meter.balance(Rate::input_tokens, 0, 10s) == 0);
    CHECK(is_due_exactly(meter, input_cost(1), 5s, 10s + 10ms));
    CHECK(meter.is_balanced());
}

TEST_CASE("rate meter: a fraction of a token that is owed survives a pause", "[rate]") {
    RateMeter meter = input_meter(Rate(1, 1s, 1));
    meter.settle(meter.debit(input_cost(1), 0s), input_cost(2), 0s);
    meter.pause(10s, 400ms);  // 0.6 are owed
    CHECK(is_due_exactly(meter, input_cost(0), 400ms, 10s + 600ms));
}

TEST_CASE("rate meter: a new rate continues from the balance of the period that is as long", "[rate]") {
    RateMeter meter(Rate(10, 1s, 10).also(100, 1min, 100));
    meter.debit({.requests = 6}, 0s);
    meter.set_rate(Rate::requests, Rate(200, 1min, 200).also(20, 1s, 20), 50ms);
    CHECK(meter.balance(Rate::requests, 0, 50ms) == 94);
    CHECK(meter.balance(Rate::requests, 1, 50ms) == 4);
    CHECK(is_due_exactly(meter, {.requests = 5}, 50ms, 75ms));  // from 4.5 at 20 a second
}

TEST_CASE("rate meter: a new rate holds no more than its burst", "[rate]") {
    RateMeter meter(Rate(10, 1s, 10));
    meter.set_rate(Rate::requests, Rate(10, 1s, 3), 0s);
    CHECK(meter.balance(Rate::requests, 0, 0s) == 3);
    meter.set_rate(Rate::requests, Rate(10, 1s, 10), 0s);
    CHECK(meter.balance(Rate::requests, 0, 0s) == 3);
    CHECK(is_due_exactly(meter, {.requests = 4}, 0s, 100ms));
    meter.set_rate(Rate::requests, Rate(10, 1s, 4), 50ms);
    CHECK(is_due_exactly(meter, {.requests = 4}, 50ms, 100ms));
    CHECK_FALSE(meter.is_affordable({.requests = 5}));
    CHECK(meter.due({.requests = 5}, 50ms) == nanoseconds::max());
}

TEST_CASE("rate meter: a period of a new length continues from the lowest balance", "[rate]") {
    RateMeter meter(Rate(10, 1s, 10).also(8, 1min, 8));
    meter.debit({.requests = 6}, 0s);
    meter.set_rate(Rate::requests, Rate(3'600, 1h, 100), 0s);
    CHECK(meter.balance(Rate::requests, 0, 0s) == 2);
    CHECK(is_due_exactly(meter, {.requests = 3}, 0s, 1s));
}

TEST_CASE("rate meter: a fraction of a token survives a new rate, so that changes do not starve", "[rate]") {
    RateMeter meter(Rate(1, 1s, 1));
    meter.debit({}, 0s);
    nanoseconds now = 0s;
    for (int change = 1; change < 10; ++change) {
        now += 100ms;
        meter.set_rate(Rate::requests, Rate(change % 2 + 1, 1s * (change % 2 + 1), 1), now);
    }
    CHECK(is_due_exactly(meter, {}, now, 1s));
}

TEST_CASE("rate meter: a debt survives a new rate", "[rate]") {
    RateMeter meter = input_meter(Rate(100, 1s, 100));
    meter.settle(meter.debit(input_cost(100), 0s), input_cost(150), 0s);
    meter.set_rate(Rate::input_tokens, Rate(50, 1s, 10), 0s);
    CHECK(is_due_exactly(meter, input_cost(0), 0s, 1s));
    meter.set_rate(Rate::input_tokens, Rate(600, 1min, 10), 0s);
    CHECK(is_due_exactly(meter, input_cost(0), 0s, 5s));
}

TEST_CASE("rate meter: a first rate is full, or empty during a pause; an unlimited one forgets", "[rate]") {
    RateMeter meter;
    meter.set_rate(Rate::requests, Rate(10, 1s, 5), 1s);
    CHECK(meter.balance(Rate::requests, 0, 1s) == 5);
    begin_calls(meter, 5, 1s);
    meter.set_rate(Rate::requests, Rate::unlimited, 1s);
    CHECK(meter.due({.requests = 1'000}, 1s) == 1s);
    CHECK(meter.periods(Rate::requests) == 0);
    meter.set_rate(Rate::requests, Rate(10, 1s, 5), 1s);
    CHECK(meter.balance(Rate::requests, 0, 1s) == 5);
    meter.pause(3s, 1s);
    meter.set_rate(Rate::output_tokens, Rate(10, 1s, 5), 2s);
    CHECK(is_due_exactly(meter, {0, 0, 2}, 2s, 3s + 200ms));
    meter.set_rate(Rate::requests, Rate(20, 1s, 5), 2s);
    CHECK(is_due_exactly(meter, {.requests = 1}, 2s, 3s + 50ms));
}

TEST_CASE("rate meter: a call is settled in the dimensions that had a rate when it began", "[rate]") {
    RateMeter meter(Rate(10, 1s, 5));
    const Charge charge = meter.debit({.input_tokens = 70}, 0s);
    meter.set_rate(Rate::requests, Rate::unlimited, 0s);
    meter.set_rate(Rate::input_tokens, Rate(100, 1s, 100), 0s);
    meter.settle(charge, {.requests = 3, .input_tokens = 90}, 0s);
    CHECK(meter.balance(Rate::input_tokens, 0, 0s) == 100);
    CHECK(meter.ledger(Rate::input_tokens).granted == 0);
    CHECK(meter.ledger(Rate::input_tokens).settled == 0);
    CHECK(meter.ledger(Rate::requests).settled == 3);
    CHECK(meter.ledger(Rate::requests).outstanding == 0);
    CHECK(meter.is_balanced());
}

TEST_CASE("rate meter: a time before the latest counts as the latest", "[rate]") {
    RateMeter meter(Rate(10, 1s, 5));
    meter.debit({.requests = 5}, 10s);
    CHECK(meter.due({}, 0s) == 10s + 100ms);
    CHECK(meter.due({.requests = 0}, 3s) == 10s);
    meter.debit({.requests = 0}, 1s);
    CHECK(meter.balance(Rate::requests, 0, 0s) == 0);
    meter.pause(9s, 1s);  // is over
    CHECK(meter.due({}, 0s) == 10s + 100ms);
    CHECK(meter.balance(Rate::requests, 0, 10s + 100ms) == 1);
}

TEST_CASE("rate meter: without any rate only a pause delays a call", "[rate]") {
    RateMeter meter;
    const Cost huge{1'000'000'000'000'000, 1'000'000'000'000'000, 1'000'000'000'000'000};
    CHECK(meter.is_affordable(huge));
    CHECK(meter.due(huge, 5s) == 5s);
    const Charge charge = meter.debit(huge, 5s);
    CHECK(charge.metered == 0);
    meter.settle(charge, {7, 7, 7}, 6s);
    meter.settle(charge);
    meter.refund(charge, 6s);
    CHECK(meter.ledger(Rate::requests).granted == 0);
    CHECK(meter.is_balanced());
    meter.pause(9s, 5s);
    CHECK(is_due_exactly(meter, huge, 5s, 9s));
}

TEST_CASE("rate meter: a due call of no cost waits for nothing, and time 0 is a time", "[rate]") {
    RateMeter meter(Rate(1, 1ns, 1));
    meter.debit({}, 0ns);
    CHECK(meter.due({.requests = 0}, 0ns) == 0ns);
    CHECK(meter.due({}, 0ns) == 1ns);
    CHECK(begin_calls(meter, 3, 0ns) == std::vector<nanoseconds>{1ns, 2ns, 3ns});
    RateMeter fast(Rate(1'000, 1ns, 1));
    fast.debit({}, 0ns);
    CHECK(fast.due({}, 0ns) == 1ns);  // never a wait of zero that does not help
}

TEST_CASE("rate meter: amounts of 10^12, periods of 24 hours and times of 100 years are exact", "[rate]") {
    constexpr std::int64_t amount = 1'000'000'000'000;
    RateMeter meter = input_meter(Rate(amount, 24h, amount));
    CHECK(meter.due(input_cost(amount), century) == century);
    meter.debit(input_cost(amount), century);
    CHECK(is_due_exactly(meter, input_cost(amount), century, century + 24h));
    CHECK(is_due_exactly(meter, input_cost(1), century, century + 87ns));  // 86.4 ns
    CHECK(meter.balance(Rate::input_tokens, 0, century + 12h) == amount / 2);
    meter.debit(input_cost(0), century + 12h);
    CHECK(is_due_exactly(meter, input_cost(amount), century + 12h, century + 24h));

    RateMeter rested = input_meter(Rate(amount, 1s, amount));
    rested.debit(input_cost(amount), 0s);
    CHECK(rested.balance(Rate::input_tokens, 0, century) == amount);
    rested.debit(input_cost(amount), century);
    CHECK(rested.balance(Rate::input_tokens, 0, century) == 0);
}

TEST_CASE("rate meter: what comes beyond the end of time is due at its end", "[rate]") {
    RateMeter slow = input_meter(Rate(1, 24h, 1'000'000'000'000));
    slow.debit(input_cost(1'000'000'000'000), 0s);
    CHECK(slow.due(input_cost(1'000'000'000'000), 0s) == nanoseconds::max());
    CHECK(is_due_exactly(slow, input_cost(365), 0s, 24h * 365));
    slow.pause(nanoseconds::max(), 0s);
    CHECK(slow.due(input_cost(0), 0s) == nanoseconds::max());
    CHECK(slow.due(input_cost(1), 0s) == nanoseconds::max());
}

TEST_CASE("rate meter: debts are counted up to 10^18", "[rate]") {
    RateMeter meter = input_meter(Rate(1'000'000'000'000'000, 1s, 1'000'000'000'000'000));
    for (int call = 0; call < 2'000; ++call) {
        meter.set_rate(Rate::output_tokens, Rate::unlimited, 0s);
        const Charge charge{.granted = input_cost(0), .metered = 2};
        meter.settle(charge, input_cost(1'000'000'000'000'000), 0s);
    }
    CHECK(meter.balance(Rate::input_tokens, 0, 0s) == -1'000'000'000'000'000'000);
    CHECK(is_due_exactly(meter, input_cost(0), 0s, 1'000s));
    CHECK(meter.is_balanced());
}
