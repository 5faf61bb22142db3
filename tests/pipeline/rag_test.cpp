// SPDX-License-Identifier: BSL-1.0
// Retrieval-augmented generation: the chunks of a document pass through two phases together, and the third phase
// answers.
#include <sluice/sync/barrier.hpp>
#include <sluice/sync/task_group.hpp>
#include <sluice/sync/timeout.hpp>
#include <sluice/testing/run.hpp>

#include "support/every_step.hpp"
#include "support/models.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>
#include <catch2/generators/catch_generators_range.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <random>
#include <stdexcept>
#include <string>
#include <vector>

namespace asio = boost::asio;
using namespace std::chrono_literals;
using sluice::Barrier;
using test::Task;

namespace {

struct Event {
    int phase;
    bool begins;
    std::size_t chunk;
};

// Everything that the coroutines of a run share, and its results.
struct Rag {
    std::vector<std::chrono::nanoseconds> embed;  // the duration, by chunk
    std::vector<std::chrono::nanoseconds> score;
    std::function<void(int, std::size_t)> on_phase = [](int, std::size_t) {};  // phase and chunk; may throw
    bool degrade = false;  // a chunk that fails in phase 1 drops out of the barrier

    std::map<std::size_t, double> embeddings;
    std::map<std::size_t, double> scores;
    std::vector<Event> events;
    int working = 0;
    int most_working = 0;

