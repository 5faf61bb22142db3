// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/timer.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/every_step.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_allocator.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/bind_executor.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/use_future.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/matchers/catch_matchers.hpp>

#include <algorithm>
#include <chrono>
#include <concepts>
#include <cstddef>
#include <future>
#include <memory>
#include <optional>
#include <random>
#include <set>
#include <string>
#include <tuple>
#include <type_traits>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using namespace std::chrono_literals;
using boost::system::error_code;
using boost::system::system_error;
using sluice::testing::run;
using sluice::testing::VirtualClock;
using sluice::testing::VirtualTime;
using sluice::testing::VirtualTimer;
using std::chrono::nanoseconds;
using test::poll;
using test::refusal_of;
using test::Steps;
using test::Task;
using Void = asio::awaitable<void>;
using Log = std::vector<std::string>;

const error_code success;
const error_code aborted = make_error_code(asio::error::operation_aborted);

// A handler that stores the result of its only call.
auto into(std::optional<error_code>& result) {
    return [&result](error_code error) { result = result ? make_error_code(asio::error::fault) : error; };
}

auto into(Log& log, std::string name) {
    return [&log, name](error_code error) { log.push_back(error ? name + " aborted" : name); };
}

constexpr VirtualClock::time_point epoch{};

// What was allocated with a CountingAllocator.
struct Allocations {
    int all = 0;
    int live = 0;
};

template <class T>
class CountingAllocator {
public:
    using value_type = T;

    explicit CountingAllocator(Allocations& allocations) noexcept : allocations_(&allocations) {}
    template <class Other>
    explicit(false) CountingAllocator(const CountingAllocator<Other>& other) noexcept
        : allocations_(other.allocations()) {}

    T* allocate(std::size_t n) {
        T* const memory = std::allocator<T>().allocate(n);
        ++allocations_->all;
        ++allocations_->live;
        return memory;
    }
    void deallocate(T* memory, std::size_t n) noexcept {
        --allocations_->live;
        std::allocator<T>().deallocate(memory, n);
    }

    Allocations* allocations() const noexcept { return allocations_; }

    template <class Other>
    friend bool operator==(const CountingAllocator& a, const CountingAllocator<Other>& b) noexcept {
        return a.allocations() == b.allocations();
    }

private:
    Allocations* allocations_;
};

// Many timers, some with a wait, beside a simple model of what they must do. Each wait has a number, from 1 on.
class Sleepers {
public:
    Sleepers(std::size_t timers, unsigned seed) : random_(seed) {
        for (std::size_t i = 0; i != timers; ++i) {
            members_.push_back(std::make_unique<Member>(context_));
        }
    }

    // Does something to any of the timers.
    void act() {
        Member& member = *members_[random() % members_.size()];
        const bool pending = member.number != 0;
        switch (random() % 8) {
            case 0:
                CHECK(member.timer->cancel() == (pending ? 1 : 0));
                cancelled(member);
                break;
            case 1:
                member.signal.emit(asio::cancellation_type::terminal);
                cancelled(member);
                break;
            case 2:
                member.timer = std::make_unique<VirtualTimer>(context_.get_executor());
                cancelled(member);
                break;
            default:
                CHECK(member.timer->expires_after(nanoseconds(random() % 500)) == (pending ? 1 : 0));
                cancelled(member);
                wait(member);
        }
    }

    // Advances to the next expiry. Returns false if there is none.
    bool advance() {
        if (!VirtualTime::of(context_).advance()) {
            CHECK(pending_.empty());
            return false;
        }
        const auto now = VirtualTime::of(context_).now();
        CHECK(now == std::get<0>(*pending_.begin()));
        while (!pending_.empty() && std::get<0>(*pending_.begin()) == now) {
            expected_.push_back(std::get<1>(*pending_.begin()));
            std::get<2>(*pending_.begin())->number = 0;
            pending_.erase(pending_.begin());
        }
        return true;
    }

    // Whether the waits have ended as they must, those that were cancelled with a negative number.
    bool as_expected() {
        poll(context_);
        return ended_ == expected_ && VirtualTime::of(context_).pending() == pending_.size();
    }

