// SPDX-License-Identifier: BSL-1.0
// Retrieval-augmented generation in phases: embed every chunk, then score every chunk, then answer from the best three.
// One barrier separates the phases, and the chunks are children of one task group.
#include "arguments.hpp"

#include <sluice/sync/barrier.hpp>
#include <sluice/sync/task_group.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/use_future.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <iomanip>
#include <iostream>
#include <iterator>
#include <map>
#include <random>
#include <string>
#include <utility>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;

namespace {

using Embedding = std::array<double, 3>;

std::mt19937_64& random_engine() {
    static std::mt19937_64 engine(std::random_device{}());
    return engine;
}

asio::awaitable<void> sleep(std::chrono::nanoseconds duration) {
    asio::steady_timer timer(co_await asio::this_coro::executor, duration);
    co_await timer.async_wait(asio::deferred);
}

Embedding mock_embedding() {
    std::uniform_real_distribution<double> component(0, 1);
    return {component(random_engine()), component(random_engine()), component(random_engine())};
}

double similarity(const Embedding& a, const Embedding& b) {  // cosine
    const auto dot = [](const Embedding& x, const Embedding& y) { return x[0] * y[0] + x[1] * y[1] + x[2] * y[2]; };
    return dot(a, b) / std::sqrt(dot(a, a) * dot(b, b));
}

/// Phases 1 and 2 for one chunk, with a barrier after each.
asio::awaitable<void> process_chunk(std::string chunk, const Embedding& query,
                                    std::map<std::string, Embedding>& embeddings, std::map<std::string, double>& scores,
                                    sluice::Barrier& barrier) {
    std::uniform_int_distribution<int> milliseconds(100, 300);
    co_await sleep(milliseconds(random_engine()) * 1ms);
    embeddings[chunk] = mock_embedding();
    std::cout << "Phase 1 complete: " << chunk << std::endl;

    co_await barrier.arrive_and_wait();  // from here on every chunk is embedded

    co_await sleep(50ms);
    scores[chunk] = similarity(query, embeddings.at(chunk));
    std::cout << "Phase 2 complete: " << chunk << " score=" << std::fixed << std::setprecision(2) << scores[chunk]
              << std::endl;

    co_await barrier.arrive_and_wait();  // the same barrier: from here on every chunk has a score
}

/// All three phases. Phase 3 needs the results of the chunks and not their coroutines, so it runs after the group.
asio::awaitable<std::string> rag_pipeline(std::vector<std::string> chunks, std::string query) {
    std::map<std::string, Embedding> embeddings;
    std::map<std::string, double> scores;
    const Embedding query_embedding = mock_embedding();
    sluice::Barrier barrier(co_await asio::this_coro::executor, std::ssize(chunks));

    // NOLINTNEXTLINE(cppcoreguidelines-avoid-capturing-lambda-coroutines): the group stores it
    co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
        for (const auto& chunk : chunks) {
            group.spawn(process_chunk(chunk, query_embedding, embeddings, scores, barrier));
        }
        co_return;
    });

    const auto top = std::min<std::ptrdiff_t>(3, std::ssize(chunks));
    std::partial_sort(chunks.begin(), chunks.begin() + top, chunks.end(),
                      [&](const auto& a, const auto& b) { return scores.at(a) > scores.at(b); });
    std::cout << "Top " << top << " chunks: [";
    for (std::ptrdiff_t i = 0; i < top; ++i) {
        std::cout << (i == 0 ? "'" : ", '") << chunks[static_cast<std::size_t>(i)] << '\'';
    }
    std::cout << "]\nGenerating answer from top " << top << " chunks..." << std::endl;
    co_return "a mock answer to \"" + query + "\"";
}

asio::awaitable<void> run() {
    std::vector<std::string> chunks;
    for (int i = 0; i < 6; ++i) {
        chunks.push_back("chunk-" + std::to_string(i));
    }
    const auto answer = co_await rag_pipeline(std::move(chunks), "What is retrieval augmented generation?");
    std::cout << "\nFinal answer: " << answer << std::endl;
}

}  // namespace

int main(int argc, char** argv) {
    if (const auto status = support::refuse_arguments("rag_pipeline", argc, argv)) {
        return *status;
    }
    asio::io_context context(1);
    auto done = asio::co_spawn(context, run(), asio::use_future);
    context.run();
    done.get();
}
