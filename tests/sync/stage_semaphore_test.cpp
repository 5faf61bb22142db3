// SPDX-License-Identifier: BSL-1.0
#include <sluice/stage_error.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timeout.hpp>
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
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers_exception.hpp>
#include <catch2/matchers/catch_matchers_string.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <functional>
#include <limits>
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
using sluice::Slot;
using sluice::StageSemaphore;
using test::any_cancellation;
using test::first_numbers;
using test::Live;
using test::StackSpan;
using test::Task;
using Order = std::vector<std::size_t>;

static_assert(!std::is_copy_constructible_v<Slot> && !std::is_copy_assignable_v<Slot>);
static_assert(std::is_nothrow_default_constructible_v<Slot>);
static_assert(std::is_nothrow_move_constructible_v<Slot> && std::is_nothrow_move_assignable_v<Slot>);
static_assert(!std::is_convertible_v<Slot, bool> && std::is_constructible_v<bool, Slot>);
static_assert(!std::is_copy_constructible_v<StageSemaphore> && !std::is_move_constructible_v<StageSemaphore>);
static_assert(!std::is_copy_assignable_v<StageSemaphore> && !std::is_move_assignable_v<StageSemaphore>);
static_assert(std::is_convertible_v<StageSemaphore::Acquisition, asio::awaitable<Slot>>);
static_assert(!std::is_copy_constructible_v<StageSemaphore::Acquisition>);
// Nothing but a coroutine that awaits it keeps an acquisition alive.
static_assert(!std::is_invocable_v<StageSemaphore::Acquisition, asio::use_future_t<>>);
static_assert(!std::is_invocable_v<StageSemaphore::Acquisition, asio::detached_t>);
static_assert(!std::is_invocable_v<StageSemaphore::Acquisition, void (*)(std::exception_ptr, Slot)>);

// A semaphore and its context, each of which a test may destroy first. Nothing runs but when the test polls.
struct Fixture {
    explicit Fixture(std::ptrdiff_t limit) : semaphore(std::in_place, context->get_executor(), limit) {}

    std::size_t poll() {
        context->restart();
        return context->poll();
    }

    // Starts a coroutine that acquires a slot, and goes as far as it can. Its number goes into `order` when it has one.
    Task<Slot> acquire() {
        Task<Slot> task = start();
        poll();
        return task;
    }

    std::vector<Task<Slot>> acquire(std::size_t n) {
        std::vector<Task<Slot>> tasks;
        while (tasks.size() != n) {
            tasks.push_back(acquire());
        }
        return tasks;
    }

    // The same, without a poll: it begins after what was posted before.
    Task<Slot> start() {
        return {context->get_executor(), [this, number = started++]() -> asio::awaitable<Slot> {
                    Slot slot = co_await semaphore->acquire();
                    order.push_back(number);
                    co_return slot;
                }};
    }

    bool counts(std::ptrdiff_t active, std::size_t waiting) const {
        return semaphore->active() == active && semaphore->waiting() == waiting;
    }

    std::size_t started = 0;
    Order order;
    std::optional<asio::io_context> context{std::in_place};
    std::optional<StageSemaphore> semaphore;
};

asio::awaitable<bool> was_served(StageSemaphore& semaphore) {
    try {
        const Slot slot = co_await semaphore.acquire();
        co_return true;
    } catch (const boost::system::system_error&) {
        co_return false;
    }
}

}  // namespace

TEST_CASE("semaphore: a new one has all its slots", "[semaphore]") {
    Fixture f(3);
    CHECK(f.semaphore->limit() == 3);
    CHECK(f.counts(0, 0));
    CHECK(f.semaphore->get_executor() == asio::any_io_executor(f.context->get_executor()));
}

TEST_CASE("semaphore: a negative limit throws, names the value, and changes nothing", "[semaphore]") {
    asio::io_context context;
    const auto limit = GENERATE(std::ptrdiff_t{-1}, std::ptrdiff_t{-7}, std::numeric_limits<std::ptrdiff_t>::min());
    const auto names_value = MessageMatches(ContainsSubstring(std::to_string(limit)));
    CHECK_THROWS_MATCHES(StageSemaphore(context.get_executor(), limit), std::invalid_argument, names_value);

    Fixture f(1);
    const auto tasks = f.acquire(2);
    CHECK_THROWS_MATCHES(f.semaphore->set_limit(limit), std::invalid_argument, names_value);
    CHECK(f.semaphore->limit() == 1);
    CHECK(f.counts(1, 1));
    CHECK(f.poll() == 0);
}

TEST_CASE("semaphore: acquire goes on without suspending when a slot is free", "[semaphore]") {
    Fixture f(1);
    bool others_had_a_turn = true;
    const Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        bool had_a_turn = false;
        asio::post(*f.context, [&] { had_a_turn = true; });
        const Slot slot = co_await f.semaphore->acquire();
        others_had_a_turn = had_a_turn;
        co_await test::yield();
    });
    f.poll();
    CHECK(task.succeeded());
    CHECK_FALSE(others_had_a_turn);
}

TEST_CASE("semaphore: no more coroutines get a slot than the limit says", "[semaphore]") {
    Fixture f(3);
    const auto tasks = f.acquire(5);
    CHECK(f.counts(3, 2));
    CHECK(f.order == Order{0, 1, 2});
    CHECK(tasks[2].succeeded());
    CHECK_FALSE(tasks[3].done());
}