    unsigned random() { return static_cast<unsigned>(random_()); }

private:
    struct Member {
        explicit Member(asio::io_context& context) : timer(std::make_unique<VirtualTimer>(context.get_executor())) {}

        asio::cancellation_signal signal;
        std::unique_ptr<VirtualTimer> timer;
        int number = 0;                   // of its wait; 0 if there is none
        VirtualClock::time_point expiry;  // of its wait
    };

    void cancelled(Member& member) {
        if (member.number != 0) {
            expected_.push_back(-member.number);
            pending_.erase({member.expiry, member.number, &member});
            member.number = 0;
        }
    }

    void wait(Member& member) {
        member.number = ++waits_;
        member.expiry = member.timer->expiry();
        pending_.insert({member.expiry, member.number, &member});
        member.timer->async_wait(asio::bind_cancellation_slot(
            member.signal.slot(),
            [this, number = member.number](error_code error) { ended_.push_back(error ? -number : number); }));
    }

    asio::io_context context_;
    std::minstd_rand random_;
    std::vector<std::unique_ptr<Member>> members_;
    int waits_ = 0;
    std::set<std::tuple<VirtualClock::time_point, int, Member*>> pending_;
    std::vector<int> ended_;
    std::vector<int> expected_;
};

// A timer whose clock does not depend on the execution context.
struct OwnClock {
    using duration = nanoseconds;
    using time_point = std::chrono::time_point<std::chrono::steady_clock, nanoseconds>;
    static time_point now() { return time_point(77ns); }
};
struct OwnTimer {
    explicit OwnTimer(int) {}
    using executor_type = int;
    using clock_type = OwnClock;
    using duration = nanoseconds;
    using time_point = OwnClock::time_point;
    void expires_after(duration) {}
    void async_wait(asio::deferred_t) {}
    void cancel() {}
};

static_assert(sluice::Timer<VirtualTimer> && sluice::Timer<asio::steady_timer>);
static_assert(!sluice::Timer<int> && !sluice::Timer<std::string>);
static_assert(VirtualClock::is_steady && std::same_as<VirtualClock::duration, nanoseconds>);
static_assert(!std::is_copy_constructible_v<VirtualTimer> && !std::is_copy_assignable_v<VirtualTimer>);
static_assert(!std::invocable<decltype([](auto&& timer) -> decltype(timer.async_wait(0)) {}), VirtualTimer&>);

}  // namespace

TEST_CASE("virtual timer: a timer without its own now() uses the time of its clock_type", "[virtual_timer]") {
    static_assert(sluice::Timer<OwnTimer>);
    CHECK(sluice::detail::now<OwnTimer>(asio::io_context().get_executor()) == OwnClock::time_point(77ns));
}

TEST_CASE("virtual timer: waits end in the order of their expiry", "[virtual_timer]") {
    asio::io_context context;
    Log log;
    std::vector<nanoseconds> at;
    std::vector<std::unique_ptr<VirtualTimer>> timers;
    for (const int ms : {30, 10, 20, 0, 40}) {
        timers.push_back(std::make_unique<VirtualTimer>(context.get_executor(), std::chrono::milliseconds(ms)));
        timers.back()->async_wait([&, ms](error_code) {
            log.push_back(std::to_string(ms));
            at.push_back(VirtualTime::of(context).now() - epoch);
        });
    }
    CHECK(VirtualTime::of(context).pending() == 5);
    CHECK(run(context) == 40ms);
    CHECK(VirtualTime::of(context).pending() == 0);
    CHECK(log == Log{"0", "10", "20", "30", "40"});
    CHECK(at == std::vector<nanoseconds>{0ms, 10ms, 20ms, 30ms, 40ms});
}

TEST_CASE("virtual timer: waits with the same expiry end in the order in which they began", "[virtual_timer]") {
    asio::io_context context;
    Log log;
    VirtualTimer one(context.get_executor(), 10ms);
    VirtualTimer two(context.get_executor(), 10ms);
    two.async_wait(into(log, "a"));
    one.async_wait(into(log, "b"));
    two.async_wait(into(log, "c"));
    one.async_wait(into(log, "d"));
    VirtualTime::of(context).advance_by(4ms);
    VirtualTimer late(context.get_executor(), 6ms);
    late.async_wait(into(log, "e"));
    run(context);
    CHECK(log == Log{"a", "b", "c", "d", "e"});
}

