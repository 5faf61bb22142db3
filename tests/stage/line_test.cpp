// SPDX-License-Identifier: BSL-1.0
// The line of an endpoint, alone: slot, rates, pause and breaker are granted together.
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/timed_line.hpp>

#include "support/models.hpp"
#include "support/naive_breaker.hpp"
#include "support/rate_reference.hpp"
#include "support/task.hpp"

#include <sluice/stage/breaker.hpp>
#include <sluice/stage/detail/breaker_state.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry_budget.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/timeouts.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/testing/run.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <limits>
#include <map>
#include <optional>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace {

using namespace std::chrono_literals;
using sluice::BreakerOptions;
using sluice::Cost;
using sluice::Rate;
using sluice::detail::BreakerReport;
using sluice::detail::BreakerResult;
using sluice::detail::Line;
using sluice::detail::LineEntry;
using sluice::detail::WaitOutcome;
using test::Task;
using test::VirtualTimer;
using Nanoseconds = std::chrono::nanoseconds;
using Timeouts = sluice::detail::Timeouts<VirtualTimer>;
using LinePointer = boost::intrusive_ptr<sluice::detail::TimedLine<VirtualTimer>>;

// What a caller does in the line.
struct Visitor {
    Nanoseconds arrival{0};
    Nanoseconds call = 10ms;
    Cost cost = {};
    std::optional<Cost> usage = std::nullopt;
    BreakerResult result = BreakerResult::success;
    sluice::WhileOpen while_open = sluice::WhileOpen::hold;
    bool throttled_once = false;  // the first call is refused by the provider, and returns to its old place
    Nanoseconds retry_after = 1s;
    std::optional<Nanoseconds> timeout = std::nullopt;  // of its query, from its arrival
    std::uint16_t steps = 0;                            // which that has completed
    bool failed_probe = false;
};

// A line in virtual time, and callers.
struct LineScene {
    asio::io_context context{1};
    LinePointer line;
    std::deque<Task<>> tasks;
    std::map<std::size_t, std::vector<Nanoseconds>> starts;  // of the calls of each caller
    std::map<std::size_t, std::string> ends;
    std::map<std::size_t, Nanoseconds> end_times;
    std::vector<BreakerReport> reports;
    std::optional<Nanoseconds> max_wait;
    boost::intrusive_ptr<Timeouts> timeouts{new Timeouts(sluice::detail::WhenIdle::cancel_later)};

    explicit LineScene(std::ptrdiff_t limit, sluice::EndpointOptions options = {}) : max_wait(options.max_wait) {
        options.limit = limit;
        line = sluice::detail::make_queue<sluice::detail::TimedLine<VirtualTimer>>(
            "Line", context.get_executor(), asio::any_io_executor(context.get_executor()), options);
    }

    std::size_t start(const Visitor& caller) {
        const std::size_t index = tasks.size();
        tasks.emplace_back(context.get_executor(), [this, index, caller] { return come(*this, index, caller); });
        return index;
    }
    void run() { sluice::testing::run(context); }
    void run_until(Nanoseconds time) { test::run_until(context, time); }
    Nanoseconds now() { return test::now(context); }
    Nanoseconds start_of(std::size_t caller) { return starts.at(caller).front(); }

    // Nothing waits, and nothing is left over.
    void check_idle() const {
        CHECK(line->waiting() == 0);
        CHECK(line->active() == 0);
        CHECK(line->meter().is_balanced());
        for (const Rate::Dimension dimension : {Rate::requests, Rate::input_tokens, Rate::output_tokens}) {
            CHECK(line->meter().ledger(dimension).outstanding == 0);
        }
    }

    void end(std::size_t index, std::string how) {
        ends[index] = std::move(how);
        end_times[index] = now();
    }

    static std::string name_of(const LineEntry& entry) {
        if (entry.outcome != WaitOutcome::refused) {
            return entry.outcome == WaitOutcome::aborted ? "aborted" : "closed";
        }
        switch (entry.refusal) {
            case LineEntry::Refusal::too_costly:
                return "too costly";
            case LineEntry::Refusal::late:
                return "late";
            case LineEntry::Refusal::too_late_to_begin:
                return "too late to begin";
            case LineEntry::Refusal::full:
                return "full";
            case LineEntry::Refusal::waited:
                return "waited";
            default:
                return "breaker open";
        }
    }