TEST_CASE("semaphore: a slot goes back when it is released, destroyed, or assigned to", "[semaphore]") {
    Fixture f(2);
    std::optional<Slot> slot = f.semaphore->try_acquire();
    REQUIRE(*slot);
    REQUIRE(f.counts(1, 0));
    SECTION("released") {
        slot->release();
        CHECK_FALSE(*slot);
    }
    SECTION("destroyed") { slot.reset(); }
    SECTION("assigned an empty one") {
        *slot = Slot();
        CHECK_FALSE(*slot);
    }
    SECTION("assigned another one") {
        Slot other = f.semaphore->try_acquire();
        CHECK(f.counts(2, 0));
        *slot = std::move(other);
        CHECK(*slot);
        CHECK(f.counts(1, 0));
        slot.reset();
    }
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: an empty slot is worth nothing", "[semaphore]") {
    Slot empty;
    CHECK_FALSE(empty);
    empty.release();
    CHECK_FALSE(empty);

    Fixture f(1);
    Slot slot = f.semaphore->try_acquire();
    slot.release();
    slot.release();  // twice
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a slot that moves is still one slot", "[semaphore]") {
    Fixture f(2);
    Slot first = f.semaphore->try_acquire();
    Slot second(std::move(first));
    CHECK_FALSE(first);  // NOLINT(bugprone-use-after-move)
    CHECK(second);
    first = std::move(second);
    CHECK(first);
    CHECK_FALSE(second);  // NOLINT(bugprone-use-after-move)
    Slot& same = first;
    first = std::move(same);
    CHECK(first);
    CHECK(f.counts(1, 0));
    std::swap(first, second);
    CHECK(second);
    CHECK(f.counts(1, 0));
    second.release();
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: strictly first come, first served", "[semaphore]") {
    Fixture f(3);
    auto tasks = f.acquire(100);
    for (std::size_t i = 0; i != tasks.size(); ++i) {
        REQUIRE(tasks[i].succeeded());
        tasks[i].value().release();
        if (i % 4 != 0) {  // at times several are granted before one resumes
            f.poll();
        }
    }
    f.poll();
    CHECK(f.order == first_numbers(100));
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a holder that releases and acquires again at once does not overtake", "[semaphore]") {
    Fixture f(1);
    Order order;
    const auto visit_twice = [&](std::size_t number) {
        return Task<>(f.context->get_executor(), [&f, &order, number]() -> asio::awaitable<void> {
            Slot slot = co_await f.semaphore->acquire();
            order.push_back(number);
            co_await test::yield();
            slot.release();
            slot = co_await f.semaphore->acquire();
            order.push_back(number);
        });
    };
    const std::vector tasks{visit_twice(0), visit_twice(1), visit_twice(2)};
    f.poll();
    CHECK(order == Order{0, 1, 2, 0, 1, 2});
}

TEST_CASE("semaphore: a newcomer does not overtake a waiter that was granted a slot and has yet to resume",
          "[semaphore]") {
    Fixture f(1);
    Slot held = f.semaphore->try_acquire();
    const auto waiter = f.acquire();
    const auto newcomer = f.start();  // begins before the waiter is resumed
    held.release();
    CHECK(f.counts(1, 0));
    CHECK_FALSE(f.semaphore->try_acquire());
    f.poll();
    CHECK(f.order == Order{0});
    CHECK(waiter.succeeded());
    CHECK_FALSE(newcomer.done());
    CHECK(f.counts(1, 1));
}

TEST_CASE("semaphore: try_acquire takes a free slot, and gives an empty one when none is free", "[semaphore]") {
    Fixture f(1);
    const Slot slot = f.semaphore->try_acquire();
    CHECK(slot);
    CHECK(f.counts(1, 0));
    CHECK_FALSE(f.semaphore->try_acquire());
    CHECK(f.counts(1, 0));
}

TEST_CASE("semaphore: try_acquire gives an empty slot as long as anyone waits", "[semaphore]") {
    Fixture f(1);
    auto tasks = f.acquire(3);
    for (Task<Slot>& task : tasks) {
        CHECK_FALSE(f.semaphore->try_acquire());
        task.value().release();
        CHECK(f.semaphore->try_acquire().operator bool() == (&task == &tasks.back()));
        f.poll();
    }
}

TEST_CASE("semaphore: limit 0 means paused", "[semaphore]") {
    Fixture f(0);
    auto tasks = f.acquire(2);
    CHECK_FALSE(f.semaphore->try_acquire());
    CHECK(f.counts(0, 2));
    CHECK(f.order.empty());
    f.semaphore->set_limit(1);
    f.poll();
    CHECK(f.order == Order{0});

    f.semaphore->set_limit(0);  // paused again, with a slot out
    CHECK(f.counts(1, 1));
    tasks[0].value().release();
    f.poll();
    CHECK(f.counts(0, 1));
    CHECK(f.order == Order{0});
}

TEST_CASE("semaphore: raising the limit wakes exactly as many as there are new slots", "[semaphore]") {
    Fixture f(1);
    const auto tasks = f.acquire(6);
    f.semaphore->set_limit(3);
    CHECK(f.semaphore->limit() == 3);
    CHECK(f.counts(3, 3));  // at once
    CHECK(f.order == Order{0});
    f.poll();
    CHECK(f.order == Order{0, 1, 2});
    f.semaphore->set_limit(3);
    CHECK(f.poll() == 0);
    f.semaphore->set_limit(100);
    f.poll();
    CHECK(f.order == first_numbers(6));
    CHECK(f.counts(6, 0));
}

