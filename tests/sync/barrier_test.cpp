// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/barrier.hpp>
#include <sluice/testing/run.hpp>

#include "support/barrier_fixture.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"
#include "support/waiters.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <functional>
#include <limits>
#include <optional>
#include <random>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <vector>

namespace {

namespace asio = boost::asio;
using Catch::Matchers::ContainsSubstring;
using Catch::Matchers::MessageMatches;
using sluice::Barrier;
using sluice::BrokenBarrier;
using test::Arrival;
using test::BarrierFixture;
using test::broken;
using test::first_numbers;
using test::indices;
using test::Order;
using test::Task;

static_assert(!std::is_copy_constructible_v<Barrier> && !std::is_move_constructible_v<Barrier>);
static_assert(!std::is_copy_assignable_v<Barrier> && !std::is_move_assignable_v<Barrier>);
static_assert(std::is_base_of_v<std::runtime_error, BrokenBarrier>);
static_assert(std::is_convertible_v<Barrier::Arrival, asio::awaitable<std::size_t>>);
static_assert(!std::is_copy_constructible_v<Barrier::Arrival>);

}  // namespace

TEST_CASE("barrier: a new barrier is in phase 0 and not broken", "[barrier]") {
    BarrierFixture f(3);
    CHECK(f.barrier->parties() == 3);
    CHECK(f.barrier->waiting() == 0);
    CHECK(f.barrier->phase() == 0);
    CHECK_FALSE(f.barrier->broken());
    CHECK(f.barrier->get_executor() == asio::any_io_executor(f.context->get_executor()));
}

TEST_CASE("barrier: fewer than one party throws, and the message names the value", "[barrier]") {
    asio::io_context context;
    const auto parties = GENERATE(std::ptrdiff_t{0}, std::ptrdiff_t{-1}, std::numeric_limits<std::ptrdiff_t>::min());
    CHECK_THROWS_MATCHES(Barrier(context.get_executor(), parties), std::invalid_argument,
                         MessageMatches(ContainsSubstring("got " + std::to_string(parties))));
}

TEST_CASE("barrier: no party leaves a phase until every party has arrived", "[barrier]") {
    BarrierFixture f(3);
    auto arrivals = f.arrive(2);
    CHECK(f.barrier->waiting() == 2);
    CHECK(f.barrier->phase() == 0);
    CHECK(f.order.empty());
    arrivals.push_back(f.arrive());
    CHECK(f.barrier->waiting() == 0);
    CHECK(f.barrier->phase() == 1);
    CHECK(indices(arrivals) == Order{0, 1, 2});
}

TEST_CASE("barrier: the last arrival continues without suspending, the others resume through the executor in order",
          "[barrier]") {
    BarrierFixture f(4);
    auto arrivals = f.arrive(3);
    arrivals.push_back(f.start_now());
    CHECK(f.order == Order{3});
    CHECK(f.barrier->phase() == 1);
    CHECK(f.barrier->waiting() == 0);
    CHECK(f.context->poll_one() == 1);  // a coroutine that never suspended completes in a handler of its own
    CHECK(f.order == Order{3, 0, 1, 2});
    f.poll();
    CHECK(indices(arrivals) == first_numbers(4));
}

TEST_CASE("barrier: a call that ends a wait does not resume the waiter itself", "[barrier]") {
    BarrierFixture f(2);
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
    BarrierFixture f(3);
    auto slow = f.arrive(2);
    Order fast;
    const Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        fast.push_back(co_await f.barrier->arrive_and_wait());
        fast.push_back(co_await f.barrier->arrive_and_wait());
    });
    f.context->poll_one();
    CHECK(fast == Order{2});
    CHECK(f.barrier->waiting() == 1);  // already in phase 1
    CHECK(f.order.empty());
    f.poll();
    CHECK(indices(slow) == Order{0, 1});
    CHECK_FALSE(task.done());
    auto next = f.arrive(2);
    CHECK(fast == Order{2, 0});
    CHECK(indices(next) == Order{1, 2});
    CHECK(f.barrier->phase() == 2);
}

