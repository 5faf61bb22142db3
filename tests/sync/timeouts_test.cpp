// SPDX-License-Identifier: BSL-1.0
// Also compiled with SLUICE_PORTABLE_AWAIT.
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/cancelled_by.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/timeouts.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/timer.hpp>
#include <sluice/testing/run.hpp>
#include <sluice/testing/virtual_time.hpp>
#include <sluice/testing/virtual_timer.hpp>

#include "support/every_step.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/any_completion_handler.hpp>
#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/query.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <chrono>
#include <memory>
#include <new>
#include <optional>
#include <string>
#include <utility>
#include <variant>
#include <vector>

namespace {

namespace asio = boost::asio;
namespace this_coro = boost::asio::this_coro;
using namespace std::chrono_literals;
using boost::system::system_error;
using sluice::detail::cancelled_by;
using sluice::detail::WhenIdle;
using sluice::testing::run;
using std::chrono::nanoseconds;
using test::Live;
using test::Steps;
using test::Task;
using test::VirtualTime;
using test::VirtualTimer;
using Void = asio::awaitable<void>;
using Log = std::vector<std::string>;
using Done = std::optional<std::monostate>;

// Timeouts for calls that have the same timeout.
template <class T>
struct SharedTimeouts {
    boost::intrusive_ptr<sluice::detail::Timeouts<T>> timeouts;
    nanoseconds timeout;

    sluice::detail::Timeouts<T>& operator*() const { return *timeouts; }
    void reset() { timeouts.reset(); }

    template <class Executor>
    typename T::time_point due(const Executor& executor) const {
        return sluice::detail::due_after<T>(sluice::detail::now<T>(executor), timeout);
    }
};

template <class T = VirtualTimer>
SharedTimeouts<T> make_timeouts(nanoseconds timeout, WhenIdle when_idle = WhenIdle::cancel_later) {
    return {boost::intrusive_ptr<sluice::detail::Timeouts<T>>(new sluice::detail::Timeouts<T>(when_idle)), timeout};
}

// How long a call took, and how it ended.
struct Ended {
    std::string name;
    nanoseconds at{};
    bool expired = false;
    bool cancelled = false;
};

// Runs `body` under the timeouts and notes its end.
Void call(SharedTimeouts<VirtualTimer> timeouts, Void body, std::string name, std::vector<Ended>& ends) {
    const asio::any_io_executor executor = co_await this_coro::executor;
    sluice::detail::Timeouts<VirtualTimer>::Call running(*timeouts, executor, timeouts.due(executor));
    timeouts.reset();  // the call keeps it
    Ended end;
    end.name = std::move(name);
    Done done;
    try {
        co_await cancelled_by(running, done, std::move(body));
    } catch (const system_error&) {
        end.cancelled = true;
    }
    end.at = VirtualTimer::now(executor).time_since_epoch();
    end.expired = running.expired();
    ends.push_back(std::move(end));
}

Log names(const std::vector<Ended>& ends) {
    Log log;
    for (const Ended& end : ends) {
        log.push_back(end.name + " " + std::to_string(end.at / 1ms) + (end.expired ? " expired" : "") +
                      (end.cancelled ? " cancelled" : ""));
    }
    return log;
}

// The calls of one test.
struct Calls {
    asio::io_context context;
    SharedTimeouts<VirtualTimer> timeouts = make_timeouts(10ms);
    std::vector<Ended> ends;
    std::vector<Task<>> tasks;

    // A call that begins at `begin` and whose body takes `duration`.
    void add(std::string name, nanoseconds begin, nanoseconds duration) {
        tasks.emplace_back(context.get_executor(), [this, name = std::move(name), begin, duration] {
            return begin_at(*this, begin, test::sleep(duration), name);
        });
    }

    static Void begin_at(Calls& calls, nanoseconds begin, Void body, std::string name) {
        co_await test::sleep(begin);
        co_await call(calls.timeouts, std::move(body), std::move(name), calls.ends);
    }