TEST_CASE("semaphore: lowering the limit takes no slot away and is honest again as slots come back", "[semaphore]") {
    Fixture f(4);
    auto tasks = f.acquire(6);
    f.semaphore->set_limit(2);
    CHECK(f.semaphore->limit() == 2);
    CHECK(f.counts(4, 2));
    CHECK(std::all_of(tasks.begin(), tasks.begin() + 4, [](auto& task) { return bool(task.value()); }));
    CHECK_FALSE(f.semaphore->try_acquire());

    for (const std::size_t i : {0U, 1U}) {  // 4 and 3 are above the limit
        tasks[i].value().release();
        CHECK(f.poll() == 0);
    }
    CHECK(f.counts(2, 2));
    tasks[2].value().release();
    f.poll();
    CHECK(f.order == Order{0, 1, 2, 3, 4});
    CHECK(f.counts(2, 1));
}

TEST_CASE("semaphore: raising a limit that stays at or below active wakes nobody", "[semaphore]") {
    Fixture f(4);
    const auto tasks = f.acquire(6);
    f.semaphore->set_limit(1);
    f.semaphore->set_limit(4);
    CHECK(f.counts(4, 2));
    CHECK(f.poll() == 0);
    f.semaphore->set_limit(5);
    CHECK(f.counts(5, 1));
}

TEST_CASE("semaphore: nothing that ends a wait resumes the waiter itself", "[semaphore]") {
    Fixture f(1);
    Slot held = f.semaphore->try_acquire();
    Task<Slot> waiter = f.acquire();
    SECTION("release") { held.release(); }
    SECTION("the slot's destructor") { held = Slot(); }
    SECTION("set_limit") { f.semaphore->set_limit(2); }
    SECTION("close") { f.semaphore->close(); }
    SECTION("the semaphore's destructor") { f.semaphore = std::nullopt; }
    SECTION("cancellation") { waiter.cancel(); }
    CHECK_FALSE(waiter.done());
    CHECK(f.order.empty());
    f.poll();
    CHECK(waiter.done());
}

TEST_CASE("semaphore: a coroutine that releases goes on before the one that gets its slot", "[semaphore]") {
    Fixture f(1);
    std::vector<std::string> log;
    const Task<> holder(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        Slot slot = co_await f.semaphore->acquire();
        co_await test::yield();
        log.emplace_back("before");
        slot.release();
        log.emplace_back("after");
    });
    const Task<> waiter(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        const Slot slot = co_await f.semaphore->acquire();
        log.emplace_back("waiter");
    });
    f.poll();
    CHECK(log == std::vector<std::string>{"before", "after", "waiter"});
}

TEST_CASE("semaphore: a burst of slots that come back posts one handler", "[semaphore]") {
    Fixture f(3);
    auto tasks = f.acquire(6);
    for (const std::size_t i : {0U, 1U, 2U}) {
        tasks[i].value().release();
    }
    CHECK(f.context->poll_one() == 1);
    CHECK(f.order == first_numbers(6));
    CHECK(f.context->poll() == 0);

    tasks[3].value().release();  // with nobody to wake: none at all
    CHECK(f.poll() == 0);
}

TEST_CASE("semaphore: a waiter that is woken by one that was just resumed lets other handlers have their turn",
          "[semaphore]") {
    Fixture f(1);
    auto tasks = f.acquire(1);
    const auto hand_on = [&] {
        return Task<>(f.context->get_executor(), [&f]() -> asio::awaitable<void> {
            const Slot slot = co_await f.semaphore->acquire();
            f.order.push_back(1);
        });
    };
    const std::vector waiters{hand_on(), hand_on()};
    f.poll();
    tasks[0].value().release();
    asio::post(*f.context, [&] { f.order.push_back(7); });
    f.poll();
    CHECK(f.order == Order{0, 1, 7, 1});
}

TEST_CASE("semaphore: a cancelled waiter leaves the queue and the others keep their places",
          "[semaphore][cancellation]") {
    const auto type = any_cancellation();
    const std::size_t whom = GENERATE(1U, 2U, 3U);
    Fixture f(1);
    auto tasks = f.acquire(4);
    tasks[whom].cancel(type);
    CHECK(f.counts(1, 2));  // at once
    f.poll();
    CHECK(tasks[whom].aborted());
    f.semaphore->set_limit(4);
    f.poll();
    Order others = first_numbers(4);
    std::erase(others, whom);
    CHECK(f.order == others);
    CHECK(f.counts(3, 0));
}

TEST_CASE("semaphore: cancelling the only waiter leaves the slot for the next to ask", "[semaphore][cancellation]") {
    Fixture f(1);
    Slot held = f.semaphore->try_acquire();
    Task<Slot> waiter = f.acquire();
    waiter.cancel(any_cancellation());
    held.release();  // before the cancelled one has resumed
    CHECK(f.counts(0, 0));
    CHECK(f.semaphore->try_acquire());
    f.poll();
    CHECK(waiter.aborted());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a cancelled waiter that acquires again has lost its place", "[semaphore][cancellation]") {
    Fixture f(0);
    Task<> impatient(f.context->get_executor(), [&f]() -> asio::awaitable<void> {
        const bool served = co_await was_served(*f.semaphore);
        CHECK_FALSE(served);
        co_await asio::this_coro::reset_cancellation_state();
        const Slot slot = co_await f.semaphore->acquire();
        f.order.push_back(77);
    });
    const auto patient = f.acquire(2);
    impatient.cancel(any_cancellation());
    f.poll();
    CHECK(f.counts(0, 3));
    f.semaphore->set_limit(3);
    f.poll();
    CHECK(f.order == Order{0, 1, 77});
    CHECK(impatient.succeeded());
}