TEST_CASE("barrier: over 1000 phases each party gets its own index, and none is two phases ahead",
          "[barrier][stress]") {
    constexpr std::size_t parties = 7;
    constexpr std::size_t phases = 1000;
    std::size_t completions = 0;
    BarrierFixture f(parties, [&] { ++completions; });
    std::mt19937 random(1);
    std::vector<std::size_t> arrived(parties, 0);  // the number of arrivals of each party
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
    CHECK(std::ranges::all_of(tasks, &Task<>::succeeded));
    CHECK(in_order);
    CHECK(in_step);
    CHECK(next_index == std::vector<std::size_t>(phases, parties));
    CHECK(f.barrier->phase() == phases);
    CHECK(completions == phases);
}

TEST_CASE("barrier: with one party no arrival waits", "[barrier]") {
    std::uint64_t completions = 0;
    BarrierFixture f(1, [&] { ++completions; });
    Order seen;
    const Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        for (int i = 0; i != 1000; ++i) {
            seen.push_back(co_await f.barrier->arrive_and_wait());
        }
    });
    f.context->poll_one();
    CHECK(seen.size() > 10);    // completes immediately
    CHECK(seen.size() < 1000);  // but lets other handlers run now and then
    f.poll();
    CHECK(bool(seen == Order(1000, 0)));
    CHECK(f.barrier->phase() == 1000);
    CHECK(completions == 1000);
}

TEST_CASE("barrier: the completion function runs once per phase, at the last arrival, before any party continues",
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
                log.push_back(name + " continues");
            }
        });
    };
    const Task<> a = party("a");
    const Task<> b = party("b");
    context.poll();
    CHECK(log == std::vector<std::string>{"a arrives", "b arrives", "phase 0", "b continues", "b arrives",
                                          "a continues", "a arrives", "phase 1", "a continues", "b continues"});
    CHECK(barrier->phase() == 2);
}

