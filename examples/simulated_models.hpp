// SPDX-License-Identifier: BSL-1.0
// Simulated model endpoints: they wait, sometimes fail, and answer by simple rules. Treat them as external services.
#pragma once

#include <sluice/query.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/this_coro.hpp>

#include <algorithm>
#include <array>
#include <cctype>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <initializer_list>
#include <iterator>
#include <map>
#include <ostream>
#include <random>
#include <regex>
#include <sstream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace support {

namespace asio = boost::asio;

enum class Intent { billing, technical, general };

inline std::string_view name(Intent intent) {
    constexpr std::array<std::string_view, 3> names{"billing", "technical", "general"};
    return names[static_cast<std::size_t>(intent)];
}

using Entities = std::map<std::string, std::string>;

class TimeoutError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

class ConnectionError : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

using Random = std::mt19937_64;

/// A number from `from` to less than `to`. The standard's distributions differ from one library to another.
inline double uniform(Random& random, double from, double to) {
    return from + (to - from) * std::ldexp(static_cast<double>(random() >> 11), -53);
}

/// The three models of the customer support pipeline.
///
/// The outcome of a call depends on the seed, the model, the text, and the number of earlier calls of that model with
/// that text. So the same seed produces the same outcomes, whatever the order of the calls.
template <sluice::Timer Timer>
class SimulatedModels {
public:
    explicit SimulatedModels(std::uint64_t seed) : seed_(seed) {}

    /// Fast, but occasionally fails.
    asio::awaitable<Intent> classify_intent(std::string text) {
        auto random = draw("classify", text);
        co_await sleep(random, 0.03, 0.08);
        if (chance(random, 0.05)) {
            throw TimeoutError("Classification model timed out");
        }
        if (mentions(text, {"bill", "charge", "payment", "invoice", "refund"})) {
            co_return Intent::billing;
        }
        if (mentions(text, {"error", "bug", "crash", "slow", "broken"})) {
            co_return Intent::technical;
        }
        co_return Intent::general;
    }

    /// Of medium speed, with a moderate failure rate.
    asio::awaitable<Entities> extract_entities(std::string text) {
        auto random = draw("extract", text);
        co_await sleep(random, 0.1, 0.2);
        if (chance(random, 0.08)) {
            throw ConnectionError("Entity extraction service unavailable");
        }
        Entities entities;
        static const std::regex account("ACC-[0-9]+");
        if (std::smatch match; std::regex_search(text, match, account)) {
            entities["account_id"] = match.str();
        }
        std::istringstream words(text);
        entities["word_count"] = std::to_string(
            std::distance(std::istream_iterator<std::string>(words), std::istream_iterator<std::string>()));
        co_return entities;
    }

    /// Slow, and sometimes out of memory.
    asio::awaitable<std::string> generate_response(Intent intent, const Entities& entities, std::string text) {
        auto random = draw("generate", text);
        co_await sleep(random, 0.3, 0.7);
        if (chance(random, 0.03)) {
            throw std::runtime_error("Generation model OOM error");
        }
        std::ostringstream response;
        response << '[' << name(intent) << "] Processed query with " << entities.size() << " entities extracted.";
        co_return std::move(response).str();
    }

private:
    Random draw(const std::string& model, const std::string& text) {
        const int earlier_calls = calls_[model + text]++;
        const std::string call = std::to_string(seed_) + model + std::to_string(earlier_calls) + text;
        std::seed_seq seed(call.begin(), call.end());
        return Random(seed);
    }

    static bool chance(Random& random, double probability) { return uniform(random, 0, 1) < probability; }

    static asio::awaitable<void> sleep(Random& random, double from_seconds, double to_seconds) {
        const std::chrono::duration<double> wait(uniform(random, from_seconds, to_seconds));
        Timer timer(co_await asio::this_coro::executor);
        timer.expires_after(std::chrono::duration_cast<typename Timer::duration>(wait));
        co_await timer.async_wait(asio::deferred);
    }

    static bool mentions(std::string text, std::initializer_list<const char*> words) {
        std::transform(text.begin(), text.end(), text.begin(),
                       [](unsigned char c) { return static_cast<char>(std::tolower(c)); });
        return std::any_of(words.begin(), words.end(),
                           [&](const char* word) { return text.find(word) != std::string::npos; });
    }

    std::uint64_t seed_;
    std::map<std::string, int> calls_;
};

/// Returns `count` queries of the kind that customers send.
inline std::vector<sluice::Query> generate_test_queries(std::size_t count, std::uint64_t seed) {
    static constexpr std::array<std::string_view, 8> templates{
        "I was charged twice on my bill for ACC-{id}",
        "The app keeps crashing when I open ACC-{id}",
        "How do I update my profile settings?",
        "I need a refund for invoice #{id}",
        "Error 500 when accessing the dashboard for ACC-{id}",
        "What are your business hours?",
        "My payment for ACC-{id} was declined",
        "The search feature is broken and very slow",
    };
    Random random(seed);
    std::vector<sluice::Query> queries;
    queries.reserve(count);
    for (std::size_t i = 0; i < count; ++i) {
        std::string text(templates[random() % templates.size()]);
        if (const auto at = text.find("{id}"); at != std::string::npos) {
            text.replace(at, 4, std::to_string(1000 + random() % 9000));
        }
        const std::string number = std::to_string(i);
        queries.emplace_back("q-" + std::string(number.size() < 4 ? 4 - number.size() : 0, '0') + number,
                             std::move(text));
    }
    return queries;
}

}  // namespace support