TEST_CASE("virtual timer: waits that begin, are cancelled and end in any order end in the right one",
          "[virtual_timer][cancellation]") {
    const bool destroyed = GENERATE(false, true);
    for (const unsigned timers : {1U, 2U, 5U, 6U, 100U, 3000U}) {
        CAPTURE(timers);
        Sleepers crowd(timers, timers);
        for (int i = 0; i != 10'000; ++i) {
            crowd.act();
            if (crowd.random() % (1 + timers / 8) == 0) {
                crowd.advance();
                REQUIRE(crowd.as_expected());
            }
        }
        while (!destroyed && crowd.advance()) {
            REQUIRE(crowd.as_expected());
        }
        CHECK(crowd.as_expected());
    }
}

// A steady_timer does the same.
TEST_CASE("virtual timer: waits with the same expiry are over together: the first cannot cancel the second",
          "[virtual_timer]") {
    asio::io_context context;
    Log log;
    VirtualTimer first(context.get_executor(), 1ms);
    VirtualTimer second(context.get_executor(), 1ms);
    first.async_wait([&](error_code) {
        log.push_back("first");
        CHECK(second.cancel() == 0);
        asio::post(context, [&] { log.push_back("posted by the first"); });
    });
    second.async_wait(into(log, "second"));
    run(context);
    CHECK(log == Log{"first", "second", "posted by the first"});
}

TEST_CASE("virtual timer: waits that are due at once, on several executors, end in the order in which they began",
          "[virtual_timer]") {
    asio::io_context context;
    const std::vector<asio::any_io_executor> executors{context.get_executor(), asio::make_strand(context),
                                                       asio::make_strand(context)};
    const bool in_turn = GENERATE(false, true);
    std::vector<std::unique_ptr<VirtualTimer>> timers;
    std::vector<std::vector<int>> ended(3);
    std::vector<int> order;
    for (int i = 0; i != 12; ++i) {
        const auto executor = static_cast<std::size_t>(in_turn ? i % 3 : i / 4);
        timers.push_back(std::make_unique<VirtualTimer>(executors[executor], 1ms));
        timers.back()->async_wait([&, i, executor](error_code error) {
            CHECK(error == success);
            ended[executor].push_back(i);
            order.push_back(i);
            asio::post(context, [&, i] { order.push_back(100 + i); });
        });
    }
    CHECK(run(context) == 1ms);
    CHECK(order.size() == 24);
    if (in_turn) {  // a strand whose turn is over lets others run before it takes another
        CHECK(ended == std::vector<std::vector<int>>{{0, 3, 6, 9}, {1, 4, 7, 10}, {2, 5, 8, 11}});
    } else {
        CHECK(std::ranges::is_sorted(order));
    }
}

TEST_CASE("virtual timer: the first of the waits that are due may destroy or set the timers of the others",
          "[virtual_timer]") {
    asio::io_context context;
    Log log;
    auto destroyed = std::make_unique<VirtualTimer>(context.get_executor(), 1ms);
    VirtualTimer first(context.get_executor(), 1ms);
    VirtualTimer set(context.get_executor(), 1ms);
    first.async_wait([&](error_code) {
        destroyed.reset();
        CHECK(set.expires_after(1ms) == 0);
        set.async_wait(into(log, "set again"));
    });
    destroyed->async_wait(into(log, "destroyed"));
    set.async_wait(into(log, "set"));
    CHECK(run(context) == 2ms);
    CHECK(log == Log{"destroyed", "set", "set again"});
}

TEST_CASE("virtual timer: a wait that is due ends even if some handler is always ready", "[virtual_timer]") {
    asio::io_context context;
    VirtualTimer timer(context.get_executor());
    bool due = false;
    int turns = 0;
    timer.async_wait([&](error_code) { due = true; });
    Task busy_task(context.get_executor(), [&]() -> Void {
        while (!due && ++turns != 100) {
            co_await asio::post(context, asio::deferred);
        }
    });
    run(context);
    CHECK(due);
    CHECK(turns < 100);
}