    std::size_t pending() { return VirtualTime::of(context).pending(); }
};

// An operation that resumes its coroutine inside the call that cancels it.
auto cancelled_inline() {
    using Handler = asio::any_completion_handler<void(boost::system::error_code)>;
    return asio::async_initiate<const asio::deferred_t&, void(boost::system::error_code)>(
        [](auto handler) {
            auto slot = asio::get_associated_cancellation_slot(handler);
            slot.assign([stored = std::make_shared<Handler>(std::move(handler))](asio::cancellation_type) {
                Handler moved = std::move(*stored);  // completing it destroys this closure
                std::move(moved)(asio::error::operation_aborted);
            });
        },
        asio::deferred);
}

Void wait_inline() { co_await cancelled_inline(); }

}  // namespace

TEST_CASE("timeouts: calls that run at the same time expire each at its own time, in order", "[timeouts]") {
    Calls calls;
    for (const int ms : {3, 0, 7, 3, 12}) {
        calls.add("begun at " + std::to_string(ms), ms * 1ms, 1h);
    }
    CHECK(run(calls.context) == 22ms);
    CHECK(names(calls.ends) == Log{"begun at 0 10 expired cancelled", "begun at 3 13 expired cancelled",
                                   "begun at 3 13 expired cancelled", "begun at 7 17 expired cancelled",
                                   "begun at 12 22 expired cancelled"});
    CHECK(calls.pending() == 0);
}

TEST_CASE("timeouts: one timer serves every call", "[timeouts]") {
    Calls calls;
    for (int i = 0; i != 5; ++i) {
        calls.add(std::to_string(i), 0ms, 5ms);
    }
    calls.context.poll();
    VirtualTime::of(calls.context).advance();  // they begin
    test::poll(calls.context);
    CHECK(calls.pending() == 5 + 1);
    CHECK(run(calls.context) == 5ms);
}

TEST_CASE("timeouts: a timer that fires for a call that has ended goes on to the next", "[timeouts]") {
    Calls calls;
    calls.add("short", 0ms, 2ms);
    calls.add("long", 1ms, 1h);
    calls.add("in time", 9ms, 9ms);
    CHECK(run(calls.context) == 18ms);
    CHECK(names(calls.ends) == Log{"short 2", "long 11 expired cancelled", "in time 18"});
}

TEST_CASE("timeouts: the timer changes no time on virtual time", "[timeouts]") {
    Calls calls;
    calls.add("first", 0ms, 1ms);
    calls.add("second", 5ms, 2ms);  // the timer was cancelled in between
    CHECK(run(calls.context) == 7ms);
    CHECK(names(calls.ends) == Log{"first 1", "second 7"});
    CHECK(calls.pending() == 0);
}

TEST_CASE("timeouts: at a tie the function wins, however often it waits", "[timeouts]") {
    Calls calls;
    calls.add("one wait", 0ms, 10ms);
    calls.add("later", 3ms, 10ms);
    const auto several = []() -> Void {
        co_await test::sleep(5ms);
        co_await test::sleep(5ms);
        co_await test::yield();  // too late, if only by a turn
    };
    const auto two = []() -> Void {
        co_await test::sleep(5ms);
        co_await test::sleep(5ms);
    };
    Task a(calls.context.get_executor(), [&] { return call(calls.timeouts, two(), "two waits", calls.ends); });
    Task b(calls.context.get_executor(), [&] { return call(calls.timeouts, several(), "a turn more", calls.ends); });
    CHECK(run(calls.context) == 13ms);
    CHECK(names(calls.ends) == Log{"one wait 10", "two waits 10", "a turn more 10 expired", "later 13"});
}

