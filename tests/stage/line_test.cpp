// SPDX-License-Identifier: BSL-1.0
// The line of an endpoint, alone: slot, rates, pause and breaker are granted together.
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/timed_line.hpp>

#include "support/models.hpp"
#include "support/rate_reference.hpp"
#include "support/task.hpp"

#include <sluice/stage/breaker.hpp>
#include <sluice/stage/detail/breaker_state.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry_budget.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
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
};

// A line in virtual time, and callers.
struct LineScene {
    asio::io_context context{1};
    LinePointer line;
    std::deque<Task<>> tasks;
    std::map<std::size_t, std::vector<Nanoseconds>> starts;  // of the calls of each caller
    std::map<std::size_t, std::string> ends;
    std::vector<BreakerReport> reports;

    explicit LineScene(std::ptrdiff_t limit, sluice::EndpointOptions options = {}) {
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
            if (!counter.line->decide(entry)) {
                co_await counter.line->wait(entry);
            }
            if (entry.outcome != WaitOutcome::granted) {
                counter.ends[index] = entry.outcome == WaitOutcome::aborted             ? "aborted"
                                      : entry.outcome == WaitOutcome::closed            ? "closed"
                                      : entry.refusal == LineEntry::Refusal::too_costly ? "too costly"
                                                                                        : "breaker open";
                co_return;
            }
            counter.starts[index].push_back(counter.now());
            try {
                co_await test::sleep(caller.call);
            } catch (...) {
                counter.line->cancel_call(entry, true);
                counter.line->give_back();
                counter.ends[index] = "cancelled";
                throw;
            }
            returns = std::exchange(caller.throttled_once, false);
            ticket = entry.ticket;
            if (returns) {
                counter.line->pause(1s);  // before its slot is handed on
            }
            counter.reports.push_back(
                counter.line->end(entry, caller.usage, returns ? BreakerResult::ignored : caller.result));
            counter.line->give_back();
            if (!returns) {
                counter.ends[index] = "done";
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

    struct Guest {
        std::int64_t arrival;
        std::int64_t call;
        std::int64_t tokens;
        std::int64_t used;
        std::int64_t cancel;  // or never
        std::int64_t start = -1;
        bool gone = false;
    };
    struct Event {
        std::int64_t time;
        enum class Kind { pause, limit, rate, open, reset } kind;
        std::int64_t value;
    };
    static constexpr std::int64_t never = std::numeric_limits<std::int64_t>::max();

    std::vector<Guest> guests;
    std::vector<Event> events;
    Reference meter;
    std::int64_t limit = 1;

    void run() {
        std::int64_t now = 0;
        for (;;) {
            handle(now);
            grant(now);
            const std::int64_t next = next_event(now);
            const std::int64_t due = next_due(now, next);
            now = std::min(next, due);
            if (now == never) {
                return;
            }
        }
    }

private:
    static bool ends_at(const Guest& guest, std::int64_t time) {
        return guest.start >= 0 && std::min(guest.start + guest.call, guest.cancel) == time;
    }

    void handle(std::int64_t now) {
        for (const Event& event : events) {
            if (event.time == now) {
                apply(event, now);
            }
        }
        for (Guest& guest : guests) {
            if (!guest.gone && ends_at(guest, now)) {
                guest.gone = true;
                --active_;
                const bool cancelled = guest.cancel <= guest.start + guest.call;
                meter.add(1, guest.tokens - (cancelled ? guest.tokens : guest.used), now);
            } else if (!guest.gone && guest.start < 0 && guest.cancel == now) {
                guest.gone = true;
            }
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
                open_ = true;
                break;
            case Event::Kind::reset:
                open_ = false;
                break;
        }
    }

    Guest* head(std::int64_t now) {
        Guest* first = nullptr;
        for (Guest& guest : guests) {
            if (!guest.gone && guest.start < 0 && guest.arrival <= now &&
                (first == nullptr || guest.arrival < first->arrival)) {
                first = &guest;
            }
        }
        return first;
    }

    void grant(std::int64_t now) {
        for (;;) {
            Guest* const first = head(now);
            if (first == nullptr || active_ >= limit || open_ || !meter.can_pay({1, first->tokens, 0}, now)) {
                return;
            }
            first->start = now;
            ++active_;
            meter.add(0, -1, now);
            meter.add(1, -first->tokens, now);
        }
    }

    std::int64_t next_event(std::int64_t now) const {
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
            if (guest.gone) {
                continue;
            }
            consider(guest.arrival);
            consider(guest.cancel);
            if (guest.start >= 0) {
                consider(guest.start + guest.call);
            }
        }
        return next;
    }

    // The first time before `end` at which the head can pay.
    std::int64_t next_due(std::int64_t now, std::int64_t end) {
        Guest* const first = head(now);
        if (first == nullptr || active_ >= limit || open_) {
            return never;
        }
        std::int64_t low = now;
        std::int64_t high = std::min(end, now + 1'000'000'000);
        const auto pays = [&](std::int64_t time) { return meter.can_pay({1, first->tokens, 0}, time); };
        if (!pays(high)) {
            return never;
        }
        while (high - low > 1) {
            const std::int64_t middle = low + (high - low) / 2;
            (pays(middle) ? high : low) = middle;
        }
        return high;
    }

    std::int64_t active_ = 0;
    bool open_ = false;
};

}  // namespace

TEST_CASE("line: an independent simulation grants at the same nanosecond", "[line][simulation]") {
    std::mt19937_64 random(20261126);
    const auto from = [&](std::int64_t low, std::int64_t high) {
        return std::uniform_int_distribution<std::int64_t>(low, high)(random);
    };
    using Event = LineSimulation::Event;
    for (int pattern = 0; pattern < 10'000; ++pattern) {
        CAPTURE(pattern);
        LineSimulation simulation;
        simulation.limit = from(1, 4);
        const std::int64_t requests = from(1, 9);
        const std::int64_t tokens = from(10, 99);
        const std::int64_t burst = from(5, tokens);
        sluice::EndpointOptions policies;
        policies.requests = Rate(requests, 1ms, requests);
        policies.input_tokens = Rate(tokens, 1ms, burst);
        policies.breaker = BreakerOptions{};
        simulation.meter.set(0, {{requests, 1'000'000, requests}}, 0);
        simulation.meter.set(1, {{tokens, 1'000'000, burst}}, 0);
        LineScene counter(simulation.limit, policies);

        const std::int64_t count = from(1, 14);
        for (std::int64_t i = 0; i < count; ++i) {
            LineSimulation::Guest guest{.arrival = from(1, 4'000'000),
                                        .call = from(1, 2'000'000),
                                        .tokens = from(0, burst),
                                        .used = from(0, 60),
                                        .cancel = LineSimulation::never};
            if (from(0, 4) == 0) {
                guest.cancel = guest.arrival + from(1, 4'000'000);
            }
            simulation.guests.push_back(guest);
        }
        for (std::int64_t i = from(0, 5); i > 0; --i) {
            const auto kind = static_cast<Event::Kind>(from(0, 3));
            const std::int64_t time = from(1, 6'000'000);
            const std::int64_t value = kind == Event::Kind::pause ? from(1, 3'000'000) : from(1, 6);
            simulation.events.push_back({time, kind, value});
            if (kind == Event::Kind::open) {
                simulation.events.push_back({time + from(1, 1'000'000), Event::Kind::reset, 0});
            }
        }
        std::ranges::sort(simulation.events, {}, &Event::time);

        std::multimap<std::int64_t, std::function<void()>> acts;
        for (const Event& event : simulation.events) {
            acts.emplace(event.time, [&line = *counter.line, event] {
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
            });
        }
        for (const auto& guest : simulation.guests) {
            const std::size_t index = counter.start({.arrival = Nanoseconds(guest.arrival),
                                                     .call = Nanoseconds(guest.call),
                                                     .cost = {.input_tokens = guest.tokens},
                                                     .usage = Cost{.input_tokens = guest.used}});
            if (guest.cancel != LineSimulation::never) {
                acts.emplace(guest.cancel, [&counter, index] { counter.tasks[index].cancel(); });
            }
        }
        const Task<> director(counter.context.get_executor(), [&acts, &counter]() -> asio::awaitable<void> {
            for (const auto& [time, act] : acts) {
                co_await test::sleep(Nanoseconds(time) - counter.now());
                act();
            }
        });
        counter.run();
        simulation.run();

        for (std::size_t i = 0; i < simulation.guests.size(); ++i) {
            CAPTURE(i);
            const std::int64_t expected = simulation.guests[i].start;
            const auto found = counter.starts.find(i);
            REQUIRE((found == counter.starts.end() ? -1 : found->second.front().count()) == expected);
        }
        REQUIRE(counter.line->waiting() == 0);
        REQUIRE(counter.line->active() == 0);
        REQUIRE(counter.line->meter().is_balanced());
    }
}