    explicit Rag(std::size_t chunks, unsigned seed = 0) {
        std::mt19937 random(seed);
        for (std::size_t i = 0; i != chunks; ++i) {
            embed.emplace_back(100ms + std::chrono::microseconds(random() % 200'000));
            score.emplace_back(50ms + std::chrono::microseconds(random() % 2 * (random() % 9'000)));
        }
    }

    std::size_t chunks() const { return embed.size(); }
    auto count(int phase, bool begins) const {
        return std::ranges::count_if(events, [=](const Event& e) { return e.phase == phase && e.begins == begins; });
    }
};

asio::awaitable<void> work(Rag& rag, int phase, std::size_t chunk, std::chrono::nanoseconds duration) {
    struct Working {
        Rag& rag;
        explicit Working(Rag& r) : rag(r) { rag.most_working = std::max(rag.most_working, ++rag.working); }
        ~Working() { --rag.working; }
    } const working(rag);
    rag.events.push_back({phase, true, chunk});
    co_await test::sleep(duration);
    rag.on_phase(phase, chunk);
    rag.events.push_back({phase, false, chunk});
}

// Both phases of one chunk, with the barrier after each.
asio::awaitable<void> process_chunk(Rag& rag, std::size_t chunk, Barrier& barrier) {
    bool dropped = false;
    try {
        co_await work(rag, 1, chunk, rag.embed[chunk]);
        rag.embeddings[chunk] = static_cast<double>(chunk * 7 % 13);
    } catch (const std::runtime_error&) {
        if (!rag.degrade) {
            throw;
        }
        barrier.arrive_and_drop();
        dropped = true;
    }
    if (dropped) {
        co_return;
    }
    co_await barrier.arrive_and_wait();
    co_await work(rag, 2, chunk, rag.score[chunk]);
    double sum = 0;
    for (const auto& [other, embedding] : rag.embeddings) {  // all of them, thanks to the barrier
        sum += embedding;
    }
    rag.scores[chunk] = rag.embeddings[chunk] / sum;
    co_await barrier.arrive_and_wait();
}

using Top = std::vector<std::size_t>;

asio::awaitable<Top> answer(Rag& rag) {
    Top top;
    for (const auto& [chunk, score] : rag.scores) {
        top.push_back(chunk);
    }
    std::ranges::sort(top, std::greater<>(), [&](std::size_t chunk) { return rag.scores[chunk]; });
    top.resize(std::min<std::size_t>(top.size(), 3));
    rag.events.push_back({3, true, 0});
    co_await test::sleep(20ms);
    rag.events.push_back({3, false, 0});
    co_return top;
}

asio::awaitable<Top> rag_pipeline(Rag& rag, Barrier& barrier) {
    co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<void> {
        for (std::size_t chunk = 0; chunk != rag.chunks(); ++chunk) {
            group.spawn([&rag, chunk, &barrier] { return process_chunk(rag, chunk, barrier); });
        }
        co_return;
    });
    co_return co_await answer(rag);
}

// The alternative: the pipeline is a party, too, and passes both boundaries with the chunks.
asio::awaitable<Top> rag_pipeline_as_party(Rag& rag, Barrier& barrier) {
    co_return co_await sluice::with_task_group([&](sluice::TaskGroup& group) -> asio::awaitable<Top> {
        for (std::size_t chunk = 0; chunk != rag.chunks(); ++chunk) {
            group.spawn([&rag, chunk, &barrier] { return process_chunk(rag, chunk, barrier); });
        }
        co_await barrier.arrive_and_wait();
        CHECK(rag.embeddings.size() == rag.chunks());
        co_await barrier.arrive_and_wait();
        co_return co_await answer(rag);
    });
}

// One run on one io_context.
struct RagRun {
    Rag rag;
    asio::io_context context{1};
    Barrier barrier;
    bool as_party;

    explicit RagRun(std::size_t chunks, unsigned seed = 0, bool party = false)
        : rag(chunks, seed),
          barrier(context.get_executor(), static_cast<std::ptrdiff_t>(chunks) + (party ? 1 : 0)),
          as_party(party) {}

    Task<Top> start() {
        return Task<Top>(context.get_executor(), [this] {
            return as_party ? rag_pipeline_as_party(rag, barrier) : rag_pipeline(rag, barrier);
        });
    }
    std::chrono::nanoseconds run() { return sluice::testing::run(context); }

    // Whether each phase began after the previous one had ended, for every chunk that did not drop out.
    bool in_phases() const {
        int phase = 1;
        for (const Event& event : rag.events) {
            if (event.phase < phase) {
                return false;
            }
            phase = event.phase;
        }
        return true;
    }
};

}  // namespace

TEST_CASE("rag: no chunk enters phase 2 before all have left phase 1, and phase 3 begins after all have left phase 2",
          "[rag]") {
    const bool as_party = GENERATE(false, true);
    for (unsigned seed = 0; seed != 50; ++seed) {
        RagRun run(6, seed, as_party);
        auto task = run.start();
        while (test::step(run.context)) {
            REQUIRE((run.rag.count(2, true) == 0 || run.rag.count(1, false) == 6));
            REQUIRE((run.rag.count(3, true) == 0 || run.rag.count(2, false) == 6));
        }
        REQUIRE(task.succeeded());
        CHECK(run.in_phases());
        CHECK(run.rag.events.size() == 6 * 4 + 2);
        CHECK(task.value() == Top{5, 3, 1});  // the highest of 0 7 1 8 2 9
        CHECK(run.rag.scores.size() == 6);
        CHECK(run.rag.scores[5] == 9.0 / 27);  // relative to all embeddings
    }
}

TEST_CASE("rag: one barrier serves both boundaries, and any number of documents", "[rag]") {
    RagRun run(6);
    for (std::uint64_t document = 0; document != 5; ++document) {
        CHECK(run.barrier.phase() == 2 * document);
        run.rag.events.clear();
        run.rag.embeddings.clear();
        run.rag.scores.clear();
        auto task = run.start();
        run.run();
        REQUIRE(task.succeeded());
        CHECK(run.in_phases());
        CHECK(run.barrier.phase() == 2 * document + 2);
        CHECK(run.barrier.waiting() == 0);
    }
}

TEST_CASE("rag: within a phase all chunks work concurrently", "[rag]") {
    const std::size_t chunks = GENERATE(std::size_t{1}, std::size_t{2}, std::size_t{6}, std::size_t{2000});
    RagRun run(chunks, 5);
    auto task = run.start();
    const auto expected = std::ranges::max(run.rag.embed) + std::ranges::max(run.rag.score) + 20ms;
    CHECK(run.run() == expected);
    REQUIRE(task.succeeded());
    CHECK(run.rag.most_working == static_cast<int>(chunks));
    CHECK(task.value().size() == std::min<std::size_t>(chunks, 3));
    CHECK(run.in_phases());
}

TEST_CASE("rag: a failed chunk does not hang the others, and its exception propagates", "[rag]") {
    const int phase = GENERATE(1, 2);
    const bool as_party = GENERATE(false, true);
    for (std::size_t chunk = 0; chunk != 6; ++chunk) {
        RagRun run(6, 3, as_party);
        run.rag.on_phase = [&](int p, std::size_t c) {
            if (p == phase && c == chunk) {
                throw std::runtime_error("chunk " + std::to_string(c));
            }
        };
        auto task = run.start();
        run.run();
        REQUIRE(task.done());
        CHECK(task.failed_with<std::runtime_error>());
        CHECK_FALSE(task.aborted());
        CHECK(run.barrier.waiting() == 0);
        CHECK(run.barrier.phase() == static_cast<std::uint64_t>(phase) - 1);
        CHECK_FALSE(run.barrier.broken());
        CHECK(run.rag.working == 0);
        CHECK(run.rag.count(phase + 1, true) == 0);
        CHECK(run.in_phases());
    }
}

TEST_CASE("rag: siblings of a failed chunk are cancelled at once, not when their model answers", "[rag]") {
    RagRun run(3);
    run.rag.embed = {100ms, 200ms, 1h};
    run.rag.on_phase = [](int, std::size_t chunk) {
        if (chunk == 1) {
            throw std::runtime_error("no embedding");
        }
    };
    auto task = run.start();
    CHECK(run.run() == 200ms);
    CHECK(task.failed_with<std::runtime_error>());
    CHECK(run.rag.working == 0);
}

TEST_CASE("rag: after a failed document the same barrier serves the next one", "[rag]") {
    RagRun run(6, 1);
    run.rag.on_phase = [](int phase, std::size_t chunk) {
        if (phase == 1 && chunk == 4) {
            throw std::runtime_error("no embedding");
        }
    };
    auto failed = run.start();
    run.run();
    CHECK(failed.failed_with<std::runtime_error>());
    run.rag.on_phase = [](int, std::size_t) {};
    run.rag.events.clear();
    auto task = run.start();
    run.run();
    REQUIRE(task.succeeded());
    CHECK(run.in_phases());
    CHECK(task.value() == Top{5, 3, 1});
}

TEST_CASE("rag: a chunk that drops out of the barrier leaves the answer to the others", "[rag]") {
    for (std::size_t chunk = 0; chunk != 6; ++chunk) {
        RagRun run(6, 2);
        run.rag.degrade = true;
        run.rag.on_phase = [&](int phase, std::size_t c) {
            if (phase == 1 && c == chunk) {
                throw std::runtime_error("no embedding");
            }
        };
        auto task = run.start();
        run.run();
        REQUIRE(task.succeeded());
        CHECK(run.in_phases());
        CHECK(run.rag.scores.size() == 5);
        CHECK_FALSE(run.rag.scores.contains(chunk));
        CHECK(run.barrier.parties() == 5);
        CHECK(run.barrier.phase() == 2);
    }
}

TEST_CASE("rag: after a cancellation at any step, every chunk ends and no party waits at the barrier",
          "[rag][cancellation][stress]") {
    const bool as_party = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        RagRun run(4, 7, as_party);
        auto task = run.start();
        test::step(run.context);
        steps.take(run.context);
        task.cancel();
        CHECK(run.run() == 0ms);
        REQUIRE(task.done());
        CHECK((task.aborted() || (task.succeeded() && run.rag.count(3, false) == 1)));
        CHECK(run.barrier.waiting() == 0);
        CHECK(run.rag.working == 0);
        CHECK(run.in_phases());
    });
}

TEST_CASE("rag: a deadline over the whole run cancels every chunk", "[rag][cancellation]") {
    const auto deadline = GENERATE(150ms, 320ms);
    RagRun run(6, 4);
    run.rag.embed[2] = 300ms;
    Task<Top> task(run.context.get_executor(), [&run, deadline] {
        return sluice::with_timeout<test::VirtualTimer>(deadline,
                                                        [&run] { return rag_pipeline(run.rag, run.barrier); });
    });
    CHECK(run.run() == deadline);
    CHECK(task.failed_with<sluice::TimeoutError>());
    CHECK(run.rag.working == 0);
    CHECK(run.barrier.waiting() == 0);
}

TEST_CASE("rag: the context may be destroyed at any step, before or after the barrier", "[rag][shutdown][stress]") {
    const bool barrier_first = GENERATE(false, true);
    test::for_every_step([&](test::Steps& steps) {
        Rag rag(4, 9);
        auto context = std::make_unique<asio::io_context>(1);
        auto barrier = std::make_unique<Barrier>(context->get_executor(), 4);
        Task<Top> task(context->get_executor(), [&] { return rag_pipeline(rag, *barrier); });
        steps.take(*context);
        if (barrier_first) {
            barrier.reset();
        }
        context.reset();
        CHECK(rag.working == 0);
        CHECK((!barrier || barrier->waiting() == 0));
    });
}
