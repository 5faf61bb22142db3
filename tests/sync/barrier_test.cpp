// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/barrier.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <exception>
#include <functional>
#include <limits>
#include <memory>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using sluice::Barrier;
using sluice::BrokenBarrier;
using test::any_cancellation;
using test::first_numbers;
using test::Live;
using test::Task;
using Arrival = Task<std::size_t>;
using Order = std::vector<std::size_t>;

static_assert(!std::is_copy_constructible_v<Barrier> && !std::is_move_constructible_v<Barrier>);
static_assert(!std::is_copy_assignable_v<Barrier> && !std::is_move_assignable_v<Barrier>);
static_assert(std::is_base_of_v<std::runtime_error, BrokenBarrier>);
static_assert(std::is_convertible_v<Barrier::Arrival, asio::awaitable<std::size_t>>);
static_assert(!std::is_copy_constructible_v<Barrier::Arrival>);

// A barrier and its context, each of which a test may destroy first. Nothing runs but when the test polls.
struct Fixture {
    explicit Fixture(std::ptrdiff_t parties, std::function<void()> completion = {})
        : barrier(std::in_place, context->get_executor(), parties, std::move(completion)) {}

    std::size_t poll() {
        context->restart();
        return context->poll();
    }

    // Starts a coroutine that arrives, and goes as far as it can. Its number goes into `order` when it goes on.
    Arrival arrive() {
        Arrival arrival = start();
        poll();
        return arrival;
    }

    std::vector<Arrival> arrive(std::size_t n) {
        std::vector<Arrival> arrivals;
        while (arrivals.size() != n) {
            arrivals.push_back(arrive());
        }
        return arrivals;
    }

    // The same, without a poll: it begins after what was posted before.
    Arrival start() {
        return {context->get_executor(), [this, number = started++]() -> asio::awaitable<std::size_t> {
                    const std::size_t index = co_await barrier->arrive_and_wait();
                    order.push_back(number);
                    co_return index;
                }};
    }

    // Runs the start of a coroutine and nothing that comes after it.
    Arrival start_now() {
        Arrival arrival = start();
        context->restart();
        context->poll_one();
        return arrival;
    }

    std::size_t started = 0;
    Order order;
    std::optional<asio::io_context> context{std::in_place};
    std::optional<Barrier> barrier;
};

bool broken(const Arrival& arrival) { return arrival.failed_with<BrokenBarrier>(); }

Order indices(std::vector<Arrival>& arrivals) {
    Order order;
    for (Arrival& arrival : arrivals) {
        REQUIRE(arrival.succeeded());
        order.push_back(arrival.value());
    }
    return order;
}

}  // namespace

TEST_CASE("barrier: a new one is at phase 0 and whole", "[barrier]") {
    Fixture f(3);
    CHECK(f.barrier->parties() == 3);
    CHECK(f.barrier->waiting() == 0);
    CHECK(f.barrier->phase() == 0);
    CHECK_FALSE(f.barrier->broken());
    CHECK(f.barrier->get_executor() == asio::any_io_executor(f.context->get_executor()));
}

TEST_CASE("barrier: fewer than one party throws and names the value", "[barrier]") {
    asio::io_context context;
    const auto parties = GENERATE(std::ptrdiff_t{0}, std::ptrdiff_t{-1}, std::numeric_limits<std::ptrdiff_t>::min());
    CHECK_THROWS_MATCHES(Barrier(context.get_executor(), parties), std::invalid_argument,
                         MessageMatches(ContainsSubstring("got " + std::to_string(parties))));
}

TEST_CASE("barrier: nobody leaves a phase until every party has arrived at it", "[barrier]") {
    Fixture f(3);
    auto arrivals = f.arrive(2);
    CHECK(f.barrier->waiting() == 2);
    CHECK(f.barrier->phase() == 0);
    CHECK(f.order.empty());
    arrivals.push_back(f.arrive());
    CHECK(f.barrier->waiting() == 0);
    CHECK(f.barrier->phase() == 1);
    CHECK(indices(arrivals) == Order{0, 1, 2});
}

TEST_CASE("barrier: the last arrival goes on without suspending, the others through the executor in their order",
          "[barrier]") {
    Fixture f(4);
    auto arrivals = f.arrive(3);
    arrivals.push_back(f.start_now());
    CHECK(f.order == Order{3});
    CHECK(f.barrier->phase() == 1);
    CHECK(f.barrier->waiting() == 0);
    CHECK(f.context->poll_one() == 1);  // the completion of a coroutine that never suspended comes by itself
    CHECK(f.order == Order{3, 0, 1, 2});
    f.poll();
    CHECK(indices(arrivals) == first_numbers(4));
}

