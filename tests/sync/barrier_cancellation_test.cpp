// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/barrier.hpp>

#include "support/barrier_fixture.hpp"
#include "support/probes.hpp"

#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <iterator>
#include <random>
#include <vector>

namespace {

using sluice::BrokenBarrier;
using test::any_cancellation;
using test::Arrival;
using test::BarrierFixture;
using test::broken;
using test::first_numbers;
using test::indices;
using test::Order;

}  // namespace

TEST_CASE("barrier: a cancelled waiter is withdrawn as if it had never arrived", "[barrier][cancellation]") {
    BarrierFixture f(2);
    Arrival cancelled = f.arrive();
    cancelled.cancel(any_cancellation());
    CHECK(f.barrier->waiting() == 0);  // at once
    Arrival b = f.start();             // arrives before the cancelled waiter has resumed
    f.poll();
    CHECK(cancelled.aborted());
    CHECK_FALSE(b.done());
    CHECK(f.barrier->waiting() == 1);
    Arrival c = f.arrive();
    CHECK(b.succeeded());
    CHECK(b.value() == 0);
    CHECK(c.value() == 1);
    CHECK(f.barrier->phase() == 1);
    CHECK_FALSE(f.barrier->broken());
}

TEST_CASE("barrier: indices stay contiguous when a waiter is cancelled", "[barrier][cancellation]") {
    const std::size_t which = GENERATE(0U, 1U, 2U);
    BarrierFixture f(4);
    auto arrivals = f.arrive(3);
    arrivals[which].cancel();
    CHECK(f.barrier->waiting() == 2);
    arrivals[which].cancel();  // the second time has no effect
    CHECK(f.barrier->waiting() == 2);
    arrivals.push_back(f.arrive());
    CHECK(f.barrier->phase() == 0);
    arrivals.push_back(f.arrive());
    CHECK(f.barrier->phase() == 1);
    CHECK(arrivals[which].aborted());
    arrivals.erase(arrivals.begin() + static_cast<std::ptrdiff_t>(which));
    CHECK(indices(arrivals) == Order{0, 1, 2, 3});
}

TEST_CASE("barrier: a wait that was cancelled stays cancelled when the phase completes before it resumes",
          "[barrier][cancellation]") {
    BarrierFixture f(2);
    Arrival cancelled = f.arrive();
    cancelled.cancel();
    f.barrier->arrive_and_drop();
    f.barrier->arrive_and_drop();  // every party has arrived
    CHECK(f.barrier->phase() == 1);
    f.poll();
    CHECK(cancelled.aborted());
}

TEST_CASE("barrier: once the phase is complete, cancellation is too late", "[barrier][cancellation]") {
    BarrierFixture f(3);
    auto arrivals = f.arrive(2);
    arrivals.push_back(f.start_now());
    REQUIRE(f.barrier->phase() == 1);
    arrivals[0].cancel(any_cancellation());
    f.poll();
    CHECK(indices(arrivals) == Order{0, 1, 2});
    CHECK(f.barrier->waiting() == 0);
    auto next = f.arrive(2);  // the next phase still needs three
    CHECK_FALSE(next[0].done());
    next.push_back(f.arrive());
    CHECK(indices(next) == Order{0, 1, 2});
}

TEST_CASE("barrier: cancellation inside the completion function is too late", "[barrier][cancellation]") {
    std::vector<Arrival> arrivals;
    BarrierFixture f(2, [&] { arrivals[0].cancel(); });
    arrivals.push_back(f.arrive());
    arrivals.push_back(f.arrive());
    CHECK(indices(arrivals) == Order{0, 1});
}

TEST_CASE("barrier: 100,000 parties, every other one cancelled", "[barrier][cancellation][stress]") {
    constexpr std::size_t n = 100'000;
    BarrierFixture f(n);
    const auto start = [&] { return f.start(); };
    std::vector<Arrival> arrivals = test::repeat(n - 1, start);
    f.poll();
    for (std::size_t i = n - 1; i != 0; --i) {
        if (i % 2 == 0) {
            arrivals[i - 1].cancel();
        }
    }
    CHECK(f.barrier->waiting() == n / 2);
    f.poll();
    std::ranges::move(test::repeat(n / 2, start), std::back_inserter(arrivals));
    f.poll();
    CHECK(f.barrier->phase() == 1);
    Order kept;
    for (std::size_t i = 0; i != arrivals.size(); ++i) {
        if (i >= n - 1 || i % 2 == 0) {
            kept.push_back(arrivals[i].value());
        }
    }
    CHECK(bool(kept == first_numbers(n)));  // too long to print
}