TEST_CASE("semaphore: a slot granted to a waiter that is cancelled before it resumes goes to the next",
          "[semaphore][cancellation]") {
    const auto type = any_cancellation();
    Fixture f(1);
    Slot held = f.semaphore->try_acquire();
    auto tasks = f.acquire(4);
    held.release();
    REQUIRE(f.counts(1, 3));
    tasks[0].cancel(type);
    CHECK(f.counts(1, 2));
    tasks[1].cancel(type);  // it was granted the slot just now
    CHECK(f.counts(1, 1));
    tasks[1].cancel(type);  // twice is once
    CHECK(f.counts(1, 1));
    f.poll();
    CHECK(tasks[0].aborted());
    CHECK(tasks[1].aborted());
    CHECK(tasks[2].succeeded());
    CHECK_FALSE(tasks[3].done());
    CHECK(f.order == Order{2});
    CHECK(f.counts(1, 1));
}

TEST_CASE("semaphore: a slot granted to a waiter that is cancelled before it resumes is free if nobody waits",
          "[semaphore][cancellation]") {
    Fixture f(1);
    Slot held = f.semaphore->try_acquire();
    Task<Slot> waiter = f.acquire();
    held.release();
    waiter.cancel(any_cancellation());
    CHECK(f.counts(0, 0));
    CHECK(f.semaphore->try_acquire());
    f.poll();
    CHECK(waiter.aborted());
    CHECK(f.order.empty());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a granted slot that is given up by cancellation is not handed on above a lowered limit",
          "[semaphore][cancellation]") {
    Fixture f(2);
    auto tasks = f.acquire(4);
    tasks[0].value().release();
    f.semaphore->set_limit(1);
    tasks[2].cancel(any_cancellation());
    CHECK(f.counts(1, 1));
    f.poll();
    CHECK(tasks[2].aborted());
    CHECK_FALSE(tasks[3].done());
}

TEST_CASE("semaphore: cancellation wins until the waiter runs, even if it is to be resumed next",
          "[semaphore][cancellation]") {
    Fixture f(0);
    std::vector<Task<Slot>> tasks;
    const Task<> killer(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        const Slot slot = co_await f.semaphore->acquire();
        tasks[0].cancel();  // resumed by the same handler as this
        co_await test::yield();
    });
    tasks = f.acquire(2);
    f.semaphore->set_limit(2);
    CHECK(f.counts(2, 1));
    f.poll();
    CHECK(tasks[0].aborted());
    CHECK(tasks[1].succeeded());
    CHECK(f.counts(1, 0));
}

TEST_CASE("semaphore: once the waiter has its slot, cancellation leaves the slot to it", "[semaphore][cancellation]") {
    Fixture f(1);
    Slot seen;
    Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        seen = co_await f.semaphore->acquire();
        co_await test::sleep(std::chrono::hours(1));
    });
    Slot held = f.semaphore->try_acquire();
    f.poll();
    held.release();
    f.poll();
    task.cancel(any_cancellation());
    f.poll();
    CHECK(task.aborted());
    CHECK(seen);
    CHECK(f.counts(1, 0));
}

TEST_CASE("semaphore: a waiter that is closed out or cancelled first is not counted twice",
          "[semaphore][cancellation]") {
    Fixture f(0);
    auto tasks = f.acquire(2);
    tasks[0].cancel();
    f.semaphore->close();
    tasks[1].cancel();
    CHECK(f.counts(0, 0));
    f.poll();
    CHECK(tasks[0].aborted());
    CHECK(tasks[1].aborted());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: whatever is cancelled and when, the books agree with a model of them",
          "[semaphore][cancellation][stress]") {
    for (unsigned seed = 1; seed != 31; ++seed) {
        INFO("seed " << seed);
        std::mt19937 random(seed);
        const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
        Fixture f(2);
        std::vector<Task<Slot>> tasks;
        std::ptrdiff_t limit = 2;
        std::deque<std::size_t> waiting;
        std::deque<std::size_t> granted;
        std::deque<std::size_t> cancelled;
        std::deque<std::size_t> holding;

        const auto active = [&] { return static_cast<std::ptrdiff_t>(granted.size() + holding.size()); };
        const auto take = [&](std::deque<std::size_t>& from) {
            const auto at = from.begin() + static_cast<std::ptrdiff_t>(below(from.size()));
            const std::size_t number = *at;
            from.erase(at);
            return number;
        };
        const auto hand_over = [&] {
            for (; active() < limit && !waiting.empty(); waiting.pop_front()) {
                granted.push_back(waiting.front());
            }
        };
        const auto poll = [&] {
            f.poll();
            holding.insert(holding.end(), granted.begin(), granted.end());
            granted.clear();
            bool as_expected = true;
            for (const std::size_t number : waiting) {
                as_expected = as_expected && !tasks[number].done();
            }
            for (const std::size_t number : cancelled) {
                as_expected = as_expected && tasks[number].aborted();
            }
            for (const std::size_t number : holding) {
                as_expected = as_expected && tasks[number].succeeded() && tasks[number].value();
            }
            REQUIRE(as_expected);
        };

        for (int step = 0; step != 400; ++step) {
            switch (below(8)) {
                case 0:
                case 1:
                case 2:
                    tasks.push_back(f.start());
                    waiting.push_back(tasks.size() - 1);
                    hand_over();
                    poll();
                    break;
                case 3:
                    if (!waiting.empty()) {
                        cancelled.push_back(take(waiting));
                        tasks[cancelled.back()].cancel();
                    }
                    break;
                case 4:
                    if (!granted.empty()) {
                        cancelled.push_back(take(granted));
                        tasks[cancelled.back()].cancel();
                        hand_over();
                    }
                    break;
                case 5:
                    if (!holding.empty()) {
                        tasks[take(holding)].value().release();
                        hand_over();
                    }
                    break;
                case 6:
                    limit = static_cast<std::ptrdiff_t>(below(6));
                    f.semaphore->set_limit(limit);
                    hand_over();
                    break;
                default:
                    if (below(3) == 0) {
                        poll();
                    }
            }
            REQUIRE(f.counts(active(), waiting.size()));
        }
        poll();
        Order served = f.order;
        std::ranges::sort(served);
        CHECK(f.order == served);  // whatever happened, those who were served were served in order
    }
}