    // Waits in the line until then, as a stage does.
    static asio::awaitable<void> wait_until(LineScene& counter, LineEntry& entry, Nanoseconds until) {
        const Timeouts::Wait wait(*counter.timeouts, counter.context.get_executor(), VirtualTimer::time_point(until),
                                  entry);
        co_await counter.line->wait(entry);
        bool over = wait.expired() && entry.outcome == WaitOutcome::aborted;
        if (entry.outcome == WaitOutcome::granted && counter.now() >= until) {
            counter.line->cancel_call(entry, false);
            counter.line->give_back();
            over = true;
        }
        if (over) {
            entry.outcome = WaitOutcome::refused;
            entry.refusal = until == entry.expires ? LineEntry::Refusal::late : LineEntry::Refusal::waited;
        }
    }

    static asio::awaitable<void> come(LineScene& counter, std::size_t index, Visitor caller) {
        co_await test::sleep(caller.arrival - counter.now());
        std::uint32_t ticket = 0;
        bool returns = false;
        for (;;) {
            LineEntry entry;
            entry.cost = caller.cost;
            entry.while_open = caller.while_open;
            entry.ticket = ticket;
            entry.returns = returns;
            entry.steps = caller.steps;
            entry.failed_probe = caller.failed_probe;
            if (caller.timeout) {
                entry.expires = caller.arrival + *caller.timeout;
            }
            if (entry.expires <= counter.now()) {
                counter.end(index, "late");
                co_return;
            }
            if (!counter.line->decide(entry)) {
                const Nanoseconds longest = counter.max_wait ? counter.now() + *counter.max_wait : Nanoseconds::max();
                const Nanoseconds until = std::min(entry.expires, longest);
                if (until != Nanoseconds::max()) {
                    co_await wait_until(counter, entry, until);
                } else {
                    co_await counter.line->wait(entry);
                }
            }
            if (entry.outcome != WaitOutcome::granted) {
                counter.end(index, name_of(entry));
                co_return;
            }
            counter.starts[index].push_back(counter.now());
            try {
                co_await test::sleep(caller.call);
            } catch (...) {
                counter.line->cancel_call(entry, true);
                counter.line->give_back();
                counter.end(index, "cancelled");
                throw;
            }
            returns = std::exchange(caller.throttled_once, false);
            ticket = entry.ticket;
            if (returns) {
                counter.line->pause(caller.retry_after);  // before its slot is handed on
            }
            counter.reports.push_back(
                counter.line->end(entry, caller.usage, returns ? BreakerResult::ignored : caller.result));
            counter.line->give_back();
            if (!returns) {
                counter.end(index, "done");
                co_return;
            }
        }
    }
};

sluice::EndpointOptions with_requests(const Rate& rate) {
    sluice::EndpointOptions policies;
    policies.requests = rate;
    return policies;
}

}  // namespace

TEST_CASE("line: slots and a rate are granted together", "[line]") {
    // 20 slots, 10 calls a second, burst 10; the first 20 calls are slow. With the rate taken before the slot, 299
    // begin within one second; with the slot taken first, slots are held by those that wait for the rate.
    LineScene counter(20, with_requests(Rate(10, 1s, 10)));
    for (int i = 0; i < 400; ++i) {
        counter.start({.call = i < 20 ? Nanoseconds(30s) : 10ms});
    }
    counter.run();
    std::vector<Nanoseconds> begun;
    for (const auto& [caller, times] : counter.starts) {
        begun.push_back(times.front());
    }
    CHECK(begun.size() == 400);
    CHECK(std::ranges::is_sorted(begun));
    for (std::size_t i = 0; i + 20 < begun.size(); ++i) {
        CHECK(begun[i + 20] - begun[i] > 1s);  // at most the burst and what comes in a second
    }
    CHECK(counter.now() <= 70s);
    counter.check_idle();
}

TEST_CASE("line: who waits for a rate holds no slot, and who is cancelled has taken nothing", "[line]") {
    LineScene counter(2, with_requests(Rate(1, 1s)));
    counter.start({});
    const std::size_t second = counter.start({});
    counter.start({});
    counter.run_until(500ms);
    CHECK(counter.line->active() == 0);
    CHECK(counter.line->waiting() == 2);
    counter.tasks[second].cancel();
    counter.run();
    CHECK(counter.ends[second] == "aborted");
    CHECK(counter.start_of(2) == 1s);  // and not 2 s
    counter.check_idle();
}

TEST_CASE("line: a waiter that is cancelled after its grant returns slot and charge", "[line]") {
    LineScene counter(1, with_requests(Rate(1, 1s)));
    counter.start({});
    const std::size_t second = counter.start({.call = 1h});
    counter.start({});
    counter.run_until(1s - 1ns);
    while (counter.line->active() == 0) {  // until the timer grants
        REQUIRE(test::step(counter.context));
    }
    CHECK(!counter.starts.contains(second));  // it has not been resumed yet
    counter.tasks[second].cancel();
    counter.run();
    counter.check_idle();
    CHECK(counter.ends.at(second) == "aborted");
    CHECK(counter.start_of(2) == 1s);
}