TEST_CASE("virtual timer: a wait that is due can be cancelled until the context runs", "[virtual_timer]") {
    asio::io_context context;
    VirtualTimer timer(context.get_executor());
    std::optional<error_code> result;
    timer.async_wait(into(result));
    CHECK(timer.cancel() == 1);
    run(context);
    CHECK(result == aborted);
}

TEST_CASE("virtual timer: advance() advances to the next expiry and completes the waits that are due",
          "[virtual_timer]") {
    asio::io_context context;
    VirtualTime& time = VirtualTime::of(context);
    CHECK_FALSE(time.advance());
    CHECK(time.now() == epoch);
    Log log;
    VirtualTimer timer(context.get_executor(), 5ms);
    VirtualTimer later(context.get_executor(), 8ms);
    timer.async_wait(into(log, "a"));
    timer.async_wait(into(log, "b"));
    later.async_wait(into(log, "c"));
    CHECK(time.advance());
    CHECK(time.now() == epoch + 5ms);
    CHECK(time.pending() == 1);
    CHECK(log.empty());  // the handlers are posted, not called
    poll(context);
    CHECK(log == Log{"a", "b"});
    CHECK(time.advance());
    CHECK(time.now() == epoch + 8ms);
    poll(context);
    CHECK(log == Log{"a", "b", "c"});
    CHECK_FALSE(time.advance());
    CHECK(time.now() == epoch + 8ms);
}

TEST_CASE("virtual timer: advance_by() advances the time, and the waits that are due end when the context runs",
          "[virtual_timer]") {
    asio::io_context context;
    VirtualTime& time = VirtualTime::of(context);
    std::optional<error_code> result;
    VirtualTimer timer(context.get_executor(), 5ms);
    timer.async_wait(into(result));
    time.advance_by(20ms);
    poll(context);
    CHECK_FALSE(result);
    CHECK(time.now() == epoch + 20ms);
    CHECK(run(context) == 0ms);
    CHECK(time.now() == epoch + 20ms);
    CHECK(result == success);
}

TEST_CASE("virtual timer: time cannot go back, or beyond the end of the clock", "[virtual_timer]") {
    asio::io_context context;
    VirtualTime& time = VirtualTime::of(context);
    const std::string rule =
        "VirtualTime: the time to advance by must not be negative, nor reach beyond the clock's end, got ";
    CHECK(refusal_of([&] { time.advance_by(-5ns); }) == rule + "-5 ns");
    CHECK(time.now() == epoch);
    time.advance_by(nanoseconds::max());
    CHECK(refusal_of([&] { time.advance_by(10ns); }) == rule + "10 ns");
    CHECK(time.now() == VirtualClock::time_point::max());
}

TEST_CASE("virtual timer: a wait never completes inside async_wait(), even if the timer has expired",
          "[virtual_timer]") {
    asio::io_context context;
    const auto after = GENERATE(-5ms, 0ms);
    std::optional<error_code> result;
    asio::post(context, [&] {
        auto timer = std::make_shared<VirtualTimer>(context.get_executor(), after);
        timer->async_wait([&, timer](error_code error) { result = error; });
        CHECK_FALSE(result);
    });
    CHECK(run(context) == 0ms);
    CHECK(result == success);
}

TEST_CASE("virtual timer: a timer that was created without an expiry has expired", "[virtual_timer]") {
    asio::io_context context;
    VirtualTime::of(context).advance_by(9ms);
    VirtualTimer timer(context.get_executor());
    CHECK(timer.expiry() == epoch + 9ms);
    std::optional<error_code> result;
    timer.async_wait(into(result));
    CHECK(run(context) == 0ms);
    CHECK(result == success);
}

TEST_CASE("virtual timer: cancel() ends all waits of the timer with operation_aborted, and returns their number",
          "[virtual_timer][cancellation]") {
    asio::io_context context;
    Log log;
    VirtualTimer timer(context.get_executor(), 5ms);
    VirtualTimer other(context.get_executor(), 5ms);
    CHECK(timer.cancel() == 0);
    timer.async_wait(into(log, "a"));
    other.async_wait(into(log, "other"));
    timer.async_wait(into(log, "b"));
    CHECK(timer.cancel() == 2);
    CHECK(timer.cancel() == 0);
    CHECK(log.empty());  // not inside the call
    CHECK(VirtualTime::of(context).pending() == 1);
    CHECK(timer.expiry() == epoch + 5ms);
    CHECK(run(context) == 5ms);
    CHECK(log == Log{"a aborted", "b aborted", "other"});
}