TEST_CASE("timeouts: a call that was cancelled from outside does not expire", "[timeouts][cancellation]") {
    asio::io_context context;
    const auto timeouts = make_timeouts(10ms);
    std::vector<Ended> ends;
    const auto slow_to_end = []() -> Void {
        try {
            co_await test::sleep(1h);
        } catch (const system_error&) {
        }
        co_await this_coro::reset_cancellation_state(asio::enable_total_cancellation());
        co_await test::sleep(20ms);
    };
    Task task(context.get_executor(), [&] { return call(timeouts, slow_to_end(), "call", ends); });
    context.poll();
    task.cancel();
    CHECK(run(context) == 20ms);
    CHECK(names(ends) == Log{"call 20"});
}

TEST_CASE("timeouts: cancellation and expiry may come in one turn", "[timeouts][cancellation]") {
    const bool outside_first = GENERATE(false, true);
    Calls calls;
    Task task(calls.context.get_executor(),
              [&] { return call(calls.timeouts, test::wait_forever(), "call", calls.ends); });
    VirtualTimer at_ten(calls.context.get_executor());
    const auto cancel = [&](boost::system::error_code) { task.cancel(); };
    if (outside_first) {  // its handler runs before the timer's
        at_ten.expires_after(10ms);
        at_ten.async_wait(cancel);
        calls.context.poll();
        CHECK(run(calls.context) == 10ms);
    } else {
        calls.context.poll();
        VirtualTime::of(calls.context).advance();
        test::poll(calls.context);
        task.cancel();
        run(calls.context);
    }
    CHECK(names(calls.ends) == Log{outside_first ? "call 10 cancelled" : "call 10 expired cancelled"});
}

TEST_CASE("timeouts: an expiry may end other calls and begin new ones", "[timeouts][cancellation]") {
    asio::io_context context;
    const auto timeouts = make_timeouts(10ms);
    std::vector<Ended> ends;
    std::optional<Task<>> other;
    Task first(context.get_executor(), [&]() -> Void {
        co_await call(timeouts, wait_inline(), "first", ends);
        other->cancel();  // inside the first call's cancellation
        co_await call(timeouts, wait_inline(), "new", ends);
    });
    other.emplace(context.get_executor(), [&] { return call(timeouts, wait_inline(), "second", ends); });
    Task third(context.get_executor(), [&] { return call(timeouts, wait_inline(), "third", ends); });
    Task fourth(context.get_executor(), [&]() -> Void {
        co_await test::sleep(5ms);
        co_await call(timeouts, wait_inline(), "later", ends);
    });
    sluice::testing::run_until_stalled(context);
#if defined(SLUICE_PORTABLE_AWAIT)  // the first call goes on a turn later
    const std::string second = "second 10 expired cancelled";
#else
    const std::string second = "second 10 cancelled";
#endif
    CHECK(names(ends) == Log{"first 10 expired cancelled", second, "third 10 expired cancelled",
                             "later 15 expired cancelled", "new 20 expired cancelled"});
    CHECK(VirtualTime::of(context).pending() == 0);
}

TEST_CASE("timeouts: an expiry may end the last call, and with it the timer", "[timeouts][cancellation]") {
    const auto when_idle = GENERATE(WhenIdle::cancel, WhenIdle::cancel_later);
    asio::io_context context;
    std::vector<Ended> ends;
    Task task(context.get_executor(), [&]() -> Void {
        const auto twice = make_timeouts(10ms, when_idle);
        co_await call(make_timeouts(10ms, when_idle), wait_inline(), "own", ends);
        co_await call(twice, wait_inline(), "first", ends);
        co_await call(twice, wait_inline(), "second", ends);
    });
    sluice::testing::run_until_stalled(context);
    CHECK(task.succeeded());
    CHECK(names(ends) == Log{"own 10 expired cancelled", "first 20 expired cancelled", "second 30 expired cancelled"});
}