TEST_CASE("line: an empty line has no timer", "[line]") {
    LineScene counter(1, with_requests(Rate(1, 24h)));
    counter.start({});
    const std::size_t second = counter.start({});
    counter.run_until(1s);
    counter.tasks[second].cancel();
    counter.run();
    CHECK(counter.now() == 1s);
    counter.line->pause(1h);
    counter.run();
    CHECK(counter.now() == 1s);
}

TEST_CASE("line: closing ends the waits and the timer", "[line]") {
    LineScene counter(1, with_requests(Rate(1, 24h)));
    counter.start({});
    counter.start({});
    counter.start({.arrival = 2s});
    counter.run_until(1s);
    counter.line->close();
    counter.run();
    CHECK(counter.ends == std::map<std::size_t, std::string>{{0, "done"}, {1, "closed"}, {2, "closed"}});
    CHECK(counter.now() == 2s);
}

TEST_CASE("line: a pause holds all, and its end is no stampede", "[line]") {
    LineScene counter(9, with_requests(Rate(10, 1s, 10)));
    counter.line->pause(1min);
    for (int i = 0; i < 5; ++i) {
        counter.start({.call = 5s});
    }
    counter.run();
    for (std::size_t i = 0; i < 5; ++i) {
        CHECK(counter.start_of(i) == 1min + (static_cast<int>(i) + 1) * 100ms);
    }
}

TEST_CASE("line: without rates, a pause holds those that wait for a slot too, and the line is open after it",
          "[line]") {
    LineScene counter(1);
    CHECK(counter.line->try_take());
    counter.start({});
    counter.start({});
    counter.run_until(1s);
    counter.line->pause(1min);
    counter.line->give_back();
    CHECK(!counter.line->try_take());
    counter.run();
    CHECK(counter.start_of(0) == 61s);
    CHECK(counter.start_of(1) == 61s + 10ms);
    CHECK(counter.line->try_take());
    counter.line->give_back();
    counter.check_idle();
}

TEST_CASE("line: it is open with a retry budget alone, and again after a pause", "[line]") {
    sluice::EndpointOptions policies;
    policies.retry_budget = sluice::RetryBudget{};
    LineScene counter(1, policies);
    CHECK(counter.line->try_take());
    counter.line->give_back();
    counter.line->pause(1s);
    CHECK(!counter.line->try_take());
    counter.start({.arrival = 2s});
    counter.run();
    CHECK(counter.line->try_take());
}

TEST_CASE("line: a longer pause wins, whenever it comes", "[line]") {
    const bool longer_first = GENERATE(false, true);
    LineScene counter(1);
    counter.line->pause(longer_first ? 3s : 1s);
    counter.start({});
    counter.run_until(500ms);
    counter.line->pause(longer_first ? Nanoseconds(1s) : 2500ms);
    counter.run();
    CHECK(counter.start_of(0) == 3s);
}

TEST_CASE("line: until a refused call is back in its place, the next one there is the head", "[line]") {
    // With a slot free, who could not be done in the 100 ms that a call takes leaves as soon as it is the head.
    sluice::EndpointOptions policies;
    policies.shed_late = true;
    const bool refused = GENERATE(false, true);
    LineScene counter(1, policies);
    for (int i = 0; i < 20; ++i) {
        counter.start({.call = 100ms});
    }
    counter.start({.call = 100ms, .throttled_once = refused, .retry_after = 10ms});
    const std::size_t hopeless = counter.start({.timeout = 2150ms});
    const std::size_t last = counter.start({});
    counter.run();
    CHECK(counter.ends[hopeless] == "too late to begin");
    CHECK(counter.end_times[hopeless] == 2100ms);
    CHECK(counter.start_of(last) == (refused ? 2210ms : 2100ms));  // and the refused one before it
    counter.check_idle();
}

TEST_CASE("line: a call that is dearer than the burst is refused, at once or when the rate changes", "[line]") {
    sluice::EndpointOptions policies;
    policies.input_tokens = Rate(1000, 1s, 100);
    LineScene counter(1, policies);
    counter.start({.cost = {.input_tokens = 101}});
    counter.start({.cost = {.input_tokens = 100}});
    counter.start({.cost = {.input_tokens = 100}});
    counter.start({.cost = {.input_tokens = 50}});
    counter.run_until(1ms);
    CHECK(counter.ends.at(0) == "too costly");
    counter.line->set_rate(Rate::input_tokens, Rate(1000, 1s, 60));
    counter.run();
    CHECK(counter.ends.at(2) == "too costly");
    CHECK(counter.ends.at(3) == "done");
    counter.check_idle();
}

