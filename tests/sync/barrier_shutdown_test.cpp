// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/barrier.hpp>
#include <sluice/testing/run.hpp>

#include "support/barrier_fixture.hpp"
#include "support/every_step.hpp"
#include "support/probes.hpp"
#include "support/task.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/strand.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <cstddef>
#include <functional>
#include <memory>
#include <optional>
#include <stdexcept>
#include <utility>
#include <vector>

namespace {

namespace asio = boost::asio;
using sluice::Barrier;
using test::Arrival;
using test::AtExit;
using test::BarrierFixture;
using test::broken;
using test::indices;
using test::Live;
using test::Order;
using test::Steps;
using test::Task;

}  // namespace

TEST_CASE("barrier: the completion function may destroy the barrier", "[barrier][shutdown]") {
    std::function<void()> completion;
    BarrierFixture f(2, [&] { completion(); });
    const auto owned = std::make_shared<int>(1);
    bool throws = false;
    completion = [&, owned] {
        const auto after = owned;
        f.barrier = std::nullopt;
        CHECK(*after == 1);
        if (throws) {
            throw std::domain_error("no");
        }
    };
    SECTION("the phase is still completed") {
        auto arrivals = f.arrive(2);
        CHECK(indices(arrivals) == Order{0, 1});
    }
    SECTION("and throw") {
        throws = true;
        const auto arrivals = f.arrive(2);
        CHECK(broken(arrivals[0]));
        CHECK(arrivals[1].failed_with<std::domain_error>());
    }
    SECTION("when the last arrival drops out") {
        Arrival waiter = f.arrive();
        f.barrier->arrive_and_drop();
        f.poll();
        CHECK(waiter.succeeded());
    }
    SECTION("when the last party drops out and nothing else keeps the barrier alive") {
        f.barrier.emplace(f.context->get_executor(), 1, completion);
        f.barrier->arrive_and_drop();
    }
    CHECK_FALSE(f.barrier);
}

TEST_CASE("barrier: when the barrier is destroyed, each waiter ends with operation_aborted", "[barrier][shutdown]") {
    BarrierFixture f(4);
    auto arrivals = f.arrive(3);
    arrivals[1].cancel();
    f.barrier = std::nullopt;
    arrivals[2].cancel();
    f.poll();
    CHECK(std::ranges::all_of(arrivals, &Arrival::aborted));
}

TEST_CASE("barrier: a completed phase stays complete when the barrier is destroyed", "[barrier][shutdown]") {
    BarrierFixture f(2);
    auto arrivals = f.arrive(1);
    arrivals.push_back(f.start_now());
    f.barrier = std::nullopt;
    f.poll();
    CHECK(indices(arrivals) == Order{0, 1});
}

TEST_CASE("barrier: an arrival that is awaited after the barrier was destroyed ends with operation_aborted",
          "[barrier][shutdown]") {
    BarrierFixture f(1);
    f.barrier->abort();  // the destruction takes precedence
    std::optional early = f.barrier->arrive_and_wait();
    const Task<> task(f.context->get_executor(),
                      [&]() -> asio::awaitable<void> { co_await *std::exchange(early, std::nullopt); });
    f.barrier = std::nullopt;
    f.poll();
    CHECK(task.aborted());
}

TEST_CASE("barrier: after its context is destroyed, it has no executor and no waiters", "[barrier][shutdown]") {
    BarrierFixture f(3);
    auto arrivals = f.arrive(2);
    SECTION("in the middle of a phase") {}
    SECTION("with waiters of a completed phase that have not resumed") { arrivals.push_back(f.start_now()); }
    f.context = std::nullopt;
    CHECK_FALSE(f.barrier->get_executor());
    CHECK(f.barrier->waiting() == 0);
    f.barrier->abort();
    f.barrier->reset();
    f.barrier = std::nullopt;
    CHECK_FALSE(arrivals[0].done());
    CHECK_FALSE(arrivals[1].done());
}

TEST_CASE("barrier: after its context is destroyed, arrivals fail at once, however many follow in a row",
          "[barrier][shutdown]") {
    std::optional<asio::io_context> gone(std::in_place);
    Barrier barrier(gone->get_executor(), 2);
    gone = std::nullopt;
    asio::io_context context;
    int refused = 0;
    const Task<> task(context.get_executor(), [&]() -> asio::awaitable<void> {
        for (int i = 0; i != 1000; ++i) {
            try {
                co_await barrier.arrive_and_wait();
            } catch (const boost::system::system_error& error) {
                refused += error.code() == asio::error::operation_aborted;
            }
        }
    });
    sluice::testing::run(context);
    CHECK(task.succeeded());
    CHECK(refused == 1000);
}