TEST_CASE("barrier: nothing that ends a wait resumes the waiter itself", "[barrier]") {
    Fixture f(2);
    Arrival waiter = f.arrive();
    SECTION("abort") { f.barrier->abort(); }
    SECTION("reset") { f.barrier->reset(); }
    SECTION("arrive_and_drop") { f.barrier->arrive_and_drop(); }
    SECTION("the destructor") { f.barrier = std::nullopt; }
    SECTION("cancellation") { waiter.cancel(); }
    CHECK_FALSE(waiter.done());
    CHECK(f.order.empty());
    f.poll();
    CHECK(waiter.done());
}

TEST_CASE("barrier: a fast party may arrive for the next phase before slow ones have resumed", "[barrier]") {
    Fixture f(3);
    auto slow = f.arrive(2);
    Order fast;
    const Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        fast.push_back(co_await f.barrier->arrive_and_wait());
        fast.push_back(co_await f.barrier->arrive_and_wait());
    });
    f.context->poll_one();
    CHECK(fast == Order{2});
    CHECK(f.barrier->waiting() == 1);  // in phase 1 already
    CHECK(f.order.empty());
    f.poll();
    CHECK(indices(slow) == Order{0, 1});
    CHECK_FALSE(task.done());
    auto next = f.arrive(2);
    CHECK(fast == Order{2, 0});
    CHECK(indices(next) == Order{1, 2});
    CHECK(f.barrier->phase() == 2);
}

TEST_CASE("barrier: over 1000 phases each party has an index of its own and none is two phases ahead",
          "[barrier][stress]") {
    constexpr std::size_t parties = 7;
    constexpr std::size_t phases = 1000;
    std::size_t completions = 0;
    Fixture f(parties, [&] { ++completions; });
    std::mt19937 random(1);
    std::vector<std::size_t> arrived(parties, 0);  // how often each party arrived
    std::vector<std::size_t> next_index(phases, 0);
    bool in_order = true;
    bool in_step = true;
    std::vector<Task<>> tasks;
    for (std::size_t party = 0; party != parties; ++party) {
        tasks.emplace_back(f.context->get_executor(), [&, party]() -> asio::awaitable<void> {
            for (std::size_t phase = 0; phase != phases; ++phase) {
                for (auto turns = random() % 4; turns != 0; --turns) {
                    co_await test::yield();
                }
                ++arrived[party];
                const std::size_t expected = next_index[phase]++;
                const std::size_t index = co_await f.barrier->arrive_and_wait();
                in_order = in_order && index == expected;
                const auto [least, most] = std::ranges::minmax_element(arrived);
                in_step = in_step && *least >= phase + 1 && *most <= phase + 2 && completions >= phase + 1;
            }
        });
    }
    f.poll();
    CHECK(std::ranges::all_of(tasks, [](const auto& task) { return task.succeeded(); }));
    CHECK(in_order);
    CHECK(in_step);
    CHECK(next_index == std::vector<std::size_t>(phases, parties));
    CHECK(f.barrier->phase() == phases);
    CHECK(completions == phases);
}

TEST_CASE("barrier: with one party nobody ever waits", "[barrier]") {
    std::uint64_t completions = 0;
    Fixture f(1, [&] { ++completions; });
    Order seen;
    const Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        for (int i = 0; i != 1000; ++i) {
            seen.push_back(co_await f.barrier->arrive_and_wait());
        }
    });
    f.context->poll_one();
    CHECK(seen.size() > 10);    // at once, but not for ever:
    CHECK(seen.size() < 1000);  // others have their turn
    f.poll();
    CHECK(bool(seen == Order(1000, 0)));
    CHECK(f.barrier->phase() == 1000);
    CHECK(completions == 1000);
}

TEST_CASE("barrier: the completion function runs once per phase, at the last arrival, before anyone goes on",
          "[barrier]") {
    std::vector<std::string> log;
    std::optional<Barrier> barrier;
    asio::io_context context;
    barrier.emplace(context.get_executor(), 2, [&] { log.push_back("phase " + std::to_string(barrier->phase())); });
    const auto party = [&](const std::string& name) {
        return Task<>(context.get_executor(), [&log, &barrier, name]() -> asio::awaitable<void> {
            for (int i = 0; i != 2; ++i) {
                log.push_back(name + " arrives");
                co_await barrier->arrive_and_wait();
                log.push_back(name + " goes on");
            }
        });
    };
    const Task<> a = party("a");
    const Task<> b = party("b");
    context.poll();
    CHECK(log == std::vector<std::string>{"a arrives", "b arrives", "phase 0", "b goes on", "b arrives", "a goes on",
                                          "a arrives", "phase 1", "a goes on", "b goes on"});
    CHECK(barrier->phase() == 2);
}