TEST_CASE("line: a rate that is raised grants at once", "[line]") {
    LineScene counter(1, with_requests(Rate(1, 24h)));
    counter.start({});
    counter.start({});
    counter.run_until(1s);
    counter.line->set_rate(Rate::requests, Rate::unlimited);
    counter.run();
    CHECK(counter.start_of(1) == 1s);
    counter.check_idle();
}

TEST_CASE("line: usage beyond the charge holds the next, and usage below it lets it begin", "[line]") {
    sluice::EndpointOptions policies;
    policies.input_tokens = Rate(100, 1s, 100);
    const std::int64_t used = GENERATE(0, 50, 100, 150);
    LineScene counter(1, policies);
    counter.start({.call = 1ms, .cost = {.input_tokens = 100}, .usage = Cost{.input_tokens = used}});
    counter.start({.cost = {.input_tokens = 50}});
    counter.run();
    // 50 of 100 - used + t / 10 ms.
    const Nanoseconds due = (used - 50) * 10ms;
    CHECK(counter.start_of(1) == std::max<Nanoseconds>(due, 1ms));
    counter.check_idle();
}

TEST_CASE("line: a costly head is not overtaken by cheap followers", "[line]") {
    sluice::EndpointOptions policies;
    policies.input_tokens = Rate(100, 1s, 100);
    LineScene counter(9, policies);
    counter.start({.cost = {.input_tokens = 60}});
    counter.start({.cost = {.input_tokens = 100}});
    counter.start({.cost = {.input_tokens = 1}});
    counter.run();
    CHECK(counter.start_of(1) == 600ms);
    CHECK(counter.start_of(2) == 610ms);
}

TEST_CASE("line: an attempt that was refused by the provider returns to its old place", "[line]") {
    LineScene counter(1);
    counter.start({.throttled_once = true});
    for (int i = 0; i < 3; ++i) {
        counter.start({.throttled_once = i == 1});
    }
    counter.run();
    CHECK(counter.starts[0] == std::vector<Nanoseconds>{0s, 1010ms});
    CHECK(counter.starts[1] == std::vector<Nanoseconds>{1020ms});
    CHECK(counter.starts[2] == std::vector<Nanoseconds>{1030ms, 2040ms});
    CHECK(counter.starts[3] == std::vector<Nanoseconds>{2050ms});
}

TEST_CASE("line: attempts that begin at once return in the order in which they came", "[line]") {
    const bool gated = GENERATE(false, true);
    LineScene counter(2, with_requests(gated ? Rate(1000, 1s, 1000) : Rate::unlimited));
    counter.start({.call = 20ms, .throttled_once = true});
    counter.start({.call = 10ms, .throttled_once = true});
    counter.run_until(5ms);
    counter.line->set_limit(1);
    counter.run();
    CHECK(counter.starts[0].back() < counter.starts[1].back());
    counter.check_idle();
}

TEST_CASE("line: those that have completed more steps go first, and of as many, the first", "[line][order]") {
    sluice::EndpointOptions policies;
    policies.order = sluice::LineOrder::furthest_first;
    LineScene counter(1, policies);
    counter.start({});
    for (const std::uint16_t steps : std::vector<std::uint16_t>{1, 0, 2, 1, 0, 65535, 2}) {
        counter.start({.steps = steps});
    }
    counter.run();
    const std::vector<std::size_t> order{0, 6, 3, 7, 1, 4, 2, 5};
    for (std::size_t i = 0; i < order.size(); ++i) {
        CHECK(counter.start_of(order[i]) == static_cast<int>(i) * 10ms);
    }
    counter.check_idle();
}

TEST_CASE("line: of those that have failed as probes and have completed more steps none probes ahead of others",
          "[line][order]") {
    sluice::EndpointOptions policies;
    policies.order = sluice::LineOrder::furthest_first;
    policies.breaker = BreakerOptions{.failure_rate = 1, .minimum_calls = 1, .open_time = 1s, .jitter = 0, .probes = 1};
    LineScene counter(1, policies);
    counter.start({.result = BreakerResult::failure});
    counter.start({.steps = 5, .failed_probe = true});
    counter.start({.steps = 1});
    counter.start({.steps = 2});
    counter.run();
    CHECK(counter.start_of(3) == 1010ms);
    CHECK(counter.start_of(1) == 1020ms);
    CHECK(counter.start_of(2) == 1030ms);
}