TEST_CASE("virtual timer: setting a new expiry cancels the waits for the old one, and returns their number",
          "[virtual_timer][cancellation]") {
    asio::io_context context;
    const bool relative = GENERATE(true, false);
    VirtualTime::of(context).advance_by(1ms);
    std::optional<error_code> before;
    std::optional<error_code> after;
    VirtualTimer timer(context.get_executor(), 5ms);
    timer.async_wait(into(before));
    CHECK((relative ? timer.expires_after(2ms) : timer.expires_at(epoch + 3ms)) == 1);
    CHECK(timer.expiry() == epoch + 3ms);
    timer.async_wait(into(after));
    CHECK(run(context) == 2ms);
    CHECK(before == aborted);
    CHECK(after == success);
    CHECK((relative ? timer.expires_after(2ms) : timer.expires_at(epoch)) == 0);
}

TEST_CASE("virtual timer: a timer that is destroyed ends its waits with operation_aborted",
          "[virtual_timer][cancellation]") {
    asio::io_context context;
    std::optional<error_code> one;
    std::optional<error_code> two;
    {
        VirtualTimer timer(context.get_executor(), 5ms);
        timer.async_wait(into(one));
        timer.async_wait(into(two));
    }
    CHECK(run(context) == 0ms);
    CHECK(one == aborted);
    CHECK(two == aborted);
}

TEST_CASE("virtual timer: one wait can be cancelled, with any type, without affecting the others",
          "[virtual_timer][cancellation]") {
    asio::io_context context;
    const auto type = test::any_cancellation();
    Log log;
    asio::cancellation_signal signal;
    VirtualTimer timer(context.get_executor(), 5ms);
    timer.async_wait(into(log, "a"));
    timer.async_wait(asio::bind_cancellation_slot(signal.slot(), into(log, "b")));
    timer.async_wait(into(log, "c"));
    signal.emit(asio::cancellation_type::none);
    CHECK(VirtualTime::of(context).pending() == 3);
    signal.emit(type);
    CHECK(log.empty());
    CHECK(VirtualTime::of(context).pending() == 2);
    signal.emit(type);
    poll(context);
    CHECK(log == Log{"b aborted"});
    CHECK(timer.cancel() == 2);
    run(context);
    CHECK(log == Log{"b aborted", "a aborted", "c aborted"});
    signal.emit(type);  // has no effect any more
    CHECK(run(context) == 0ms);
}

TEST_CASE("virtual timer: a wait that has expired but not resumed can no longer be cancelled",
          "[virtual_timer][cancellation]") {
    asio::io_context context;
    std::optional<error_code> result;
    asio::cancellation_signal signal;
    {
        VirtualTimer timer(context.get_executor(), 5ms);
        timer.async_wait(asio::bind_cancellation_slot(signal.slot(), into(result)));
        VirtualTime::of(context).advance();
        CHECK(timer.cancel() == 0);
        CHECK(timer.expires_after(1ms) == 0);
        signal.emit(asio::cancellation_type::all);
    }
    CHECK(run(context) == 0ms);
    CHECK(result == success);
}

TEST_CASE("virtual timer: a signal that is used again reaches the current wait", "[virtual_timer][cancellation]") {
    asio::io_context context;
    std::optional<error_code> first;
    std::optional<error_code> second;
    asio::cancellation_signal signal;
    VirtualTimer timer(context.get_executor(), 5ms);
    timer.async_wait(asio::bind_cancellation_slot(signal.slot(), into(first)));
    run(context);
    timer.expires_after(5ms);
    timer.async_wait(asio::bind_cancellation_slot(signal.slot(), into(second)));
    signal.emit(asio::cancellation_type::terminal);
    CHECK(run(context) == 0ms);
    CHECK(first == success);
    CHECK(second == aborted);
}