namespace {

// Makes `n` calls, one after the other, that do not suspend or that yield once.
template <class T>
Void make_calls(SharedTimeouts<T> timeouts, int n, bool yields) {
    const asio::any_io_executor executor = co_await this_coro::executor;
    for (int i = 0; i != n; ++i) {
        typename sluice::detail::Timeouts<T>::Call running(*timeouts, executor, timeouts.due(executor));
        Done done;
        if (yields) {
            co_await cancelled_by(running, done, test::yield());
        } else {
            co_await cancelled_by(running, done, []() -> Void { co_return; }());
        }
    }
}

}  // namespace

TEST_CASE("timeouts: a pending timer does not keep the context from running out of work", "[timeouts]") {
    const auto when_idle = GENERATE(WhenIdle::cancel, WhenIdle::cancel_later);
    const bool yields = GENERATE(false, true);
    const int n = GENERATE(1, 2, 3);
    asio::io_context context;
    const auto timeouts = make_timeouts<asio::steady_timer>(1h, when_idle);
    for (int again = 0; again != 3; ++again) {
        asio::co_spawn(context, make_calls(timeouts, n, yields), asio::detached);
        test::poll(context);
        CHECK(context.stopped());
    }
}

#if !defined(SLUICE_PORTABLE_AWAIT)  // which has handlers of its own
TEST_CASE("timeouts: a pending timer is not cancelled while calls go on", "[timeouts]") {
    asio::io_context context;
    const auto timeouts = make_timeouts<asio::steady_timer>(1h);
    const auto handlers_of = [&](int calls, bool yields) {
        asio::co_spawn(context, make_calls(timeouts, calls, yields), asio::detached);
        return test::poll(context);
    };
    CHECK(handlers_of(1000, false) == handlers_of(1, false));
    // Each call more is a turn more, with a check that finds the next call.
    CHECK(handlers_of(1000, true) == 1998 + handlers_of(1, true));
}
#endif

TEST_CASE("timeouts: the timer is made again when it is needed again", "[timeouts]") {
    asio::io_context context;
    const auto timeouts = make_timeouts(10ms, WhenIdle::cancel);
    std::vector<Ended> ends;
    Task task(context.get_executor(), [&]() -> Void {
        co_await call(timeouts, test::sleep(1ms), "in time", ends);
        // The handler of the cancelled timer has not run yet.
        co_await call(timeouts, test::sleep(1h), "too late", ends);
    });
    CHECK(run(context) == 11ms);
    CHECK(names(ends) == Log{"in time 1", "too late 11 expired cancelled"});
}

TEST_CASE("timeouts: they may outlive their context, and serve another", "[timeouts][shutdown]") {
    const auto timeouts = make_timeouts(10ms);
    std::vector<Ended> ends;
    std::optional<asio::io_context> context(std::in_place);
    const Task first(context->get_executor(), [&] { return call(timeouts, test::sleep(1h), "first", ends); });
    context->poll();
    context.emplace();
    const Task second(context->get_executor(), [&] { return call(timeouts, test::sleep(1h), "second", ends); });
    CHECK(run(*context) == 10ms);
    CHECK(names(ends) == Log{"second 10 expired cancelled"});
}

TEST_CASE("timeouts: context, timeouts and signals may be destroyed at every step, in any order",
          "[timeouts][shutdown]") {
    const bool timeouts_first = GENERATE(false, true);
    const bool tasks_first = GENERATE(false, true);
    const auto run_and_destroy = [&](Steps& steps) {
        std::optional<asio::io_context> context(std::in_place);
        auto timeouts = make_timeouts(10ms);
        std::vector<Ended> ends;
        int alive = 0;
        const auto body = [&](nanoseconds duration) -> Void {
            const Live live(alive);
            co_await test::sleep(duration);
        };
        std::vector<Task<>> tasks;
        for (const auto duration : {2ms, 8ms, 12ms}) {
            tasks.emplace_back(context->get_executor(),
                               [&, duration] { return call(timeouts, body(duration), "call", ends); });
        }
        steps.take(*context);
        if (tasks_first) {
            tasks.clear();
        }
        if (timeouts_first) {
            timeouts.reset();
        }
        context.reset();
        CHECK(alive == 0);
        for (Task<>& task : tasks) {
            task.cancel();
        }
    };
    CHECK(test::for_every_step(run_and_destroy) > 10);
}