TEST_CASE("line: whoever would be the head of a line that is full leaves the timer to the head", "[line][order]") {
    sluice::EndpointOptions policies;
    policies.input_tokens = Rate(100, 1s, 100);
    policies.max_waiting = 1;
    policies.order = sluice::LineOrder::furthest_first;
    LineScene counter(9, policies);
    counter.start({.cost = {.input_tokens = 60}});
    counter.start({.arrival = 1ms, .cost = {.input_tokens = 50}});
    counter.start({.arrival = 2ms, .cost = {.input_tokens = 100}, .steps = 1});
    counter.start({.arrival = 3ms, .cost = {.input_tokens = 1}, .steps = 1});  // need not wait
    counter.run();
    CHECK(counter.ends[2] == "full");
    CHECK(counter.start_of(3) == 3ms);
    CHECK(counter.start_of(1) == 110ms);
    counter.check_idle();
}

TEST_CASE("line: an open breaker holds the line, and a probe at a time tries", "[line]") {
    sluice::EndpointOptions policies;
    policies.breaker = BreakerOptions{.failure_rate = 1, .minimum_calls = 2, .open_time = 1s, .jitter = 0, .probes = 1};
    LineScene counter(4, policies);
    counter.start({.result = BreakerResult::failure});
    counter.start({.result = BreakerResult::failure});
    counter.start({.arrival = 100ms, .result = BreakerResult::failure});  // the first probe
    counter.start({.arrival = 101ms, .call = 20ms});
    counter.start({.arrival = 102ms});
    counter.start({.arrival = 103ms, .while_open = sluice::WhileOpen::fail});
    counter.run();
    CHECK(counter.start_of(2) == 1010ms);
    CHECK(counter.start_of(3) == 3020ms);
    CHECK(counter.start_of(4) == 3040ms);  // when the probe has closed it
    CHECK(counter.ends.at(5) == "breaker open");
    CHECK(counter.reports[1].opened);
    CHECK(counter.reports[2].failed_probe);
    counter.check_idle();
}

TEST_CASE("line: who does not hold is refused when the breaker opens; a cancelled probe lets the next try", "[line]") {
    sluice::EndpointOptions policies;
    policies.breaker = BreakerOptions{.failure_rate = 1, .minimum_calls = 1, .open_time = 1s, .jitter = 0, .probes = 1};
    LineScene counter(1, policies);
    counter.start({.result = BreakerResult::failure});
    counter.start({.while_open = sluice::WhileOpen::fail});
    const std::size_t probe = counter.start({.call = 1h});
    counter.start({});
    counter.run_until(10ms);
    CHECK(counter.ends.at(1) == "breaker open");
    counter.run_until(2s);
    CHECK(counter.start_of(probe) == 1010ms);
    counter.tasks[probe].cancel();
    counter.run();
    CHECK(counter.start_of(3) == 2s);
    CHECK(counter.line->breaker()->status(counter.line->now()).state == sluice::BreakerStatus::closed);
    counter.check_idle();
}

TEST_CASE("line: its context may be destroyed while callers wait and call", "[line]") {
    sluice::EndpointOptions policies = with_requests(Rate(3, 1s));
    policies.breaker = BreakerOptions{};
    LinePointer survivor;
    {
        LineScene counter(2, policies);
        for (int i = 0; i < 5; ++i) {
            counter.start({.call = 1h});
        }
        counter.run_until(GENERATE(0ms, 100ms, 2s));
        survivor = counter.line;
    }
    CHECK(survivor->active() >= 0);
    CHECK(survivor->waiting() == 0);
    survivor->pause(1s);
    survivor->set_rate(Rate::requests, Rate(1, 1s));
}

namespace {

// The same in the simplest way: at each instant, every event that is due, and then the head as long as all can pay.
class LineSimulation {
public:
    using Reference = test::ReferenceMeter<std::int64_t>;
    static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();

    struct Guest {
        std::int64_t arrival = 0;
        std::int64_t call = 0;
        std::int64_t tokens = 0;
        std::int64_t used = 0;
        std::int64_t cancel = never;
        std::int64_t deadline = never;
        std::int64_t steps = 0;
        std::int64_t throttled = 0;  // its first call, which pauses the endpoint for that time; 0 if it is not
        bool trips = false;          // the breaker, if its call ends

        std::vector<std::int64_t> starts = {};
        std::string end = {};
        std::int64_t end_time = -1;

        bool calls = false;
        bool returns = false;    // its call has just been refused by the provider, and it is not back in the line yet
        std::int64_t began = 0;  // to wait
        test::NaiveBreaker::Call permit = {};
    };
    struct Event {
        std::int64_t time;
        enum class Kind { pause, limit, rate, open, reset } kind;
        std::int64_t value;
    };

    std::vector<Guest> guests;
    std::vector<Event> events;
    Reference meter;
    std::optional<test::NaiveBreaker> breaker;
    std::int64_t limit = 1;
    std::int64_t max_waiting = never;
    std::int64_t max_wait = never;
    bool sheds = false;
    bool furthest_first = false;