TEST_CASE("barrier: a completion function that throws breaks it and leaves nobody suspended", "[barrier]") {
    bool throws = true;
    Fixture f(3, [&] {
        if (throws) {
            throw std::domain_error("no");
        }
    });
    auto arrivals = f.arrive(3);
    CHECK(broken(arrivals[0]));
    CHECK(broken(arrivals[1]));
    CHECK(arrivals[2].failed_with<std::domain_error>());
    CHECK(f.barrier->broken());
    CHECK(f.barrier->phase() == 0);
    CHECK(f.barrier->waiting() == 0);
    CHECK(broken(f.arrive()));

    throws = false;
    f.barrier->reset();
    CHECK_FALSE(f.barrier->broken());
    auto again = f.arrive(3);
    CHECK(indices(again) == Order{0, 1, 2});
    CHECK(f.barrier->phase() == 1);
}

TEST_CASE("barrier: what the completion function throws need not be a std::exception", "[barrier]") {
    Fixture f(2, [] { throw 42; });
    const auto arrivals = f.arrive(2);
    CHECK(broken(arrivals[0]));
    CHECK(arrivals[1].failed_with<int>());
    CHECK(f.barrier->broken());
}

TEST_CASE("barrier: a completion function that throws breaks it for those who arrived meanwhile as well", "[barrier]") {
    std::function<void()> completion;
    Fixture f(2, [&] { completion(); });
    std::optional<Arrival> early;
    completion = [&] {
        f.barrier->reset();  // mends nothing that breaks later
        early = f.start();
        throw std::domain_error("no");
    };
    const auto arrivals = f.arrive(2);
    CHECK(broken(arrivals[0]));
    CHECK(arrivals[1].failed_with<std::domain_error>());
    CHECK(broken(*early));
    CHECK(f.barrier->broken());
    CHECK(f.barrier->waiting() == 0);
}

TEST_CASE("barrier: abort from inside the completion function concerns the next phase", "[barrier]") {
    std::function<void()> completion;
    Fixture f(2, [&] { completion(); });
    completion = [&] { f.barrier->abort(); };
    auto arrivals = f.arrive(2);
    CHECK(indices(arrivals) == Order{0, 1});
    CHECK(f.barrier->phase() == 1);
    CHECK(f.barrier->broken());
    CHECK(broken(f.arrive()));
}

TEST_CASE("barrier: reset from inside the completion function concerns the next phase", "[barrier]") {
    std::function<void()> completion;
    Fixture f(2, [&] { completion(); });
    completion = [&] { f.barrier->reset(); };
    auto arrivals = f.arrive(2);
    CHECK(indices(arrivals) == Order{0, 1});
    CHECK(f.barrier->phase() == 1);
    CHECK_FALSE(f.barrier->broken());
    auto next = f.arrive(2);
    CHECK(indices(next) == Order{0, 1});
}

TEST_CASE("barrier: arrivals from inside the completion function concern the next phase", "[barrier]") {
    std::function<void()> completion;
    Fixture f(2, [&] { completion(); });
    std::vector<Arrival> next;
    int completions = 0;
    completion = [&] {
        if (++completions == 1) {
            next.push_back(f.start());  // begins at once, being in the loop
            CHECK(f.barrier->waiting() == 1);
        }
    };
    SECTION("that wait until it is complete") {
        auto arrivals = f.arrive(2);
        CHECK(indices(arrivals) == Order{0, 1});
        CHECK(f.barrier->phase() == 1);
        CHECK(f.barrier->waiting() == 1);
        CHECK_FALSE(next[0].done());
        next.push_back(f.arrive());
        CHECK(indices(next) == Order{0, 1});
        CHECK(f.barrier->phase() == 2);
        CHECK(completions == 2);
    }
    SECTION("that abort ends") {
        completion = [&, first = completion] {
            first();
            f.barrier->abort();
        };
        auto arrivals = f.arrive(2);
        CHECK(indices(arrivals) == Order{0, 1});
        CHECK(broken(next[0]));
    }
    SECTION("that reset ends") {
        completion = [&, first = completion] {
            first();
            f.barrier->reset();
        };
        auto arrivals = f.arrive(2);
        CHECK(indices(arrivals) == Order{0, 1});
        CHECK(broken(next[0]));
        CHECK_FALSE(f.barrier->broken());
        CHECK(f.barrier->waiting() == 0);
    }
}

TEST_CASE("barrier: a party may drop out from inside the completion function", "[barrier]") {
    std::function<void()> completion;
    Fixture f(3, [&] { completion(); });
    int completions = 0;
    completion = [&] {
        if (++completions == 1) {
            f.barrier->arrive_and_drop();
        }
    };
    auto arrivals = f.arrive(3);
    CHECK(indices(arrivals) == Order{0, 1, 2});
    CHECK(f.barrier->parties() == 2);
    CHECK(f.barrier->phase() == 1);
    auto next = f.arrive(2);  // the drop was an arrival at this phase
    CHECK(indices(next) == Order{0, 1});
    CHECK(f.barrier->phase() == 2);
    CHECK(completions == 2);
}