TEST_CASE("timeouts: a context may be destroyed at every step of calls with an asio::steady_timer",
          "[timeouts][shutdown]") {
    const bool timeouts_first = GENERATE(false, true);
    const bool yields = GENERATE(false, true);
    const bool is_waiting = GENERATE(false, true);
    for (int n = 0; n != 12; ++n) {
        std::optional<asio::io_context> context(std::in_place);
        auto timeouts = make_timeouts<asio::steady_timer>(1h);
        std::optional<asio::steady_timer> waiting;
        if (is_waiting) {  // otherwise the context is out of work in the end
            waiting.emplace(*context, 1h);
            waiting->async_wait([](auto) {});
        }
        asio::co_spawn(*context, make_calls(timeouts, 2, yields), asio::detached);
        for (int i = 0; i != n; ++i) {
            context->poll_one();
        }
        if (timeouts_first) {
            timeouts.reset();
        }
        waiting.reset();
        context.reset();
    }
}

TEST_CASE("timeouts: a call that expires at every step of its body ends once", "[timeouts][cancellation]") {
    test::for_every_step([&](Steps& steps) {
        asio::io_context context;
        const auto timeouts = make_timeouts(10ms);
        std::vector<Ended> ends;
        int alive = 0;
        const auto body = [&]() -> Void {
            const Live live(alive);
            co_await test::sleep(1ms);
            co_await test::yield();
            co_await test::sleep(1ms);
        };
        const Task task(context.get_executor(), [&] { return call(timeouts, body(), "call", ends); });
        steps.take(context);
        VirtualTime::of(context).advance_by(10ms);
        run(context);
        REQUIRE(ends.size() == 1);
        CHECK(alive == 0);
        CHECK(VirtualTime::of(context).pending() == 0);
    });
}

namespace {

using Io = asio::io_context::executor_type;

// The interface of a Timer and no more: a coarse duration, an executor of one type, no cancel().
class CoarseTimer {
public:
    using executor_type = Io;
    using duration = std::chrono::seconds;
    using time_point = VirtualTimer::time_point;

    explicit CoarseTimer(const executor_type& executor) : timer_(executor) {}

    static time_point now(asio::execution_context& context) { return VirtualTimer::now(context); }

    void expires_after(duration after) { timer_.expires_after(after); }

    template <class Token>
    auto async_wait(Token&& token) {
        return timer_.async_wait(std::forward<Token>(token));
    }

private:
    VirtualTimer timer_;
};
static_assert(sluice::Timer<CoarseTimer>);

asio::awaitable<void, Io> typed_sleep(nanoseconds duration) { return sluice::sleep_for<VirtualTimer, Io>(duration); }

asio::awaitable<void, Io> coarse_call(SharedTimeouts<CoarseTimer> timeouts, nanoseconds begin, nanoseconds duration,
                                      Log& log) {
    const Io executor = co_await this_coro::executor;
    co_await typed_sleep(begin);
    sluice::detail::Timeouts<CoarseTimer>::Call running(*timeouts, executor, timeouts.due(executor));
    Done done;
    try {
        co_await cancelled_by(running, done, typed_sleep(duration));
    } catch (const system_error&) {
    }
    log.push_back(std::to_string(VirtualTimer::now(executor).time_since_epoch() / 1ms) +
                  (running.expired() ? " expired" : ""));
}

}  // namespace