    void run() {
        for (Guest& guest : guests) {
            guest.began = guest.arrival;
        }
        for (std::int64_t now = 0; now != never; now = next_instant(now)) {
            for (const Event& event : events) {
                if (event.time == now) {
                    apply(event, now);
                }
            }
            for (Guest& guest : guests) {
                if (guest.calls && std::min(guest.starts.back() + guest.call, guest.cancel) == now) {
                    end_call(guest, now);
                } else if (waits(guest, now)) {
                    leave_in_time(guest, now);
                }
            }
            grant(now);
            for (Guest& guest : guests) {
                if (guest.arrival == now && waits(guest, now) && waiting(now) > max_waiting) {
                    leave(guest, "full", now);
                }
            }
        }
    }

private:
    static bool waits(const Guest& guest, std::int64_t now) {
        return guest.arrival <= now && guest.end.empty() && !guest.calls && !guest.returns;
    }

    std::int64_t waiting(std::int64_t now) const {
        return std::ranges::count_if(guests, [&](const Guest& guest) { return waits(guest, now); });
    }

    static void leave(Guest& guest, const char* how, std::int64_t now) {
        guest.end = how;
        guest.end_time = now;
    }

    std::int64_t longest_wait(const Guest& guest) const { return max_wait == never ? never : guest.began + max_wait; }

    // Whoever cannot begin before it is late leaves, even before it is.
    void leave_in_time(Guest& guest, std::int64_t now) const {
        const std::int64_t half_open = breaker->earliest(now);
        if (guest.cancel == now) {
            leave(guest, "aborted", now);
        } else if (guest.deadline <= std::max({now, meter.paused_until, half_open})) {
            leave(guest, "late", now);
        } else if (longest_wait(guest) <= now) {
            leave(guest, "waited", now);
        }
    }

    void end_call(Guest& guest, std::int64_t now) {
        using Result = test::NaiveBreaker::Result;
        const bool cancelled = guest.cancel == now;
        const bool throttled = !cancelled && guest.throttled != 0 && guest.starts.size() == 1;
        if (throttled) {
            meter.pause(now + guest.throttled, now);
        }
        meter.add(1, cancelled ? 0 : guest.tokens - guest.used, now);
        const Result result = cancelled || throttled ? Result::ignored : guest.trips ? Result::trips : Result::success;
        breaker->end(guest.permit, result, now);
        if (result == Result::success) {
            times_.push_back(now - guest.starts.back());
        }
        guest.calls = false;
        guest.returns = throttled;
        if (!throttled) {
            leave(guest, cancelled ? "cancelled" : "done", now);
        }
        for (Guest& other : guests) {
            if (waits(other, now)) {
                leave_in_time(other, now);
            }
        }
        if (throttled) {
            grant(now);  // its slot is free: whoever is next now leaves, if there is no hope
            guest.returns = false;
            guest.began = now;
            leave_in_time(guest, now);
        }
    }

    void apply(const Event& event, std::int64_t now) {
        switch (event.kind) {
            case Event::Kind::pause:
                meter.pause(now + event.value, now);
                break;
            case Event::Kind::limit:
                limit = event.value;
                break;
            case Event::Kind::rate:
                meter.set(0, {{event.value, 1'000'000, event.value}}, now);
                break;
            case Event::Kind::open:
                breaker->force_open(now);
                break;
            case Event::Kind::reset:
                breaker->close(now, false);
                break;
        }
    }

    Guest* head(std::int64_t now) {
        Guest* first = nullptr;
        for (Guest& guest : guests) {
            if (waits(guest, now) && (first == nullptr || rank(guest) < rank(*first))) {
                first = &guest;
            }
        }
        return first;
    }

    std::pair<std::int64_t, std::int64_t> rank(const Guest& guest) const {
        return {furthest_first ? -guest.steps : 0, guest.arrival};
    }

    bool has_slot() const {
        return std::ranges::count_if(guests, [](const Guest& guest) { return guest.calls; }) < limit;
    }

    // The time that a call takes, or 0.
    std::int64_t median() const {
        if (!sheds || times_.size() < 20) {
            return 0;
        }
        std::vector<std::int64_t> last(times_.end() - std::min<std::ptrdiff_t>(64, std::ssize(times_)), times_.end());
        std::ranges::sort(last);
        return last[(last.size() - 1) / 2];
    }

    bool may_begin(const Guest& guest, std::int64_t now) const {
        return meter.can_pay({1, guest.tokens, 0}, now) && breaker->may_begin(now);
    }
    bool is_hopeless(const Guest& guest, std::int64_t now) const {
        return guest.deadline != never && guest.deadline - now < median();
    }