TEST_CASE("barrier: a wait that is both cancelled and reset, in either order, is counted once",
          "[barrier][cancellation]") {
    BarrierFixture f(2);
    Arrival arrival = f.arrive();
    SECTION("cancelled first") {
        arrival.cancel();
        f.barrier->reset();
        f.poll();
        CHECK(arrival.aborted());
    }
    SECTION("reset first") {
        f.barrier->reset();
        arrival.cancel();
        f.poll();
        CHECK(broken(arrival));
    }
    auto pair = f.arrive(1);
    CHECK_FALSE(pair[0].done());
    pair.push_back(f.arrive());
    CHECK(indices(pair) == Order{0, 1});
}

TEST_CASE("barrier: a waiter that is cancelled after another party dropped out leaves one arrival missing",
          "[barrier][cancellation]") {
    BarrierFixture f(3);
    Arrival cancelled = f.arrive();
    f.barrier->arrive_and_drop();
    cancelled.cancel();
    auto arrivals = f.arrive(1);
    CHECK(cancelled.aborted());
    CHECK_FALSE(arrivals[0].done());
    arrivals.push_back(f.arrive());
    CHECK(indices(arrivals) == Order{0, 1});
}

TEST_CASE("barrier: its state agrees with a reference model under random operations",
          "[barrier][cancellation][stress]") {
    enum class End : std::uint8_t { none, passed, cancelled, broken };
    for (unsigned seed = 1; seed != 41; ++seed) {
        INFO("seed " << seed);
        std::mt19937 random(seed);
        const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
        BarrierFixture f(6);
        std::vector<Arrival> arrivals;
        std::vector<End> ends;
        Order expected_index;
        std::deque<std::size_t> waiting;
        std::size_t parties = 6;
        std::size_t missing = 6;
        std::uint64_t phase = 0;
        bool is_broken = false;

        const auto break_all = [&] {
            for (const std::size_t number : waiting) {
                ends[number] = End::broken;
            }
            waiting.clear();
            missing = parties;
        };
        const auto complete = [&] {
            std::size_t index = 0;
            for (const std::size_t number : waiting) {
                ends[number] = End::passed;
                expected_index[number] = index++;
            }
            waiting.clear();
            missing = parties;
            ++phase;
        };
        const auto check_ends = [&] {
            bool as_expected = true;
            for (std::size_t i = 0; i != ends.size(); ++i) {
                Arrival& arrival = arrivals[i];
                switch (ends[i]) {
                    case End::none:
                        as_expected = as_expected && !arrival.done();
                        break;
                    case End::passed:
                        as_expected = as_expected && arrival.succeeded() && arrival.value() == expected_index[i];
                        break;
                    case End::cancelled:
                        as_expected = as_expected && arrival.aborted();
                        break;
                    case End::broken:
                        as_expected = as_expected && broken(arrival);
                }
            }
            REQUIRE(as_expected);
        };

        for (int step = 0; step != 300; ++step) {
            const std::size_t action = below(40);
            if (action < 24) {
                const std::size_t number = arrivals.size();
                arrivals.push_back(f.start());
                ends.push_back(End::none);
                expected_index.push_back(0);
                if (is_broken || parties == 0) {
                    ends[number] = End::broken;
                } else {
                    waiting.push_back(number);
                    if (--missing == 0) {
                        complete();
                    }
                }
                f.poll();
            } else if (action < 34) {
                if (!waiting.empty()) {
                    const auto at = waiting.begin() + static_cast<std::ptrdiff_t>(below(waiting.size()));
                    arrivals[*at].cancel();
                    ends[*at] = End::cancelled;
                    waiting.erase(at);
                    ++missing;
                }
            } else if (action < 35) {
                if (is_broken || parties == 0) {
                    REQUIRE_THROWS_AS(f.barrier->arrive_and_drop(), BrokenBarrier);
                } else {
                    f.barrier->arrive_and_drop();
                    --parties;
                    if (--missing == 0) {
                        complete();
                    }
                }
            } else if (action < 36) {
                f.barrier->abort();
                is_broken = true;
                break_all();
            } else {
                f.barrier->reset();
                is_broken = false;
                break_all();
            }
            REQUIRE(f.barrier->waiting() == waiting.size());
            REQUIRE(f.barrier->parties() == static_cast<std::ptrdiff_t>(parties));
            REQUIRE(f.barrier->phase() == phase);
            REQUIRE(f.barrier->broken() == is_broken);
        }
        f.poll();
        check_ends();
    }
}