TEST_CASE("timeouts: a timer may be coarse and of a typed executor", "[timeouts][typed]") {
    asio::io_context context;
    const auto timeouts = make_timeouts<CoarseTimer>(2500ms);
    Log log;
    for (const auto& [begin, duration] :
         {std::pair(0ms, 2499ms), std::pair(0ms, 3001ms), std::pair(1300ms, 1h / 1ms * 1ms)}) {
        asio::co_spawn(context, coarse_call(timeouts, begin, duration, log), asio::detached);
    }
    run(context);
    CHECK(log == Log{"2499", "3000 expired", "4000 expired"});  // at 2500 and 3800, rounded up to whole seconds
}

TEST_CASE("sleep_for: the time is rounded up to the ticks of the timer", "[timeouts][typed]") {
    asio::io_context context;
    asio::co_spawn(context, sluice::sleep_for<CoarseTimer, Io>(1s + 1ns), asio::detached);
    CHECK(run(context) == 2s);
}

TEST_CASE("timeouts: zero and less expire at once, and the longest timeout does not overflow", "[timeouts]") {
    const auto timeout = GENERATE(nanoseconds::min(), nanoseconds(0), nanoseconds::max());
    asio::io_context context;
    const auto timeouts = make_timeouts(timeout);
    std::vector<Ended> ends;
    Task a(context.get_executor(), [&] { return call(timeouts, test::sleep(1ms), "a", ends); });
    Task b(context.get_executor(), [&]() -> Void {
        co_await test::sleep(1ms);
        co_await call(timeouts, test::sleep(1ms), "b", ends);
    });
    run(context);
    CHECK(names(ends) == (timeout > 0ms ? Log{"a 1", "b 2"} : Log{"a 0 expired cancelled", "b 1 expired cancelled"}));
}

namespace {

// Calls that are due at times of their own.
struct MixedCalls {
    asio::io_context context{1};
    boost::intrusive_ptr<sluice::detail::Timeouts<VirtualTimer>> timeouts{
        new sluice::detail::Timeouts<VirtualTimer>(WhenIdle::cancel)};
    std::vector<Ended> ends;
    std::vector<Task<>> tasks;

    void start(std::string name, nanoseconds begins, nanoseconds due, nanoseconds takes) {
        tasks.emplace_back(context.get_executor(), [this, name = std::move(name), begins, due, takes]() -> Void {
            co_await test::sleep(begins);
            const SharedTimeouts<VirtualTimer> own{timeouts, due - begins};  // g++ 12 destroys a temporary twice
            co_await call(own, test::sleep(takes), name, ends);
        });
    }
};

}  // namespace

TEST_CASE("timeouts: one timer serves calls with any timeouts, in the order in which they are due", "[timeouts]") {
    MixedCalls calls;
    calls.start("late", 0ms, 30ms, 1h);
    calls.start("early", 1ms, 10ms, 1h);   // before the timer expires
    calls.start("middle", 2ms, 20ms, 1h);  // after it does
    calls.start("tie", 3ms, 20ms, 1h);
    calls.start("ended", 4ms, 15ms, 2ms);
    calls.start("first", 5ms, 7ms, 1ms);  // is not there any more when the timer expires
    run(calls.context);
    CHECK(names(calls.ends) == Log{"ended 6", "first 6", "early 10 expired cancelled", "middle 20 expired cancelled",
                                   "tie 20 expired cancelled", "late 30 expired cancelled"});
    CHECK(test::VirtualTime::of(calls.context).now().time_since_epoch() == 30ms);
}