TEST_CASE("barrier: a completion function that throws breaks the barrier and leaves no party suspended", "[barrier]") {
    bool throws = true;
    BarrierFixture f(3, [&] {
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

TEST_CASE("barrier: the completion function may throw something other than a std::exception", "[barrier]") {
    BarrierFixture f(2, [] { throw 42; });
    const auto arrivals = f.arrive(2);
    CHECK(broken(arrivals[0]));
    CHECK(arrivals[1].failed_with<int>());
    CHECK(f.barrier->broken());
}

TEST_CASE("barrier: a completion function that throws also breaks the arrivals made inside it", "[barrier]") {
    std::function<void()> completion;
    BarrierFixture f(2, [&] { completion(); });
    std::optional<Arrival> early;
    completion = [&] {
        f.barrier->reset();  // does not prevent a later break
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

TEST_CASE("barrier: abort inside the completion function applies to the next phase", "[barrier]") {
    std::function<void()> completion;
    BarrierFixture f(2, [&] { completion(); });
    completion = [&] { f.barrier->abort(); };
    auto arrivals = f.arrive(2);
    CHECK(indices(arrivals) == Order{0, 1});
    CHECK(f.barrier->phase() == 1);
    CHECK(f.barrier->broken());
    CHECK(broken(f.arrive()));
}

TEST_CASE("barrier: reset inside the completion function applies to the next phase", "[barrier]") {
    std::function<void()> completion;
    BarrierFixture f(2, [&] { completion(); });
    completion = [&] { f.barrier->reset(); };
    auto arrivals = f.arrive(2);
    CHECK(indices(arrivals) == Order{0, 1});
    CHECK(f.barrier->phase() == 1);
    CHECK_FALSE(f.barrier->broken());
    auto next = f.arrive(2);
    CHECK(indices(next) == Order{0, 1});
}

TEST_CASE("barrier: arrivals inside the completion function belong to the next phase", "[barrier]") {
    std::function<void()> completion;
    BarrierFixture f(2, [&] { completion(); });
    std::vector<Arrival> next;
    int completions = 0;
    completion = [&] {
        if (++completions == 1) {
            next.push_back(f.start());  // begins at once, since the loop is running
            CHECK(f.barrier->waiting() == 1);
        }
    };
    SECTION("they wait until it is complete") {
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
    SECTION("abort ends them") {
        completion = [&, first = completion] {
            first();
            f.barrier->abort();
        };
        auto arrivals = f.arrive(2);
        CHECK(indices(arrivals) == Order{0, 1});
        CHECK(broken(next[0]));
    }
    SECTION("reset ends them") {
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

TEST_CASE("barrier: a party may drop out inside the completion function", "[barrier]") {
    std::function<void()> completion;
    BarrierFixture f(3, [&] { completion(); });
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

TEST_CASE("barrier: abort ends every wait and every arrival until reset", "[barrier]") {
    BarrierFixture f(3);
    const auto arrivals = f.arrive(2);
    f.barrier->abort();
    CHECK(f.barrier->broken());
    CHECK(f.barrier->waiting() == 0);
    f.poll();
    CHECK(broken(arrivals[0]));
    CHECK(broken(arrivals[1]));
    CHECK(broken(f.arrive()));
    CHECK_THROWS_AS(f.barrier->arrive_and_drop(), BrokenBarrier);
    CHECK(f.barrier->parties() == 3);  // the party has not dropped out
    f.barrier->abort();
    CHECK(broken(f.arrive()));
    CHECK(f.barrier->phase() == 0);

    f.barrier->reset();
    CHECK_FALSE(f.barrier->broken());
    auto repaired = f.arrive(3);
    CHECK(indices(repaired) == Order{0, 1, 2});
    CHECK(f.barrier->phase() == 1);
}

TEST_CASE("barrier: reset ends every wait and restarts the phase", "[barrier]") {
    BarrierFixture f(3);
    const auto arrivals = f.arrive(2);
    f.barrier->reset();
    CHECK(f.barrier->waiting() == 0);
    CHECK_FALSE(f.barrier->broken());
    auto next = f.arrive(2);  // before the earlier waiters have resumed
    CHECK(broken(arrivals[0]));
    CHECK(broken(arrivals[1]));
    CHECK(f.barrier->waiting() == 2);
    CHECK(f.barrier->phase() == 0);
    next.push_back(f.arrive());
    CHECK(indices(next) == Order{0, 1, 2});
    CHECK(f.barrier->phase() == 1);
}

TEST_CASE("barrier: abort and reset do not affect waiters whose phase is complete", "[barrier]") {
    BarrierFixture f(2);
    auto arrivals = f.arrive(1);
    arrivals.push_back(f.start_now());
    SECTION("abort") { f.barrier->abort(); }
    SECTION("reset") { f.barrier->reset(); }
    f.poll();
    CHECK(indices(arrivals) == Order{0, 1});
}

TEST_CASE("barrier: abort and reset post nothing if no party waits", "[barrier]") {
    BarrierFixture f(2);
    f.barrier->abort();
    f.barrier->reset();
    CHECK(f.poll() == 0);
}

TEST_CASE("barrier: a party that drops out arrives without waiting, and later phases need one party fewer",
          "[barrier]") {
    BarrierFixture f(3);
    auto arrivals = f.arrive(1);
    f.barrier->arrive_and_drop();
    CHECK(f.barrier->parties() == 2);
    CHECK(f.barrier->waiting() == 1);
    CHECK(f.barrier->phase() == 0);
    arrivals.push_back(f.arrive());
    CHECK(indices(arrivals) == Order{0, 1});  // a party that dropped out takes no index
    CHECK(f.barrier->phase() == 1);
    auto next = f.arrive(2);
    CHECK(indices(next) == Order{0, 1});
    CHECK(f.barrier->phase() == 2);
}

TEST_CASE("barrier: the last arrival of a phase may drop out", "[barrier]") {
    int completions = 0;
    BarrierFixture f(3, [&] { ++completions; });
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

TEST_CASE("barrier: once every party has dropped out, later arrivals throw instead of waiting", "[barrier]") {
    int completions = 0;
    BarrierFixture f(2, [&] { ++completions; });
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
    f.barrier->reset();  // brings no party back
    check_refusal();
    f.barrier->abort();
    check_refusal();
    CHECK(completions == 1);
}

TEST_CASE("barrier: the completion function may throw when a party drops out", "[barrier]") {
    BarrierFixture f(2, [] { throw std::domain_error("no"); });
    const Arrival waiter = f.arrive();
    CHECK_THROWS_AS(f.barrier->arrive_and_drop(), std::domain_error);
    CHECK(f.barrier->parties() == 1);  // it has dropped out
    CHECK(f.barrier->broken());
    CHECK(f.barrier->phase() == 0);
    f.poll();
    CHECK(broken(waiter));
}

TEST_CASE("barrier: parties that dropped out stay out after reset", "[barrier]") {
    BarrierFixture f(3);
    const Arrival waiter = f.arrive();
    f.barrier->arrive_and_drop();
    f.barrier->reset();
    f.poll();
    CHECK(broken(waiter));
    CHECK(f.barrier->parties() == 2);
    auto next = f.arrive(1);
    CHECK_FALSE(next[0].done());
    next.push_back(f.arrive());
    CHECK(indices(next) == Order{0, 1});
}

TEST_CASE("barrier: an empty executor is rejected", "[barrier]") {
    CHECK_THROWS_WITH(Barrier(asio::any_io_executor(), 1), "Barrier: the executor must not be empty");
}

TEST_CASE("barrier: an arrival that is never awaited does not count", "[barrier]") {
    BarrierFixture f(1);
    {
        const asio::awaitable<std::size_t> never = f.barrier->arrive_and_wait();
    }
    CHECK(f.barrier->phase() == 0);
}

TEST_CASE("barrier: an exception that escapes from a resumed coroutine into the loop loses no other waiter",
          "[barrier]") {
    const std::size_t thrower = GENERATE(0U, 1U, 2U);
    const bool on_strand = GENERATE(false, true);  // where the exception passes through the resuming function
    asio::io_context context;
    const auto executor = on_strand ? asio::any_io_executor(asio::make_strand(context)) : context.get_executor();
    Barrier barrier(executor, 4);
    const auto arrive = [&]() -> asio::awaitable<std::size_t> { return barrier.arrive_and_wait(); };
    std::vector<Arrival> arrivals = test::start_three<std::size_t>(executor, arrive, thrower);
    sluice::testing::run_until_stalled(context);
    barrier.arrive_and_drop();
    CHECK_THROWS_AS(sluice::testing::run(context), test::Escaped);
    sluice::testing::run(context);
    CHECK(arrivals[0].succeeded());
    CHECK(arrivals[1].succeeded());
    for (int i = 0; i != 3; ++i) {  // the barrier still works
        arrivals.emplace_back(executor, arrive);
    }
    sluice::testing::run(context);
    CHECK(std::ranges::all_of(arrivals, &Arrival::succeeded));
}

TEST_CASE("barrier: 100,000 parties are released at once, in order and without stack growth", "[barrier][stress]") {
    constexpr std::size_t n = 100'000;
    BarrierFixture f(n);
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
    BarrierFixture f(3);
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

TEST_CASE("barrier: coroutines with a typed executor are destroyed with their context", "[barrier][typed][shutdown]") {
    BarrierFixture f(2);
    Order order;
    asio::co_spawn(f.context->get_executor(), typed_party<TypedExecutor>(*f.barrier, order), asio::detached);
    f.poll();
    REQUIRE(f.barrier->waiting() == 1);
    f.context = std::nullopt;
    CHECK(f.barrier->waiting() == 0);
    CHECK(order.empty());
}
