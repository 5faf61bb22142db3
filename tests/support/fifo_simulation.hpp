// SPDX-License-Identifier: BSL-1.0
// The expected duration of a batch: a discrete-event simulation of first-in-first-out stages that shares no code with
// sluice.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <functional>
#include <queue>
#include <random>
#include <utility>
#include <vector>

namespace test {

using Time = std::int64_t;  // nanoseconds

struct Attempt {
    Time duration;
    bool fails;
};

/// The course of every attempt of every query in every stage.
struct Script {
    std::vector<std::array<std::vector<Attempt>, 3>> queries;
    std::array<std::ptrdiff_t, 3> limits;
    std::size_t window;
    int retries;
    Time backoff;  // the same before every retry
};

inline Script random_script(std::uint64_t seed, std::size_t queries, bool failures, int retries, bool windowed) {
    std::mt19937_64 random(seed);
    const auto uniform = [&](Time from, Time to) { return std::uniform_int_distribution<Time>(from, to)(random); };
    Script script{{}, {20, 10, 5}, windowed ? 35 : queries, retries, 50'000'123};
    const std::array<std::pair<Time, Time>, 3> latencies{
        {{30'000'000, 80'000'000}, {100'000'000, 200'000'000}, {300'000'000, 700'000'000}}};
    for (std::size_t i = 0; i < queries; ++i) {
        auto& query = script.queries.emplace_back();
        for (std::size_t stage = 0; stage < 3; ++stage) {
            for (int attempt = 0; attempt <= retries; ++attempt) {
                query[stage].push_back(
                    {uniform(latencies[stage].first, latencies[stage].second), failures && uniform(0, 9) == 0});
            }
        }
    }
    return script;
}

/// Returns how long the script takes if only its attempts and backoffs take time and every stage serves first come,
/// first served. A query in backoff has no place in the window; afterwards it gets one before any new query. Events are
/// handled in order of time, and simultaneous ones in order of creation.
inline Time simulate(const Script& script) {
    struct Event {
        Time at;
        std::uint64_t sequence;
        std::size_t query;
        bool ends_attempt;  // otherwise it ends a backoff
        bool operator>(const Event& other) const {
            return std::pair(at, sequence) > std::pair(other.at, other.sequence);
        }
    };
    struct Where {
        std::size_t stage = 0;
        std::size_t attempt = 0;
    };
    std::priority_queue<Event, std::vector<Event>, std::greater<>> events;
    std::array<std::deque<std::size_t>, 3> queues;
    std::array<std::ptrdiff_t, 3> busy{};
    std::vector<Where> where(script.queries.size());
    std::uint64_t sequence = 0;
    std::size_t admitted = 0;
    std::size_t places = script.window;  // that are free
    std::deque<std::size_t> returning;   // whose backoff has ended
    Time now = 0;

    const auto serve = [&](std::size_t stage) {
        while (busy[stage] < script.limits[stage] && !queues[stage].empty()) {
            const std::size_t query = queues[stage].front();
            queues[stage].pop_front();
            ++busy[stage];
            const Attempt& attempt = script.queries[query][stage][where[query].attempt];
            events.push({now + attempt.duration, sequence++, query, true});
        }
    };
    const auto join = [&](std::size_t query) {
        queues[where[query].stage].push_back(query);
        serve(where[query].stage);
    };
    const auto admit = [&] {
        while (places > 0 && (!returning.empty() || admitted < script.queries.size())) {
            --places;
            if (returning.empty()) {
                join(admitted++);
            } else {
                join(returning.front());
                returning.pop_front();
            }
        }
    };
    admit();
    while (!events.empty()) {
        const Event event = events.top();
        events.pop();
        now = event.at;
        Where& at = where[event.query];
        if (!event.ends_attempt) {
            returning.push_back(event.query);
            admit();
            continue;
        }
        const std::size_t stage = at.stage;
        const bool failed = script.queries[event.query][stage][at.attempt].fails;
        --busy[stage];
        serve(stage);
        if (failed && at.attempt < static_cast<std::size_t>(script.retries)) {
            ++at.attempt;
            events.push({now + script.backoff, sequence++, event.query, false});
            ++places;
            admit();
        } else if (failed || stage == 2) {
            ++places;
            admit();
        } else {
            at = {stage + 1, 0};
            join(event.query);
        }
    }
    return now;
}

}  // namespace test