TEST_CASE("timeouts: a wait in a queue is cut short", "[timeouts]") {
    asio::io_context context(1);
    const auto timeouts = make_timeouts(10ms);
    sluice::StageSemaphore semaphore(context.get_executor(), 1);
    sluice::Slot slot = semaphore.try_acquire();
    Log log;
    const auto wait = [&](nanoseconds timeout) -> Void {
        const asio::any_io_executor executor = co_await this_coro::executor;
        sluice::detail::Waiter waiter;
        const sluice::detail::Timeouts<VirtualTimer>::Wait cut(
            *timeouts, executor,
            sluice::detail::due_after<VirtualTimer>(sluice::detail::now<VirtualTimer>(executor), timeout), waiter);
        co_await state_of(semaphore)->wait(waiter);
        const bool granted = waiter.outcome == sluice::detail::WaitOutcome::granted;
        const sluice::Slot own = granted ? granted_slot(semaphore) : sluice::Slot();
        log.push_back(std::to_string(VirtualTimer::now(executor).time_since_epoch() / 1ms) + (granted ? " granted"
                                                                                              : cut.expired()
                                                                                                  ? " expired"
                                                                                                  : " cancelled"));
    };
    Task expires(context.get_executor(), [&] { return wait(10ms); });
    Task cancelled(context.get_executor(), [&] { return wait(10ms); });
    Task granted(context.get_executor(), [&] { return wait(20ms); });
    Task other(context.get_executor(), [&]() -> Void {
        co_await test::sleep(5ms);
        cancelled.cancel();
        co_await test::sleep(10ms);
        slot.release();
    });
    run(context);
    CHECK(log == Log{"5 cancelled", "10 expired", "15 granted"});
    CHECK(semaphore.active() == 0);
    CHECK(VirtualTimer::now(context).time_since_epoch() == 15ms);
}

namespace {

// A timer that has no memory for a wait when it is told so.
class PoorTimer {
public:
    using executor_type = asio::any_io_executor;
    using duration = VirtualTimer::duration;
    using time_point = VirtualTimer::time_point;
    static inline bool poor = false;

    explicit PoorTimer(const executor_type& executor) : timer_(executor) {}
    static time_point now(asio::execution_context& context) { return VirtualTimer::now(context); }
    void expires_after(duration after) { timer_.expires_after(after); }
    template <class Token>
    auto async_wait(Token&& token) {
        return asio::async_initiate<Token, void(boost::system::error_code)>(
            [](auto handler, PoorTimer* timer) {
                if (poor) {
                    throw std::bad_alloc();
                }
                timer->timer_.async_wait(std::move(handler));
            },
            token, this);
    }

private:
    VirtualTimer timer_;
};

}  // namespace

TEST_CASE("timeouts: a timer that cannot wait for an earlier time still waits for the others", "[timeouts]") {
    using PoorTimeouts = sluice::detail::Timeouts<PoorTimer>;
    asio::io_context context(1);
    const boost::intrusive_ptr<PoorTimeouts> timeouts(new PoorTimeouts(WhenIdle::cancel));
    const auto timed_call = [&](nanoseconds due, nanoseconds& end) -> Void {
        const asio::any_io_executor executor = co_await this_coro::executor;
        PoorTimeouts::Call running(*timeouts, executor, PoorTimer::time_point(due));
        Done done;
        try {
            co_await cancelled_by(running, done, test::sleep(60s));
        } catch (const system_error&) {
            end = VirtualTimer::now(executor).time_since_epoch();
        }
    };
    nanoseconds first_end{};
    nanoseconds second_end{};
    Task first(context.get_executor(), [&] { return timed_call(10s, first_end); });
    Task early(context.get_executor(), [&]() -> Void {
        co_await test::sleep(1s);
        PoorTimer::poor = true;
        co_await timed_call(5s, second_end);
    });
    Task other(context.get_executor(), [&]() -> Void {
        co_await test::sleep(2s);
        PoorTimer::poor = false;
    });
    run(context);
    CHECK(early.failed_with<std::bad_alloc>());
    CHECK(first_end == 10s);
}

TEST_CASE("timeouts: a strand may be destroyed before the timeouts that were used on it", "[timeouts][shutdown]") {
    SharedTimeouts<asio::steady_timer> timeouts = make_timeouts<asio::steady_timer>(1h);
    {
        asio::io_context context;
        const auto strand = asio::make_strand(context);
        asio::co_spawn(strand, make_calls(timeouts, 2, true), asio::detached);
        context.run();
    }
    timeouts.reset();
}