TEST_CASE("semaphore: 100,000 waiters that are cancelled, half of them granted a slot already, leave none behind",
          "[semaphore][cancellation][stress]") {
    constexpr std::size_t n = 100'000;
    Fixture f(0);
    std::vector<Task<Slot>> tasks;
    tasks.reserve(n);
    while (tasks.size() != n) {
        tasks.push_back(f.start());
    }
    f.poll();
    f.semaphore->set_limit(n / 2);
    CHECK(f.counts(n / 2, n / 2));
    std::shuffle(tasks.begin(), tasks.end(), std::mt19937(1));
    for (Task<Slot>& task : tasks) {
        task.cancel();
    }
    CHECK(f.counts(0, 0));
    f.poll();
    CHECK(f.order.empty());
    CHECK(std::ranges::all_of(tasks, [](const auto& task) { return task.aborted(); }));
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: close ends every wait and every later acquire", "[semaphore]") {
    Fixture f(1);
    auto tasks = f.acquire(3);
    f.semaphore->close();
    CHECK(f.counts(1, 0));
    const auto later = f.acquire();  // begins before those who waited have resumed
    CHECK(tasks[1].aborted());
    CHECK(tasks[2].aborted());
    CHECK(later.aborted());
    CHECK(tasks[0].value());

    tasks[0].value().release();  // what is out still comes back
    CHECK(f.counts(0, 0));
    CHECK(f.acquire().aborted());  // though a slot is free
    CHECK_FALSE(f.semaphore->try_acquire());
    f.semaphore->set_limit(9);
    CHECK(f.acquire().aborted());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: who is closed out is told so, and who is cancelled is not", "[semaphore]") {
    Fixture f(0);
    auto cancelled = f.acquire();
    auto closed = f.acquire();
    f.poll();
    cancelled.cancel();
    f.semaphore->close();
    f.poll();
    auto late = f.acquire();
    f.poll();
    CHECK(cancelled.aborted());
    CHECK(closed.aborted());
    CHECK(late.aborted());
    const auto message = [](const Task<Slot>& task) { return sluice::StageError(task.error()).message(); };
    CHECK(message(cancelled).starts_with("StageSemaphore::acquire: Operation canceled"));
    CHECK(message(closed).starts_with("StageSemaphore::acquire: the semaphore was closed: Operation canceled"));
    CHECK(message(late) == message(closed));
}

TEST_CASE("semaphore: it needs an executor", "[semaphore]") {
    CHECK_THROWS_WITH(StageSemaphore(asio::any_io_executor(), 1), "StageSemaphore: the executor must not be empty");
}

TEST_CASE("semaphore: closing again does nothing", "[semaphore]") {
    Fixture f(1);
    auto tasks = f.acquire(2);
    f.semaphore->close();
    f.semaphore->close();
    f.poll();
    f.semaphore->close();
    CHECK(f.poll() == 0);
    CHECK(tasks[1].aborted());
    CHECK(f.counts(1, 0));
}

TEST_CASE("semaphore: a slot granted before close reaches its waiter and comes back", "[semaphore]") {
    Fixture f(1);
    auto tasks = f.acquire(3);
    tasks[0].value().release();
    f.semaphore->close();
    CHECK(f.counts(1, 0));
    SECTION("it is used") {
        f.poll();
        CHECK(tasks[1].succeeded());
        tasks[1].value().release();
    }
    SECTION("it is cancelled before it resumes") {
        tasks[1].cancel();
        CHECK(f.counts(0, 0));
        f.poll();
        CHECK(tasks[1].aborted());
    }
    CHECK(tasks[2].aborted());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: when it is destroyed each waiter ends with operation_aborted", "[semaphore][shutdown]") {
    Fixture f(1);
    auto tasks = f.acquire(4);
    tasks[0].value().release();  // granted before: a slot that outlives the semaphore
    tasks[3].cancel();
    f.semaphore = std::nullopt;
    f.poll();
    CHECK(tasks[1].succeeded());
    CHECK(tasks[2].aborted());
    CHECK(tasks[3].aborted());
    tasks[1].value().release();
    CHECK_FALSE(tasks[1].value());
    CHECK(f.poll() == 0);
}

TEST_CASE("semaphore: a slot may outlive the semaphore", "[semaphore][shutdown]") {
    Fixture f(1);
    Slot slot = f.semaphore->try_acquire();
    f.semaphore = std::nullopt;
    CHECK(slot);
    Slot moved(std::move(slot));
    CHECK(moved);
    moved.release();
    CHECK_FALSE(moved);
    CHECK(f.poll() == 0);
}