TEST_CASE("barrier: the completion function may destroy it", "[barrier][shutdown]") {
    std::function<void()> completion;
    Fixture f(2, [&] { completion(); });
    const auto owned = std::make_shared<int>(1);
    bool throws = false;
    completion = [&, owned] {
        const auto after = owned;
        f.barrier = std::nullopt;
        CHECK(*after == 1);
        if (throws) {
            throw std::domain_error("no");
        }
    };
    SECTION("the phase is complete all the same") {
        auto arrivals = f.arrive(2);
        CHECK(indices(arrivals) == Order{0, 1});
    }
    SECTION("and throw") {
        throws = true;
        const auto arrivals = f.arrive(2);
        CHECK(broken(arrivals[0]));
        CHECK(arrivals[1].failed_with<std::domain_error>());
    }
    SECTION("when the last arrival drops out") {
        Arrival waiter = f.arrive();
        f.barrier->arrive_and_drop();
        f.poll();
        CHECK(waiter.succeeded());
    }
    SECTION("when the last party drops out and nothing else keeps it alive") {
        f.barrier.emplace(f.context->get_executor(), 1, completion);
        f.barrier->arrive_and_drop();
    }
    CHECK_FALSE(f.barrier);
}

TEST_CASE("barrier: a cancelled waiter is withdrawn as if it had never arrived", "[barrier][cancellation]") {
    Fixture f(2);
    Arrival cancelled = f.arrive();
    cancelled.cancel(any_cancellation());
    CHECK(f.barrier->waiting() == 0);  // at once
    Arrival b = f.start();             // arrives before the cancelled one has resumed
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

TEST_CASE("barrier: the others close up when one that waits is cancelled", "[barrier][cancellation]") {
    const std::size_t whom = GENERATE(0U, 1U, 2U);
    Fixture f(4);
    auto arrivals = f.arrive(3);
    arrivals[whom].cancel();
    CHECK(f.barrier->waiting() == 2);
    arrivals[whom].cancel();  // twice is once
    CHECK(f.barrier->waiting() == 2);
    arrivals.push_back(f.arrive());
    CHECK(f.barrier->phase() == 0);
    arrivals.push_back(f.arrive());
    CHECK(f.barrier->phase() == 1);
    CHECK(arrivals[whom].aborted());
    arrivals.erase(arrivals.begin() + static_cast<std::ptrdiff_t>(whom));
    CHECK(indices(arrivals) == Order{0, 1, 2, 3});
}

TEST_CASE("barrier: a wait that was cancelled stays cancelled when the phase completes before it resumes",
          "[barrier][cancellation]") {
    Fixture f(2);
    Arrival cancelled = f.arrive();
    cancelled.cancel();
    f.barrier->arrive_and_drop();
    f.barrier->arrive_and_drop();  // every party has arrived
    CHECK(f.barrier->phase() == 1);
    f.poll();
    CHECK(cancelled.aborted());
}

TEST_CASE("barrier: once the phase is complete cancellation is too late", "[barrier][cancellation]") {
    Fixture f(3);
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

TEST_CASE("barrier: cancellation from inside the completion function is too late", "[barrier][cancellation]") {
    std::vector<Arrival> arrivals;
    Fixture f(2, [&] { arrivals[0].cancel(); });
    arrivals.push_back(f.arrive());
    arrivals.push_back(f.arrive());
    CHECK(indices(arrivals) == Order{0, 1});
}

TEST_CASE("barrier: 100,000 parties of which every other one is cancelled", "[barrier][cancellation][stress]") {
    constexpr std::size_t n = 100'000;
    Fixture f(n);
    std::vector<Arrival> arrivals;
    arrivals.reserve(n);
    while (arrivals.size() != n - 1) {
        arrivals.push_back(f.start());
    }
    f.poll();
    for (std::size_t i = n - 1; i != 0; --i) {
        if (i % 2 == 0) {
            arrivals[i - 1].cancel();
        }
    }
    CHECK(f.barrier->waiting() == n / 2);
    f.poll();
    for (std::size_t i = 0; i != n / 2; ++i) {
        arrivals.push_back(f.start());
    }
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

TEST_CASE("barrier: abort ends every wait and every arrival until reset", "[barrier]") {
    Fixture f(3);
    const auto arrivals = f.arrive(2);
    f.barrier->abort();
    CHECK(f.barrier->broken());
    CHECK(f.barrier->waiting() == 0);
    f.poll();
    CHECK(broken(arrivals[0]));
    CHECK(broken(arrivals[1]));
    CHECK(broken(f.arrive()));
    CHECK_THROWS_AS(f.barrier->arrive_and_drop(), BrokenBarrier);
    CHECK(f.barrier->parties() == 3);  // nobody dropped out
    f.barrier->abort();
    CHECK(broken(f.arrive()));
    CHECK(f.barrier->phase() == 0);

    f.barrier->reset();
    CHECK_FALSE(f.barrier->broken());
    auto mended = f.arrive(3);
    CHECK(indices(mended) == Order{0, 1, 2});
    CHECK(f.barrier->phase() == 1);
}

TEST_CASE("barrier: reset ends every wait and begins the phase anew", "[barrier]") {
    Fixture f(3);
    const auto arrivals = f.arrive(2);
    f.barrier->reset();
    CHECK(f.barrier->waiting() == 0);
    CHECK_FALSE(f.barrier->broken());
    auto anew = f.arrive(2);  // arrive though those from before have yet to resume
    CHECK(broken(arrivals[0]));
    CHECK(broken(arrivals[1]));
    CHECK(f.barrier->waiting() == 2);
    CHECK(f.barrier->phase() == 0);
    anew.push_back(f.arrive());
    CHECK(indices(anew) == Order{0, 1, 2});
    CHECK(f.barrier->phase() == 1);
}

TEST_CASE("barrier: abort and reset leave those alone whose phase is complete", "[barrier]") {
    Fixture f(2);
    auto arrivals = f.arrive(1);
    arrivals.push_back(f.start_now());
    SECTION("abort") { f.barrier->abort(); }
    SECTION("reset") { f.barrier->reset(); }
    f.poll();
    CHECK(indices(arrivals) == Order{0, 1});
}

TEST_CASE("barrier: abort and reset with nobody there post nothing", "[barrier]") {
    Fixture f(2);
    f.barrier->abort();
    f.barrier->reset();
    CHECK(f.poll() == 0);
}

TEST_CASE("barrier: a wait that was cancelled and reset, in either order, is counted once", "[barrier][cancellation]") {
    Fixture f(2);
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

TEST_CASE("barrier: a party that drops out arrives without waiting and later phases need one fewer", "[barrier]") {
    Fixture f(3);
    auto arrivals = f.arrive(1);
    f.barrier->arrive_and_drop();
    CHECK(f.barrier->parties() == 2);
    CHECK(f.barrier->waiting() == 1);
    CHECK(f.barrier->phase() == 0);
    arrivals.push_back(f.arrive());
    CHECK(indices(arrivals) == Order{0, 1});  // who dropped out takes no index
    CHECK(f.barrier->phase() == 1);
    auto next = f.arrive(2);
    CHECK(indices(next) == Order{0, 1});
    CHECK(f.barrier->phase() == 2);
}

TEST_CASE("barrier: the last arrival of a phase may drop out", "[barrier]") {
    int completions = 0;
    Fixture f(3, [&] { ++completions; });
    auto arrivals = f.arrive(2);
    f.barrier->arrive_and_drop();
    CHECK(completions == 1);
    CHECK(f.barrier->phase() == 1);
    f.poll();
    CHECK(indices(arrivals) == Order{0, 1});
    auto next = f.arrive(2);
    CHECK(indices(next) == Order{0, 1});
    CHECK(completions == 2);
}

TEST_CASE("barrier: with every party dropped out later arrivals throw and never hang", "[barrier]") {
    int completions = 0;
    Fixture f(2, [&] { ++completions; });
    f.barrier->arrive_and_drop();
    CHECK(completions == 0);
    f.barrier->arrive_and_drop();
    CHECK(completions == 1);
    CHECK(f.barrier->phase() == 1);
    CHECK(f.barrier->parties() == 0);
    const auto check_refusal = [&] {
        CHECK(broken(f.arrive()));
        CHECK_THROWS_AS(f.barrier->arrive_and_drop(), BrokenBarrier);
        CHECK(f.barrier->parties() == 0);
        CHECK(f.barrier->waiting() == 0);
    };
    CHECK_FALSE(f.barrier->broken());
    check_refusal();
    f.barrier->reset();  // brings nobody back
    check_refusal();
    f.barrier->abort();
    check_refusal();
    CHECK(completions == 1);
}

TEST_CASE("barrier: a completion function that throws at a party that drops out", "[barrier]") {
    Fixture f(2, [] { throw std::domain_error("no"); });
    const Arrival waiter = f.arrive();
    CHECK_THROWS_AS(f.barrier->arrive_and_drop(), std::domain_error);
    CHECK(f.barrier->parties() == 1);  // it has dropped out
    CHECK(f.barrier->broken());
    CHECK(f.barrier->phase() == 0);
    f.poll();
    CHECK(broken(waiter));
}

TEST_CASE("barrier: parties that dropped out stay out after reset", "[barrier]") {
    Fixture f(3);
    const Arrival waiter = f.arrive();
    f.barrier->arrive_and_drop();
    f.barrier->reset();
    f.poll();
    CHECK(broken(waiter));
    CHECK(f.barrier->parties() == 2);
    auto anew = f.arrive(1);
    CHECK_FALSE(anew[0].done());
    anew.push_back(f.arrive());
    CHECK(indices(anew) == Order{0, 1});
}

TEST_CASE("barrier: a waiter that is cancelled after another party dropped out leaves one place open",
          "[barrier][cancellation]") {
    Fixture f(3);
    Arrival cancelled = f.arrive();
    f.barrier->arrive_and_drop();
    cancelled.cancel();
    auto arrivals = f.arrive(1);
    CHECK(cancelled.aborted());
    CHECK_FALSE(arrivals[0].done());
    arrivals.push_back(f.arrive());
    CHECK(indices(arrivals) == Order{0, 1});
}

TEST_CASE("barrier: whatever happens and when, its state agrees with a model of it",
          "[barrier][cancellation][stress]") {
    enum class End : std::uint8_t { none, passed, cancelled, broken };
    for (unsigned seed = 1; seed != 41; ++seed) {
        INFO("seed " << seed);
        std::mt19937 random(seed);
        const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
        Fixture f(6);
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
            const std::size_t what = below(40);
            if (what < 24) {
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
            } else if (what < 34) {
                if (!waiting.empty()) {
                    const auto at = waiting.begin() + static_cast<std::ptrdiff_t>(below(waiting.size()));
                    arrivals[*at].cancel();
                    ends[*at] = End::cancelled;
                    waiting.erase(at);
                    ++missing;
                }
            } else if (what < 35) {
                if (is_broken || parties == 0) {
                    REQUIRE_THROWS_AS(f.barrier->arrive_and_drop(), BrokenBarrier);
                } else {
                    f.barrier->arrive_and_drop();
                    --parties;
                    if (--missing == 0) {
                        complete();
                    }
                }
            } else if (what < 36) {
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

TEST_CASE("barrier: when it is destroyed each waiter ends with operation_aborted", "[barrier][shutdown]") {
    Fixture f(4);
    auto arrivals = f.arrive(3);
    arrivals[1].cancel();
    f.barrier = std::nullopt;
    arrivals[2].cancel();
    f.poll();
    CHECK(std::ranges::all_of(arrivals, [](const auto& arrival) { return arrival.aborted(); }));
}

TEST_CASE("barrier: a phase that is complete stays complete when it is destroyed", "[barrier][shutdown]") {
    Fixture f(2);
    auto arrivals = f.arrive(1);
    arrivals.push_back(f.start_now());
    f.barrier = std::nullopt;
    f.poll();
    CHECK(indices(arrivals) == Order{0, 1});
}

TEST_CASE("barrier: an arrival that is awaited after it was destroyed ends with operation_aborted",
          "[barrier][shutdown]") {
    Fixture f(1);
    f.barrier->abort();  // destroyed counts for more
    std::optional early = f.barrier->arrive_and_wait();
    const Task<> task(f.context->get_executor(),
                      [&]() -> asio::awaitable<void> { co_await *std::exchange(early, std::nullopt); });
    f.barrier = std::nullopt;
    f.poll();
    CHECK(task.aborted());
}

TEST_CASE("barrier: it needs an executor", "[barrier]") {
    CHECK_THROWS_WITH(Barrier(asio::any_io_executor(), 1), "Barrier: the executor must not be empty");
}

TEST_CASE("barrier: an arrival that is never awaited is none", "[barrier]") {
    Fixture f(1);
    {
        const asio::awaitable<std::size_t> never = f.barrier->arrive_and_wait();
    }
    CHECK(f.barrier->phase() == 0);
}

TEST_CASE("barrier: with its context destroyed it has no executor and nobody waits", "[barrier][shutdown]") {
    Fixture f(3);
    auto arrivals = f.arrive(2);
    SECTION("in the middle of a phase") {}
    SECTION("with those of a complete phase yet to resume") { arrivals.push_back(f.start_now()); }
    f.context = std::nullopt;
    CHECK_FALSE(f.barrier->get_executor());
    CHECK(f.barrier->waiting() == 0);
    f.barrier->abort();
    f.barrier->reset();
    f.barrier = std::nullopt;
    CHECK_FALSE(arrivals[0].done());
    CHECK_FALSE(arrivals[1].done());
}

namespace {

// Parties that meet three times, while one is cancelled and another drops out in its place.
struct Run {
    static constexpr std::size_t parties = 5;

    Run() {
        for (std::size_t i = 0; i != parties; ++i) {
            std::vector<asio::awaitable<std::size_t>> arrivals;
            for (int phase = 0; phase != 3; ++phase) {
                arrivals.push_back(barrier->arrive_and_wait());
            }
            tasks.emplace_back(context->get_executor(), [this, i, arrivals = std::move(arrivals)]() mutable {
                return work(i, std::move(arrivals));
            });
        }
        tasks.emplace_back(context->get_executor(), [this] { return disturb(); });
    }

    // Whether there was enough to do for so many steps.
    bool go(int steps) {
        while (steps != 0 && context->poll_one() != 0) {
            --steps;
        }
        return steps == 0;
    }

    asio::awaitable<void> work(std::size_t i, std::vector<asio::awaitable<std::size_t>> arrivals) {
        const Live alive(frames);
        for (asio::awaitable<std::size_t>& arrival : arrivals) {
            for (std::size_t turn = 0; turn != i; ++turn) {
                co_await test::yield();
            }
            co_await std::move(arrival);
        }
    }

    asio::awaitable<void> disturb() {
        const Live alive(frames);
        co_await test::yield();
        tasks[0].cancel();  // it waits
        if (barrier) {
            barrier->arrive_and_drop();
        }
    }

    int frames = 0;
    int completions = 0;
    std::vector<Task<>> tasks;
    std::optional<asio::io_context> context{std::in_place};
    std::optional<Barrier> barrier{std::in_place, context->get_executor(), std::ptrdiff_t{parties},
                                   [this] { ++completions; }};
};

}  // namespace

TEST_CASE("barrier: with its context destroyed it refuses at once, however many arrive in a row",
          "[barrier][shutdown]") {
    std::optional<asio::io_context> gone(std::in_place);
    Barrier barrier(gone->get_executor(), 2);
    gone = std::nullopt;
    asio::io_context context;
    int refused = 0;
    const Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (int i = 0; i != 1000; ++i) {
            try {
                co_await barrier.arrive_and_wait();
            } catch (const boost::system::system_error& error) {
                refused += error.code() == asio::error::operation_aborted;
            }
        }
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(refused == 1000);
}

TEST_CASE("barrier: its context may be destroyed before it, at every step of a run", "[barrier][shutdown]") {
    bool more = true;
    for (int steps = 0; more; ++steps) {
        INFO("after " << steps << " steps");
        Run run;
        more = run.go(steps);
        run.context = std::nullopt;
        CHECK(run.frames == 0);
        CHECK(run.barrier->waiting() == 0);
        CHECK_FALSE(run.barrier->get_executor());
        run.barrier = std::nullopt;
    }
}

TEST_CASE("barrier: it may be destroyed before its context, at every step of a run", "[barrier][shutdown]") {
    const bool runs_on = GENERATE(false, true);
    bool more = true;
    for (int steps = 0; more; ++steps) {
        INFO("after " << steps << " steps");
        Run run;
        more = run.go(steps);
        run.barrier = std::nullopt;
        if (runs_on) {  // and nobody hangs
            run.context->restart();
            run.context->poll();
            CHECK(std::ranges::all_of(run.tasks, [](const auto& task) { return task.succeeded() || task.aborted(); }));
        } else {
            run.context = std::nullopt;
        }
        CHECK(run.frames == 0);
    }
}

TEST_CASE("barrier: undisturbed, the run of the tests above completes every phase", "[barrier]") {
    Run run;
    run.context->poll();
    CHECK(run.tasks[0].aborted());
    CHECK(std::all_of(run.tasks.begin() + 1, run.tasks.end(), [](const auto& task) { return task.succeeded(); }));
    CHECK(run.completions == 3);
    CHECK(run.barrier->parties() == 4);
}

TEST_CASE("barrier: a waiter that dies with its context may cancel, abort and reset as it goes",
          "[barrier][shutdown]") {
    // The service of the strands, made after that of the barriers, goes first. After that Asio destroys frames at once,
    // while the barrier is still letting go of its waiters.
    Fixture f(1);
    std::vector<Arrival> arrivals;
    std::function<void()> last_act;
    std::size_t deaths = 0;
    std::optional<asio::strand<asio::io_context::executor_type>> strand = asio::make_strand(*f.context);
    Barrier barrier(*strand, 5);
    const auto die = [&] {
        ++deaths;
        last_act();
    };
    struct LastAct {
        explicit LastAct(const std::function<void()>& act) : function(act) {}
        ~LastAct() { function(); }
        LastAct(const LastAct&) = delete;
        LastAct& operator=(const LastAct&) = delete;
        std::function<void()> function;
    };
    for (int i = 0; i != 4; ++i) {
        arrivals.emplace_back(*strand, [&]() -> asio::awaitable<std::size_t> {
            const LastAct guard(die);
            co_return co_await barrier.arrive_and_wait();
        });
    }
    f.poll();
    REQUIRE(barrier.waiting() == 4);
    SECTION("cancel the others") {
        last_act = [&] {
            for (std::size_t i = deaths; i != arrivals.size(); ++i) {
                arrivals[i].cancel();
            }
        };
    }
    SECTION("abort") {
        last_act = [&] { barrier.abort(); };
    }
    SECTION("reset") {
        last_act = [&] { barrier.reset(); };
    }
    strand.reset();
    f.context = std::nullopt;
    CHECK(deaths == 4);
    CHECK(barrier.waiting() == 0);
    CHECK(std::ranges::none_of(arrivals, [](const auto& arrival) { return arrival.done(); }));
}

TEST_CASE("barrier: an exception that a resumed coroutine lets out into the loop loses no other waiter", "[barrier]") {
    struct Escaped {};
    const std::size_t thrower = GENERATE(0U, 1U, 2U);
    const bool on_strand = GENERATE(false, true);  // there the exception passes through whoever resumes; else past it
    asio::io_context context;
    const auto executor = on_strand ? asio::any_io_executor(asio::make_strand(context)) : context.get_executor();
    Barrier barrier(executor, 4);
    const auto arrive = [&]() -> asio::awaitable<std::size_t> { return barrier.arrive_and_wait(); };
    std::vector<Arrival> arrivals;
    for (std::size_t i = 0; i != 3; ++i) {
        if (i == thrower) {
            asio::co_spawn(executor, arrive, [](const std::exception_ptr&, std::size_t) { throw Escaped(); });
        } else {
            arrivals.emplace_back(executor, arrive);
        }
    }
    sluice::testing::run_until_stalled(context);
    barrier.arrive_and_drop();
    CHECK_THROWS_AS(sluice::testing::run(context), Escaped);
    sluice::testing::run(context);
    CHECK(arrivals[0].succeeded());
    CHECK(arrivals[1].succeeded());
    for (int i = 0; i != 3; ++i) {  // and it works as before
        arrivals.emplace_back(executor, arrive);
    }
    sluice::testing::run(context);
    CHECK(std::ranges::all_of(arrivals, [](const auto& arrival) { return arrival.succeeded(); }));
}

TEST_CASE("barrier: 100,000 parties are released at once, in order and without stack growth", "[barrier][stress]") {
    constexpr std::size_t n = 100'000;
    Fixture f(n);
    Order in_order;
    test::StackSpan stack;
    const auto party = [&]() -> asio::awaitable<void> {
        for (int phase = 0; phase != 2; ++phase) {
            const std::size_t index = co_await f.barrier->arrive_and_wait();
            if (index != n - 1) {  // the last arrival was not resumed
                in_order.push_back(index);
                stack.touch();
            }
        }
    };
    for (std::size_t i = 0; i != n; ++i) {
        asio::co_spawn(f.context->get_executor(), party, asio::detached);
    }
    f.poll();
    CHECK(f.barrier->phase() == 2);
    Order expected = first_numbers(n - 1);
    expected.insert(expected.end(), expected.begin(), expected.begin() + static_cast<std::ptrdiff_t>(n - 1));
    CHECK(bool(in_order == expected));  // too long to print
    CHECK(stack.size() < 4096);
}

namespace {

template <class Executor>
asio::awaitable<void, Executor> typed_party(Barrier& barrier, Order& order) {
    order.push_back(co_await barrier.arrive_and_wait());
    co_await asio::post(asio::deferred);
}

using TypedExecutor = asio::io_context::executor_type;
static_assert(std::is_convertible_v<Barrier::Arrival, asio::awaitable<std::size_t, TypedExecutor>>);

}  // namespace

TEST_CASE("barrier: coroutines with a typed executor can wait, pass and be cancelled", "[barrier][typed]") {
    Fixture f(3);
    asio::cancellation_signal signal;
    std::vector<std::exception_ptr> ends;
    Order order;
    const auto note_end = [&](const std::exception_ptr& error) { ends.push_back(error); };
    const TypedExecutor executor = f.context->get_executor();
    asio::co_spawn(executor, typed_party<TypedExecutor>(*f.barrier, order),
                   asio::bind_cancellation_slot(signal.slot(), note_end));
    asio::co_spawn(executor, typed_party<TypedExecutor>(*f.barrier, order), note_end);
    f.poll();
    signal.emit(asio::cancellation_type::terminal);
    f.poll();
    REQUIRE(ends.size() == 1);
    CHECK(ends[0] != nullptr);
    Arrival untyped = f.arrive();  // at the same barrier
    asio::co_spawn(executor, typed_party<TypedExecutor>(*f.barrier, order), note_end);
    f.poll();
    CHECK(order == Order{2, 0});
    CHECK(untyped.value() == 1);
    CHECK(ends.size() == 3);
}

TEST_CASE("barrier: coroutines with a typed executor are dropped with their context", "[barrier][typed][shutdown]") {
    Fixture f(2);
    Order order;
    asio::co_spawn(f.context->get_executor(), typed_party<TypedExecutor>(*f.barrier, order), asio::detached);
    f.poll();
    REQUIRE(f.barrier->waiting() == 1);
    f.context = std::nullopt;
    CHECK(f.barrier->waiting() == 0);
    CHECK(order.empty());
}