    void grant(std::int64_t now) {
        for (;;) {
            Guest* const first = head(now);
            if (first == nullptr || !has_slot()) {
                return;
            }
            if (is_hopeless(*first, now)) {
                leave(*first, "too late to begin", now);
            } else if (may_begin(*first, now)) {
                first->calls = true;
                first->starts.push_back(now);
                first->permit = breaker->begin(now);
                meter.add(0, -1, now);
                meter.add(1, -first->tokens, now);
            } else {
                return;
            }
        }
    }

    std::int64_t next_instant(std::int64_t now) {
        std::int64_t next = never;
        const auto consider = [&](std::int64_t time) {
            if (time > now) {
                next = std::min(next, time);
            }
        };
        for (const Event& event : events) {
            consider(event.time);
        }
        for (const Guest& guest : guests) {
            if (guest.end.empty()) {
                consider(guest.arrival);
                consider(guest.cancel);
                consider(guest.deadline);
                consider(longest_wait(guest));
                consider(guest.calls ? guest.starts.back() + guest.call : never);
            }
        }
        if (const Guest* const first = head(now); first != nullptr && has_slot()) {
            consider(first_time(now, next, [&](std::int64_t time) { return may_begin(*first, time); }));
            consider(first_time(now, next, [&](std::int64_t time) { return is_hopeless(*first, time); }));
        }
        return next;
    }

    // The first time up to `end` from which on something holds.
    static std::int64_t first_time(std::int64_t now, std::int64_t end, const auto& holds) {
        std::int64_t low = now;
        std::int64_t high = std::min(end, now + 1'000'000'000);
        if (!holds(high)) {
            return never;
        }
        while (high - low > 1) {
            const std::int64_t middle = low + (high - low) / 2;
            (holds(middle) ? high : low) = middle;
        }
        return high;
    }

    std::vector<std::int64_t> times_;  // of the calls that succeeded
};

// Draws a pattern for the simulation, and the same for a line.
struct LinePattern {
    using Event = LineSimulation::Event;

    LineSimulation simulation;
    sluice::EndpointOptions policies;
    std::multimap<std::int64_t, std::function<void(LineScene&)>> acts;

    explicit LinePattern(std::mt19937_64& random) : random_(random), many_(one_in(8)) {
        simulation.limit = many_ ? from(3, 6) : from(1, 4);
        const std::int64_t requests = many_ ? from(15, 40) : from(1, 9);
        const std::int64_t tokens = from(10, 99);
        burst_ = from(5, tokens);
        policies.requests = Rate(requests, 1ms, requests);
        policies.input_tokens = Rate(tokens, 1ms, burst_);
        simulation.meter.set(0, {{requests, 1'000'000, requests}}, 0);
        simulation.meter.set(1, {{tokens, 1'000'000, burst_}}, 0);
        draw_breaker();
        draw_queue_bound();
        for (std::int64_t i = many_ ? from(35, 50) : from(1, 14); i > 0; --i) {
            draw_guest();
        }
        for (std::int64_t i = from(0, 5); i > 0; --i) {
            draw_event();
        }
        std::ranges::sort(simulation.events, {}, &Event::time);
    }

    static Visitor visitor_of(const LineSimulation::Guest& guest) {
        Visitor visitor{.arrival = Nanoseconds(guest.arrival),
                        .call = Nanoseconds(guest.call),
                        .cost = {.input_tokens = guest.tokens},
                        .usage = Cost{.input_tokens = guest.used},
                        .result = guest.trips ? BreakerResult::trips : BreakerResult::success,
                        .throttled_once = guest.throttled != 0,
                        .retry_after = Nanoseconds(guest.throttled),
                        .steps = static_cast<std::uint16_t>(guest.steps)};
        if (guest.deadline != LineSimulation::never) {
            visitor.timeout = Nanoseconds(guest.deadline - guest.arrival);
        }
        return visitor;
    }

private:
    // The same with every standard library, whose distributions differ.
    std::int64_t from(std::int64_t low, std::int64_t high) {
        return low + static_cast<std::int64_t>(random_() % static_cast<std::uint64_t>(high - low + 1));
    }
    bool one_in(std::int64_t n) { return from(1, n) == 1; }

    void draw_breaker() {
        const std::int64_t open = from(1, 1'000'000);
        const std::int64_t probes = from(1, 2);
        policies.breaker = BreakerOptions{.minimum_calls = 1000,
                                          .open_time = Nanoseconds(open),
                                          .open_cap = Nanoseconds(3 * open),
                                          .jitter = 0,
                                          .probes = static_cast<int>(probes)};
        simulation.breaker.emplace(test::NaiveBreaker::Settings{.failure_percent = 50,
                                                                .minimum = 1000,
                                                                .tenth = 3'000'000'000,
                                                                .last = 0,
                                                                .slow = 0,
                                                                .slow_percent = 50,
                                                                .open = open,
                                                                .cap = 3 * open,
                                                                .probes = probes});
    }