TEST_CASE("semaphore: a slot may outlive the context", "[semaphore][shutdown]") {
    Fixture f(1);
    Slot slot = f.semaphore->try_acquire();
    const auto waiter = f.acquire();
    SECTION("and the semaphore outlives it too") {
        f.context = std::nullopt;
        CHECK(f.counts(1, 0));
        slot.release();
        CHECK(f.counts(0, 0));
        CHECK(f.semaphore->try_acquire());
    }
    SECTION("and the semaphore, destroyed before") {
        f.semaphore = std::nullopt;
        f.context = std::nullopt;
        slot.release();
    }
    SECTION("and the semaphore, destroyed after") {
        f.context = std::nullopt;
        f.semaphore = std::nullopt;
        slot.release();
    }
    CHECK_FALSE(slot);
    CHECK_FALSE(waiter.done());
    CHECK(f.order.empty());
}

TEST_CASE("semaphore: with its context destroyed it has no executor and can still be used", "[semaphore][shutdown]") {
    Fixture f(1);
    auto tasks = f.acquire(3);
    tasks[0].value().release();  // one is granted, one waits
    f.context = std::nullopt;
    CHECK_FALSE(f.semaphore->get_executor());
    CHECK(f.counts(0, 0));
    f.semaphore->set_limit(5);
    CHECK(f.semaphore->try_acquire());
    f.semaphore->close();
    CHECK_FALSE(f.semaphore->try_acquire());
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: with its context destroyed it answers at once, however many ask in a row",
          "[semaphore][shutdown]") {
    StackSpan stack;
    std::optional<asio::io_context> gone(std::in_place);
    StageSemaphore semaphore(gone->get_executor(), 1);
    gone = std::nullopt;
    asio::io_context context;
    int granted = 0;
    const Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (; granted != 1000; ++granted) {
            const Slot slot = co_await semaphore.acquire();
            stack.touch();
        }
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(granted == 1000);
    CHECK(stack.size() < 200'000);  // bytes
}

TEST_CASE("semaphore: cancellation wins over a free slot that comes through the executor", "[semaphore][cancel]") {
    Fixture f(1);
    std::size_t taken = 0;
    Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        for (;;) {
            const Slot slot = co_await f.semaphore->acquire();
            ++taken;
        }
    });
    f.context->poll_one();  // until one of them goes through the executor
    REQUIRE(taken > 10);
    REQUIRE(f.counts(1, 0));
    const std::size_t before = taken;
    task.cancel();
    f.poll();
    CHECK(task.aborted());
    CHECK(taken == before);
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: an acquire that is awaited after the semaphore was destroyed ends with operation_aborted",
          "[semaphore][shutdown]") {
    asio::io_context context;
    std::optional<StageSemaphore> semaphore(std::in_place, context.get_executor(), 1);
    std::optional<asio::awaitable<Slot>> early = semaphore->acquire();
    const Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        const Slot slot = co_await *std::exchange(early, std::nullopt);
    });
    semaphore.reset();
    sluice::testing::run(context);
    CHECK(task.aborted());
}

TEST_CASE("semaphore: an acquire that is never awaited takes no slot", "[semaphore]") {
    Fixture f(1);
    {
        const asio::awaitable<Slot> never = f.semaphore->acquire();
        CHECK(f.counts(0, 0));
    }
    CHECK(f.semaphore->try_acquire());
}

namespace {

// Workers that go through a semaphore twice each, while the limit changes and some are cancelled.
struct Run {
    static constexpr std::size_t workers = 6;