TEST_CASE("virtual timer: it accepts any completion token", "[virtual_timer]") {
    asio::io_context context;
    VirtualTimer timer(context.get_executor(), 5ms);
    std::future<void> future = timer.async_wait(asio::use_future);
    std::future<void> cancelled;
    Log log;
    timer.async_wait(asio::any_completion_handler<void(error_code)>(into(log, "any")));
    auto owned = std::make_unique<int>(1);  // makes the handler move-only
    timer.async_wait([&log, owned = std::move(owned)](error_code) { log.push_back("handler"); });
    Task task(context.get_executor(), [&]() -> Void {
        co_await timer.async_wait(asio::deferred);
        log.push_back("deferred");
        co_await timer.async_wait(asio::use_awaitable);
        log.push_back("use_awaitable");
        timer.expires_after(1h);
        cancelled = timer.async_wait(asio::use_future);
        timer.cancel();
        timer.expires_after(1ms);
        const auto result = co_await timer.async_wait(asio::as_tuple(asio::deferred));
        log.push_back(std::get<0>(result) ? "aborted" : "as_tuple");
    });
    CHECK(run(context) == 6ms);
    CHECK(task.succeeded());
    CHECK_NOTHROW(future.get());
    CHECK_THROWS_AS(cancelled.get(), system_error);
    CHECK(log == Log{"any", "handler", "deferred", "use_awaitable", "as_tuple"});
}

TEST_CASE("virtual timer: a deferred wait begins when it is launched", "[virtual_timer]") {
    asio::io_context context;
    VirtualTimer timer(context.get_executor(), 5ms);
    auto wait = timer.async_wait(asio::deferred);
    CHECK(VirtualTime::of(context).pending() == 0);
    timer.expires_after(7ms);
    std::optional<error_code> result;
    std::move(wait)(into(result));
    CHECK(VirtualTime::of(context).pending() == 1);
    CHECK(run(context) == 7ms);
    CHECK(result == success);
}

TEST_CASE("virtual timer: a handler runs on its own executor, or on that of the timer if it has none",
          "[virtual_timer]") {
    asio::io_context context;
    auto of_timer = asio::make_strand(context);
    auto of_handler = asio::make_strand(context);
    VirtualTimer timer(of_timer, 5ms);
    std::vector<bool> there;
    timer.async_wait([&](error_code) { there.push_back(of_timer.running_in_this_thread()); });
    timer.async_wait(
        asio::bind_executor(of_handler, [&](error_code) { there.push_back(of_handler.running_in_this_thread()); }));
    run(context);
    CHECK(there == std::vector<bool>{true, true});
}

TEST_CASE("virtual timer: a handler may run in another context, which does not run out of work before",
          "[virtual_timer]") {
    asio::io_context context;
    asio::io_context other;
    std::optional<error_code> result;
    VirtualTimer timer(context.get_executor(), 5ms);
    timer.async_wait(asio::bind_executor(other, into(result)));
    CHECK(other.poll() == 0);
    CHECK_FALSE(other.stopped());
    CHECK(run(context) == 5ms);
    CHECK_FALSE(result);
    CHECK(other.poll() == 1);
    CHECK(result == success);
    CHECK(other.stopped());
}

TEST_CASE(
    "virtual timer: a wait is one allocation, with the handler's allocator, and is free when the handler is called",
    "[virtual_timer]") {
    asio::io_context context;
    Allocations allocations;
    std::optional<error_code> result;
    std::optional<int> live;
    auto handler = asio::bind_allocator(CountingAllocator<int>(allocations), [&](error_code error) {
        live = allocations.live;
        result = error;
    });
    std::optional<VirtualTimer> timer(std::in_place, context.get_executor(), 5ms);
    const bool expires = GENERATE(true, false);
    const bool elsewhere = GENERATE(true, false);
    if (elsewhere) {
        timer->async_wait(asio::bind_executor(asio::make_strand(context), std::move(handler)));
    } else {
        timer->async_wait(std::move(handler));
    }
    CHECK(allocations.all == 1);
    CHECK(allocations.live == 1);
    if (!expires) {
        timer.reset();
    }
    CHECK(allocations.all == 1);
    run(context);
    CHECK(result == (expires ? success : aborted));
    CHECK(live == 0);
    CHECK((elsewhere || allocations.all == 1));  // dispatching may allocate
    CHECK(allocations.live == 0);
}