    void draw_queue_bound() {
        if (one_in(many_ ? 9 : 3)) {
            simulation.max_waiting = from(0, 4);
            policies.max_waiting = simulation.max_waiting;
        }
        if (one_in(3)) {
            simulation.max_wait = from(1, 3'000'000);
            policies.max_wait = Nanoseconds(simulation.max_wait);
        }
        policies.shed_late = simulation.sheds = many_ || one_in(3);
        simulation.furthest_first = one_in(2);
        policies.order = simulation.furthest_first ? sluice::LineOrder::furthest_first : sluice::LineOrder::first_come;
    }

    void draw_guest() {
        LineSimulation::Guest guest{.arrival = from(1, 4'000'000),
                                    .call = from(1, many_ ? 300'000 : 2'000'000),
                                    .tokens = from(0, many_ ? 3 : burst_),
                                    .used = from(0, many_ ? 3 : 60),
                                    .steps = from(0, 2)};
        if (one_in(many_ ? 20 : 5)) {
            guest.cancel = guest.arrival + from(1, 4'000'000);
        }
        if (one_in(3)) {
            guest.deadline = guest.arrival + from(1, many_ ? 500'000 : 4'000'000);
        }
        if (one_in(many_ ? 50 : 8)) {
            guest.throttled = from(1, 1'000'000);
        }
        guest.trips = one_in(many_ ? 50 : 8);
        simulation.guests.push_back(guest);
    }

    void draw_event() {
        const auto kind = static_cast<Event::Kind>(from(0, 3));
        const std::int64_t time = from(1, 6'000'000);
        const std::int64_t value = kind == Event::Kind::pause ? from(1, 3'000'000) : from(1, 6);
        add({time, kind, value});
        if (kind == Event::Kind::open) {
            add({time + from(1, 1'000'000), Event::Kind::reset, 0});
        }
    }

    void add(const Event& event) {
        simulation.events.push_back(event);
        acts.emplace(event.time, [event](LineScene& scene) { act(*scene.line, event); });
    }

    static void act(Line& line, const Event& event) {
        switch (event.kind) {
            case Event::Kind::pause:
                line.pause(Nanoseconds(event.value));
                break;
            case Event::Kind::limit:
                line.set_limit(event.value);
                break;
            case Event::Kind::rate:
                line.set_rate(Rate::requests, Rate(event.value, 1ms, event.value));
                break;
            case Event::Kind::open:
                line.change_breaker(&sluice::detail::BreakerState::force_open);
                break;
            case Event::Kind::reset:
                line.change_breaker(&sluice::detail::BreakerState::reset);
                break;
        }
    }

    std::mt19937_64& random_;
    const bool many_;  // guests, so that it is known how long a call takes
    std::int64_t burst_ = 0;
};

}  // namespace

TEST_CASE("line: an independent simulation grants and refuses at the same nanosecond", "[line][simulation]") {
    std::mt19937_64 random(20261126);
    std::map<std::string, int> ends;
    int returned = 0;
    for (int pattern = 0; pattern < 10'000; ++pattern) {
        CAPTURE(pattern);
        LinePattern drawn(random);
        LineScene counter(drawn.simulation.limit, drawn.policies);
        for (const auto& guest : drawn.simulation.guests) {
            const std::size_t index = counter.start(LinePattern::visitor_of(guest));
            if (guest.cancel != LineSimulation::never) {
                drawn.acts.emplace(guest.cancel, [index](LineScene& scene) { scene.tasks[index].cancel(); });
            }
        }
        const Task<> director(counter.context.get_executor(), [&drawn, &counter]() -> asio::awaitable<void> {
            for (const auto& [time, act] : drawn.acts) {
                co_await test::sleep(Nanoseconds(time) - counter.now());
                act(counter);
            }
        });
        counter.run();
        drawn.simulation.run();

        for (std::size_t i = 0; i < drawn.simulation.guests.size(); ++i) {
            CAPTURE(i);
            const LineSimulation::Guest& expected = drawn.simulation.guests[i];
            std::vector<std::int64_t> starts;
            for (const Nanoseconds start : counter.starts[i]) {
                starts.push_back(start.count());
            }
            REQUIRE(starts == expected.starts);
            REQUIRE(counter.ends[i] == expected.end);
            REQUIRE(counter.end_times[i].count() == expected.end_time);
            ++ends[expected.end];
            returned += expected.starts.size() > 1 ? 1 : 0;
        }
        counter.check_idle();
    }
    for (const char* const end : {"done", "cancelled", "aborted", "late", "waited", "full", "too late to begin"}) {
        CAPTURE(end);
        CHECK(ends[end] > 500);
    }
    CHECK(returned > 500);
}