    Run() {
        for (std::size_t i = 0; i != workers; ++i) {
            tasks.emplace_back(context->get_executor(),
                               [this, i, first = semaphore->acquire(), second = semaphore->acquire()]() mutable {
                                   return work(i, std::move(first), std::move(second));
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

    asio::awaitable<void> work(std::size_t i, asio::awaitable<Slot> first, asio::awaitable<Slot> second) {
        const Live alive(frames);
        Slot slot = co_await std::move(first);
        co_await test::yield();
        slot.release();
        slot = co_await std::move(second);
        co_await test::yield();
        if (i == 0) {
            kept = std::move(slot);
        }
    }

    asio::awaitable<void> disturb() {
        const Live alive(frames);
        co_await test::yield();
        tasks[4].cancel();  // it waits
        set_limit(3);
        tasks[2].cancel();  // it was granted a slot just now
        co_await test::yield();
        set_limit(0);
        co_await test::yield();
        set_limit(2);
    }

    void set_limit(std::ptrdiff_t limit) {
        if (semaphore) {
            semaphore->set_limit(limit);
        }
    }

    int frames = 0;
    Slot kept;
    std::vector<Task<>> tasks;
    std::optional<asio::io_context> context{std::in_place};
    std::optional<StageSemaphore> semaphore{std::in_place, context->get_executor(), 1};
};

}  // namespace

TEST_CASE("semaphore: its context may be destroyed before it, at every step of a run", "[semaphore][shutdown]") {
    bool more = true;
    for (int steps = 0; more; ++steps) {
        INFO("after " << steps << " steps");
        Run run;
        more = run.go(steps);
        run.context = std::nullopt;
        CHECK(run.frames == 0);
        CHECK(run.semaphore->waiting() == 0);
        CHECK(run.semaphore->active() == (run.kept ? 1 : 0));
        CHECK_FALSE(run.semaphore->get_executor());
        run.kept.release();
        CHECK(run.semaphore->active() == 0);
        run.semaphore = std::nullopt;
    }
}

TEST_CASE("semaphore: it may be destroyed before its context, at every step of a run", "[semaphore][shutdown]") {
    const bool runs_on = GENERATE(false, true);
    bool more = true;
    for (int steps = 0; more; ++steps) {
        INFO("after " << steps << " steps");
        Run run;
        more = run.go(steps);
        run.semaphore = std::nullopt;
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

TEST_CASE("semaphore: undisturbed, the run of the tests above ends with every slot back", "[semaphore]") {
    Run run;
    run.context->poll();
    for (std::size_t i = 0; i != Run::workers; ++i) {
        INFO("worker " << i);
        CHECK(run.tasks[i].aborted() == (i == 2 || i == 4));
        CHECK(run.tasks[i].done());
    }
    CHECK(run.tasks.back().succeeded());
    CHECK(run.semaphore->active() == 1);
    CHECK(run.kept);
}

TEST_CASE("semaphore: a waiter that dies with its context may release, cancel and close as it goes",
          "[semaphore][shutdown]") {
    // The service of the strands, made after that of the semaphores, goes first. After that Asio destroys frames at
    // once, while the semaphore is still letting go of its waiters.
    Fixture f(0);
    std::vector<Task<Slot>> tasks;
    std::function<void()> last_act;
    std::size_t deaths = 0;
    std::optional<asio::strand<asio::io_context::executor_type>> strand = asio::make_strand(*f.context);
    StageSemaphore semaphore(*strand, 1);
    struct LastAct {
        std::function<void()>& act;
        std::size_t& deaths;
        Slot slot;
        ~LastAct() {
            ++deaths;
            act();
        }
    };
    for (int i = 0; i != 4; ++i) {
        tasks.emplace_back(*strand, [&]() -> asio::awaitable<Slot> {
            LastAct guard{last_act, deaths, {}};
            guard.slot = semaphore.try_acquire();
            co_return co_await semaphore.acquire();
        });
    }
    f.poll();
    REQUIRE(semaphore.active() == 1);
    REQUIRE(semaphore.waiting() == 4);
    const auto cancel_others = [&] {
        for (std::size_t i = deaths; i != tasks.size(); ++i) {
            tasks[i].cancel();
        }
    };
    SECTION("nothing but release its slot") {
        last_act = [] {};
    }
    SECTION("cancel the others, which wait") { last_act = cancel_others; }
    SECTION("cancel the others, some of which were granted a slot") {
        semaphore.set_limit(3);
        last_act = cancel_others;
    }
    SECTION("raise the limit") {
        last_act = [&] { semaphore.set_limit(semaphore.limit() + 1); };
    }
    SECTION("close") {
        last_act = [&] { semaphore.close(); };
    }
    strand.reset();
    f.context = std::nullopt;
    CHECK(deaths == 4);
    CHECK(semaphore.active() == 0);
    CHECK(semaphore.waiting() == 0);
    CHECK(std::ranges::none_of(tasks, [](const auto& task) { return task.done(); }));
}

TEST_CASE("semaphore: an exception that a resumed coroutine lets out into the loop loses no other waiter",
          "[semaphore]") {
    struct Escaped {};
    const std::size_t thrower = GENERATE(0U, 1U, 2U);
    const bool on_strand = GENERATE(false, true);  // there the exception passes through whoever resumes; else past it
    asio::io_context context;
    const auto executor = on_strand ? asio::any_io_executor(asio::make_strand(context)) : context.get_executor();
    StageSemaphore semaphore(executor, 0);
    const auto acquire = [&]() -> asio::awaitable<Slot> { return semaphore.acquire(); };
    std::vector<Task<Slot>> tasks;
    for (std::size_t i = 0; i != 3; ++i) {
        if (i == thrower) {
            asio::co_spawn(executor, acquire, [](const std::exception_ptr&, const Slot&) { throw Escaped(); });
        } else {
            tasks.emplace_back(executor, acquire);
        }
    }
    sluice::testing::run_until_stalled(context);
    semaphore.set_limit(3);
    REQUIRE(semaphore.active() == 3);
    CHECK_THROWS_AS(sluice::testing::run(context), Escaped);
    sluice::testing::run(context);
    CHECK(tasks[0].succeeded());
    CHECK(tasks[1].succeeded());
    CHECK(semaphore.active() == 2);
    semaphore.set_limit(2);
    tasks.emplace_back(executor, acquire);
    sluice::testing::run_until_stalled(context);
    tasks[0].value().release();  // and it works as before
    sluice::testing::run(context);
    CHECK(tasks[2].succeeded());
}

namespace {

// 100,000 coroutines that acquire a slot of `semaphore`, touch the stack, and give their slot back at once.
struct Crowd {
    static constexpr std::size_t size = 100'000;

    explicit Crowd(Fixture& f) {
        for (std::size_t i = 0; i != size; ++i) {
            asio::co_spawn(f.context->get_executor(), visit(f, i), asio::detached);
        }
        f.poll();
    }

    asio::awaitable<void> visit(Fixture& f, std::size_t number) {
        const Slot slot = co_await f.semaphore->acquire();
        f.order.push_back(number);
        stack.touch();
    }

    StackSpan stack;
};

}  // namespace

TEST_CASE("semaphore: 100,000 waiters are served in a cascade without stack growth", "[semaphore][stress]") {
    Fixture f(1);
    Slot held = f.semaphore->try_acquire();
    const Crowd crowd(f);
    REQUIRE(f.counts(1, Crowd::size));
    held.release();
    f.poll();
    CHECK(bool(f.order == first_numbers(Crowd::size)));  // too long to print
    CHECK(f.counts(0, 0));
    CHECK(crowd.stack.size() < 4096);
}

TEST_CASE("semaphore: 100,000 waiters are served at once by set_limit without stack growth", "[semaphore][stress]") {
    Fixture f(0);
    const Crowd crowd(f);
    REQUIRE(f.counts(0, Crowd::size));
    f.semaphore->set_limit(static_cast<std::ptrdiff_t>(Crowd::size));
    CHECK(f.counts(static_cast<std::ptrdiff_t>(Crowd::size), 0));
    f.poll();
    CHECK(bool(f.order == first_numbers(Crowd::size)));  // too long to print
    CHECK(f.counts(0, 0));
    CHECK(crowd.stack.size() < 4096);
}

TEST_CASE("semaphore: 100,000 waiters are closed out, or dropped with their context", "[semaphore][shutdown][stress]") {
    Fixture f(0);
    const Crowd crowd(f);
    SECTION("closed out") {
        f.semaphore->close();
        f.poll();
    }
    SECTION("dropped") { f.context = std::nullopt; }
    CHECK(f.counts(0, 0));
    CHECK(f.order.empty());
}

namespace {

template <class Executor>
asio::awaitable<void, Executor> typed_visit(StageSemaphore& semaphore, Order& order, std::size_t number) {
    const Slot slot = co_await semaphore.acquire();
    order.push_back(number);
    co_await asio::post(asio::deferred);
}

using TypedExecutor = asio::io_context::executor_type;
static_assert(std::is_convertible_v<StageSemaphore::Acquisition, asio::awaitable<Slot, TypedExecutor>>);

}  // namespace

TEST_CASE("semaphore: an acquisition serves wherever an awaitable is asked for", "[semaphore]") {
    Fixture f(1);
    StageSemaphore& semaphore = *f.semaphore;
    const auto executor = f.context->get_executor();
    int slots = 0;
    const auto count = [&](const std::exception_ptr& error, const Slot& slot) { slots += !error && slot; };

    asio::co_spawn(executor, semaphore.acquire(), count);
    asio::awaitable<Slot> awaitable = semaphore.acquire();
    asio::co_spawn(executor, std::move(awaitable), count);
    const Task<> task(executor, [&]() -> asio::awaitable<void> {
        StageSemaphore::Acquisition named = semaphore.acquire();
        StageSemaphore::Acquisition moved = std::move(named);
        slots += bool(co_await std::move(moved));
        slots += bool(co_await sluice::with_timeout(std::chrono::hours(1), semaphore.acquire()));
        co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
            group.spawn(semaphore.acquire());
            co_return;
        });
    });
    f.poll();
    CHECK(task.succeeded());
    CHECK(slots == 4);
    CHECK(f.counts(0, 0));
}

TEST_CASE("semaphore: a loop of free slots neither grows the stack without bound nor keeps others waiting",
          "[semaphore]") {
    Fixture f(1);
    StackSpan stack;
    bool other_ran = false;
    std::size_t taken_before_other = 0;
    const Task<> task(f.context->get_executor(), [&]() -> asio::awaitable<void> {
        asio::post(*f.context, [&] { other_ran = true; });
        for (int i = 0; i != 100'000; ++i) {
            const Slot slot = co_await f.semaphore->acquire();
            stack.touch();
            taken_before_other += !other_ran;
        }
    });
    f.poll();
    CHECK(task.succeeded());
    CHECK(taken_before_other < 100);
    CHECK(stack.size() < 200'000);  // bytes
}

TEST_CASE("semaphore: many free semaphores in a row are a loop like one", "[semaphore]") {
    asio::io_context context;
    std::deque<StageSemaphore> semaphores;
    for (int i = 0; i != 1000; ++i) {
        semaphores.emplace_back(context.get_executor(), 1);
    }
    StackSpan stack;
    const Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (StageSemaphore& semaphore : semaphores) {
            const Slot slot = co_await semaphore.acquire();
            stack.touch();
        }
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(stack.size() < 200'000);  // bytes
}

TEST_CASE("semaphore: coroutines with a typed executor can wait, be served and be cancelled", "[semaphore][typed]") {
    Fixture f(1);
    asio::cancellation_signal signal;
    std::vector<std::exception_ptr> ends;
    const auto note_end = [&](const std::exception_ptr& error) { ends.push_back(error); };
    const TypedExecutor executor = f.context->get_executor();
    for (std::size_t i = 0; i != 3; ++i) {
        asio::co_spawn(executor, typed_visit<TypedExecutor>(*f.semaphore, f.order, i), note_end);
    }
    asio::co_spawn(executor, typed_visit<TypedExecutor>(*f.semaphore, f.order, 3),
                   asio::bind_cancellation_slot(signal.slot(), note_end));
    const auto untyped = f.start();  // in the same queue
    for (int i = 0; i != 5; ++i) {
        f.context->poll_one();
    }
    REQUIRE(f.counts(1, 4));
    signal.emit(asio::cancellation_type::terminal);
    f.poll();
    CHECK(f.order == Order{0, 1, 2, 0});
    CHECK(untyped.succeeded());
    CHECK(ends.size() == 4);
    CHECK(std::count(ends.begin(), ends.end(), nullptr) == 3);
    CHECK(f.counts(1, 0));
}

TEST_CASE("semaphore: coroutines with a typed executor are dropped with their context",
          "[semaphore][typed][shutdown]") {
    Fixture f(0);
    asio::co_spawn(f.context->get_executor(), typed_visit<TypedExecutor>(*f.semaphore, f.order, 0), asio::detached);
    f.poll();
    REQUIRE(f.counts(0, 1));
    f.context = std::nullopt;
    CHECK(f.counts(0, 0));
    CHECK(f.order.empty());
}