TEST_CASE("virtual timer: a wait that is destroyed with the context frees its memory", "[virtual_timer][shutdown]") {
    Allocations allocations;
    {
        asio::io_context context;
        VirtualTimer soon(context.get_executor(), 1ms);
        VirtualTimer late(context.get_executor(), 2ms);
        for (VirtualTimer* const timer : {&soon, &late}) {
            timer->async_wait(
                asio::bind_allocator(CountingAllocator<int>(allocations), [](error_code) { FAIL("must not run"); }));
        }
        VirtualTime::of(context).advance();  // one of them is posted
        CHECK(allocations.live == 2);
    }
    CHECK(allocations.live == 0);
}

TEST_CASE("virtual timer: a coroutine that is cancelled leaves its wait with operation_aborted",
          "[virtual_timer][cancellation]") {
    asio::io_context context;
    const auto type = test::any_cancellation();
    Task task(context.get_executor(), []() -> Void { co_await test::sleep(5ms); });
    poll(context);
    CHECK(VirtualTime::of(context).pending() == 1);
    task.cancel(type);
    CHECK(VirtualTime::of(context).pending() == 0);
    CHECK(run(context) == 0ms);
    CHECK(task.aborted());
}

TEST_CASE("virtual timer: a handler may wait again, cancel, and destroy its timer", "[virtual_timer]") {
    asio::io_context context;
    Log log;
    auto timer = std::make_unique<VirtualTimer>(context.get_executor(), 1ms);
    VirtualTimer other(context.get_executor(), 1h);
    other.async_wait(into(log, "other"));
    timer->async_wait([&](error_code) {
        timer->expires_after(2ms);
        timer->async_wait([&](error_code error) {
            log.push_back(error ? "?" : "again");
            timer->async_wait(into(log, "last"));
            other.cancel();
            timer.reset();
        });
    });
    CHECK(run(context) == 3ms);
    CHECK(log == Log{"again", "other aborted", "last aborted"});
}

TEST_CASE("virtual timer: the longest wait does not overflow the clock", "[virtual_timer]") {
    asio::io_context context;
    VirtualTime::of(context).advance_by(1s);
    VirtualTimer timer(context.get_executor(), nanoseconds::max());
    CHECK(timer.expiry() == VirtualClock::time_point::max());
    std::optional<error_code> result;
    timer.async_wait(into(result));
    VirtualTimer soon(context.get_executor(), 1ms);
    soon.async_wait([&](error_code) { timer.cancel(); });
    CHECK(run(context) == 1ms);
    CHECK(result == aborted);
}

TEST_CASE("virtual timer: the same program has the same order and the same times, to the nanosecond",
          "[virtual_timer]") {
    const auto trace = [](unsigned seed) {
        asio::io_context context;
        std::minstd_rand random(seed);
        std::vector<std::pair<int, nanoseconds>> events;
        std::vector<Task<>> tasks;
        for (int id = 0; id != 50; ++id) {
            tasks.emplace_back(context.get_executor(), [&, id]() -> Void {
                for (int i = 0; i != 10; ++i) {
                    co_await test::sleep(nanoseconds(random() % 5));
                    events.emplace_back(id, VirtualTime::of(context).now() - epoch);
                }
            });
        }
        events.emplace_back(-1, run(context));
        return events;
    };
    for (unsigned seed = 1; seed != 20; ++seed) {
        const auto events = trace(seed);
        CHECK(events.size() == 501);
        CHECK(events == trace(seed));
        CHECK(std::ranges::is_sorted(events.begin(), events.end() - 1, {}, &std::pair<int, nanoseconds>::second));
        CHECK(events.back().second == events[499].second);
    }
    CHECK(trace(1) != trace(2));
}

