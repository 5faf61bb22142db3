// SPDX-License-Identifier: BSL-1.0
// The model functions and queries that all pipelines of the benchmark run, ours and the others.
#pragma once

#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>

#include <array>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <stdexcept>
#include <string>
#include <vector>

namespace benchmark {

namespace asio = boost::asio;

using Result = sluice::PipelineResult<int, int, int>;

/// The number of times that a model function suspends before it returns.
enum class Suspends { never, once };

/// The share of calls in which a model function fails.
enum class Failures { none, a_tenth };

inline constexpr std::size_t stages = 3;
inline constexpr std::array<std::ptrdiff_t, stages> limits{20, 10, 5};

/// The names of the stages, made once and shared by all results.
struct StageNames {
    std::array<sluice::SharedString, stages> names{"classify", "extract", "generate"};

    const sluice::SharedString& operator[](std::size_t stage) const { return names[stage]; }
};

/// Returns `count` queries whose text is their number, in eight bytes, so that a model knows its query without parsing
/// and a copy of the text allocates nothing.
inline std::vector<sluice::Query> make_queries(std::size_t count) {
    std::vector<sluice::Query> queries;
    queries.reserve(count);
    for (std::uint64_t i = 0; i < count; ++i) {
        std::string text(sizeof i, '\0');
        std::memcpy(text.data(), &i, sizeof i);
        queries.emplace_back("q-" + std::to_string(i), text);
    }
    return queries;
}

inline std::size_t number_of(const std::string& text) noexcept {
    std::uint64_t number = 0;
    std::memcpy(&number, text.data(), sizeof number);
    return static_cast<std::size_t>(number);
}

/// Decides which attempts fail: in each stage the first one of every tenth query. Its retry succeeds.
class FailurePlan {
public:
    FailurePlan(Failures failures, std::size_t queries) : failed_(failures == Failures::none ? 0 : stages * queries) {}

    void maybe_fail(std::size_t stage, const std::string& text) {
        if (failed_.empty()) {
            return;
        }
        const std::size_t query = number_of(text);
        // Not the same queries in every stage.
        if (query % 10 == 3 * stage && !failed_[stages * query + stage]) {
            failed_[stages * query + stage] = true;
            throw std::runtime_error("scripted");
        }
    }

private:
    std::vector<char> failed_;  // whether a stage has already failed a query; empty if none ever fails
};

/// The three model functions.
template <class AnExecutor, Suspends suspends>
class Models {
public:
    using Executor = AnExecutor;

    explicit Models(FailurePlan& plan) : plan_(plan) {}

    asio::awaitable<int, Executor> classify(const std::string& text) { return answer(0, text, 1); }
    asio::awaitable<int, Executor> extract(const std::string& text) { return answer(1, text, 2); }
    asio::awaitable<int, Executor> generate(int intent, int entities, const std::string& text) {
        return answer(2, text, intent + entities);
    }

private:
    asio::awaitable<int, Executor> answer(std::size_t stage, const std::string& text, int value) {
        if constexpr (suspends == Suspends::once) {
            co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
        }
        plan_.maybe_fail(stage, text);
        co_return value;
    }

    FailurePlan& plan_;
};

}  // namespace benchmark