namespace {

// Parties go through three phases, while one is cancelled and another drops out in its place.
struct BarrierRun {
    static constexpr std::size_t parties = 5;

    BarrierRun() {
        for (std::size_t i = 0; i != parties; ++i) {
            std::vector<asio::awaitable<std::size_t>> arrivals;
            for (int phase = 0; phase != 3; ++phase) {
                arrivals.push_back(barrier->arrive_and_wait());
            }
            tasks.emplace_back(context->get_executor(), [this, i, arrivals = std::move(arrivals)]() mutable {
                return work(i, std::move(arrivals));
            });
        }
        tasks.emplace_back(context->get_executor(), [this] { return disturb(); });
    }

    asio::awaitable<void> work(std::size_t i, std::vector<asio::awaitable<std::size_t>> arrivals) {
        const Live alive(frames);
        for (asio::awaitable<std::size_t>& arrival : arrivals) {
            for (std::size_t turn = 0; turn != i; ++turn) {
                co_await test::yield();
            }
            co_await std::move(arrival);
        }
    }

    asio::awaitable<void> disturb() {
        const Live alive(frames);
        co_await test::yield();
        tasks[0].cancel();  // while it waits
        if (barrier) {
            barrier->arrive_and_drop();
        }
    }

    int frames = 0;
    int completions = 0;
    std::vector<Task<>> tasks;
    std::optional<asio::io_context> context{std::in_place};
    std::optional<Barrier> barrier{std::in_place, context->get_executor(), std::ptrdiff_t{parties},
                                   [this] { ++completions; }};
};

}  // namespace

TEST_CASE("barrier: its context may be destroyed first, at every step", "[barrier][shutdown]") {
    test::for_every_step([](Steps& steps) {
        BarrierRun run;
        steps.take(*run.context);
        run.context = std::nullopt;
        CHECK(run.frames == 0);
        CHECK(run.barrier->waiting() == 0);
        CHECK_FALSE(run.barrier->get_executor());
        run.barrier = std::nullopt;
    });
}

TEST_CASE("barrier: it may be destroyed before its context, at every step", "[barrier][shutdown]") {
    test::destroy_before_context_at_every_step<BarrierRun>(&BarrierRun::barrier);
}

TEST_CASE("barrier: without destruction, the run above completes every phase", "[barrier]") {
    BarrierRun run;
    run.context->poll();
    CHECK(run.tasks[0].aborted());
    CHECK(std::all_of(run.tasks.begin() + 1, run.tasks.end(), [](const auto& task) { return task.succeeded(); }));
    CHECK(run.completions == 3);
    CHECK(run.barrier->parties() == 4);
}

TEST_CASE("barrier: a waiter destroyed with its context may cancel, abort and reset in a destructor",
          "[barrier][shutdown]") {
    // The service of the strands is created after that of the barriers and so is shut down first. After that, Asio
    // destroys frames immediately, while the barrier is still releasing its waiters.
    BarrierFixture f(1);
    std::vector<Arrival> arrivals;
    std::function<void()> in_destructor;
    std::size_t deaths = 0;
    std::optional<asio::strand<asio::io_context::executor_type>> strand = asio::make_strand(*f.context);
    Barrier barrier(*strand, 5);
    for (int i = 0; i != 4; ++i) {
        arrivals.emplace_back(*strand, [&]() -> asio::awaitable<std::size_t> {
            const AtExit at_exit([&] {
                ++deaths;
                in_destructor();
            });
            co_return co_await barrier.arrive_and_wait();
        });
    }
    f.poll();
    REQUIRE(barrier.waiting() == 4);
    SECTION("cancel the others") {
        in_destructor = [&] {
            for (std::size_t i = deaths; i != arrivals.size(); ++i) {
                arrivals[i].cancel();
            }
        };
    }
    SECTION("abort") {
        in_destructor = [&] { barrier.abort(); };
    }
    SECTION("reset") {
        in_destructor = [&] { barrier.reset(); };
    }
    strand.reset();
    f.context = std::nullopt;
    CHECK(deaths == 4);
    CHECK(barrier.waiting() == 0);
    CHECK(std::ranges::none_of(arrivals, &Arrival::done));
}