TEST_CASE("virtual timer: the context may be destroyed with waits pending, before or after the timer",
          "[virtual_timer][shutdown]") {
    auto token = std::make_shared<int>();
    asio::cancellation_signal signal;
    const bool timer_first = GENERATE(true, false);
    const bool expired = GENERATE(true, false);
    {
        auto context = std::make_unique<asio::io_context>();
        auto timer = std::make_unique<VirtualTimer>(context->get_executor(), 5ms);
        for (int i = 0; i != 3; ++i) {
            timer->async_wait([token](error_code) { FAIL("must not run"); });
        }
        timer->async_wait(asio::bind_cancellation_slot(signal.slot(), [token](error_code) { FAIL("must not run"); }));
        if (expired) {
            VirtualTime::of(*context).advance();
        }
        if (timer_first) {
            timer.reset();
        }
        context.reset();
        CHECK(token.use_count() == 1);
        if (!timer_first) {
            signal.emit(asio::cancellation_type::all);  // has no effect, since the wait is gone
        }
    }
}

TEST_CASE("virtual timer: handlers that own their timers are destroyed with the context", "[virtual_timer][shutdown]") {
    auto token = std::make_shared<int>();
    {
        asio::io_context context;
        for (int i = 0; i != 3; ++i) {
            auto timer = std::make_shared<VirtualTimer>(context.get_executor(), 5ms);
            auto other = std::make_shared<VirtualTimer>(context.get_executor(), 6ms);
            timer->async_wait([token, timer, other](error_code) {});
            other->async_wait([token, timer, other](error_code) {});
        }
    }
    CHECK(token.use_count() == 1);
}

TEST_CASE("virtual timer: a handler that is destroyed with the context may wait again", "[virtual_timer][shutdown]") {
    struct Rearms {
        std::shared_ptr<VirtualTimer> timer;
        int times;

        Rearms(std::shared_ptr<VirtualTimer> t, int n) : timer(std::move(t)), times(n) {}
        Rearms(Rearms&&) noexcept = default;
        ~Rearms() {
            if (timer && times != 0) {
                VirtualTimer& again = *timer;
                again.async_wait(Rearms(std::move(timer), times - 1));
            }
        }

        void operator()(error_code) const {}
    };
    std::weak_ptr<VirtualTimer> timer;
    {
        asio::io_context context;
        auto owner = std::make_shared<VirtualTimer>(context.get_executor(), 1ms);
        timer = owner;
        VirtualTimer& first = *owner;
        first.async_wait(Rearms(std::move(owner), 3));
        CHECK_FALSE(timer.expired());
    }
    CHECK(timer.expired());
}

TEST_CASE("virtual timer: the context may be destroyed at every step", "[virtual_timer][shutdown]") {
    const auto run_and_destroy = [](Steps& steps) {
        auto token = std::make_shared<int>();
        {
            asio::io_context context;
            std::vector<Task<>> tasks;
            for (int i = 1; i != 4; ++i) {
                tasks.emplace_back(context.get_executor(), [i, token]() -> Void {
                    co_await test::sleep(std::chrono::milliseconds(i));
                    co_await test::sleep(1ms);
                });
            }
            steps.take(context);
        }
        REQUIRE(token.use_count() == 1);
    };
    CHECK(test::for_every_step(run_and_destroy) > 12);
}

TEST_CASE("virtual timer: 100,000 waits at once, and 100,000 one after the other", "[virtual_timer][stress]") {
    asio::io_context context;
    int ended = 0;
    {
        VirtualTimer timer(context.get_executor(), 1ms);
        for (int i = 0; i != 100'000; ++i) {
            timer.async_wait([&](error_code error) { ended += error ? 0 : 1; });
        }
        CHECK(run(context) == 1ms);
    }
    CHECK(ended == 100'000);
    Task task(context.get_executor(), [&]() -> Void {
        for (int i = 0; i != 100'000; ++i) {
            co_await test::sleep(1ns);
        }
    });
    CHECK(run(context) == 100us);
    CHECK(task.succeeded());
}

TEST_CASE("virtual timer: 10,000 timers, each destroyed while a wait is pending",
          "[virtual_timer][stress][cancellation]") {
    asio::io_context context;
    int cancelled = 0;
    std::vector<std::unique_ptr<VirtualTimer>> timers;
    for (int i = 0; i != 10'000; ++i) {
        timers.push_back(std::make_unique<VirtualTimer>(context.get_executor(), 1h));
        timers.back()->async_wait([&](error_code error) { cancelled += error == aborted ? 1 : 0; });
    }
    timers.clear();
    CHECK(run(context) == 0ms);
    CHECK(cancelled == 10'000);
}
