// SPDX-License-Identifier: BSL-1.0
#include "crew.hpp"
#include "loops.hpp"
#include "rows.hpp"

#include <sluice/sync/stage_semaphore.hpp>
#include <sluice/sync/task_group.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/this_coro.hpp>

#include <array>
#include <cstddef>
#include <exception>
#include <string>
#include <vector>

namespace benchmark {

namespace {

/// Nanoseconds per turn of `members` coroutines, of which at most `limit` may be inside at once.
template <class Loop>
double time_per_turn(std::size_t members, std::size_t limit, std::size_t turns) {
    asio::io_context context(1);
    Loop loop(context.get_executor(), limit);
    StopWatch watch;
    Crew<Loop, StopWatch>(loop, watch, turns).run(context, members);
    require(loop.turns() == members * turns, "every coroutine makes every turn");
    require(loop.most_inside() == limit, "as many coroutines as the limit allows are inside at once");
    return watch.per(members * turns);
}

double time_try_acquire(std::size_t turns) {
    asio::io_context context(1);
    sluice::StageSemaphore semaphore(context.get_executor(), 10);
    std::size_t taken = 0;
    StopWatch watch;
    watch.start();
    for (std::size_t i = 0; i < turns; ++i) {
        sluice::Slot slot = semaphore.try_acquire();
        keep(slot);
        taken += static_cast<bool>(slot);
        slot.release();
    }
    watch.stop();
    require(taken == turns && semaphore.active() == 0, "try_acquire() takes a slot");
    return watch.per(turns);
}

template <template <class> class Channel>
double time_try_send(std::size_t turns) {
    asio::io_context context(1);
    Channel<TypedExecutor> semaphore(context.get_executor(), 10);
    std::size_t taken = 0;
    StopWatch watch;
    watch.start();
    for (std::size_t i = 0; i < turns; ++i) {
        const bool got = semaphore.try_acquire();
        keep(semaphore);
        taken += got;
        semaphore.release();
    }
    watch.stop();
    require(taken == turns, "the channel takes every message");
    return watch.per(turns);
}

template <class Executor>
Row uncontended(const std::string& executor, const Settings& settings) {
    const std::size_t turns = settings.size(1'000'000);
    return {"co_await acquire() + release, uncontended, " + executor,
            "ns",
            {"sluice", [=] { return time_per_turn<SluiceLoop<Executor, Holding::nothing>>(1, 1, turns); }},
            {{"floor: an empty coroutine", [=] { return time_per_turn<EmptyCoroutineLoop<Executor>>(1, 1, turns); },
              at_most(0.5)},
             {"channel, acquire() awaited",
              [=] { return time_per_turn<SemaphoreLoop<ChannelSemaphore, Executor, Holding::nothing>>(1, 1, turns); }},
             {"timer recipe",
              [=] { return time_per_turn<SemaphoreLoop<TimerSemaphore, Executor, Holding::nothing>>(1, 1, turns); }}}};
}

constexpr std::size_t crowd = 1000;
constexpr std::size_t limit = 10;

template <class Executor>
Row contended(const std::string& executor, Bound against_floor, const Settings& settings) {
    const std::size_t turns = settings.size(200);
    return {
        "contended acquire: 1000 coroutines, limit 10, " + executor,
        "ns",
        {"sluice", [=] { return time_per_turn<SluiceLoop<Executor>>(crowd, limit, turns); }},
        {{"floor: the post alone", [=] { return time_per_turn<PostLoop<Executor>>(crowd, crowd, turns); },
          against_floor},
         {"channel, acquire() awaited",
          [=] { return time_per_turn<SemaphoreLoop<ChannelSemaphore, Executor>>(crowd, limit, turns); }, at_most(0.65)},
         {"channel, inlined by hand", [=] { return time_per_turn<InlineChannelLoop<Executor>>(crowd, limit, turns); }},
         {"timer recipe",
          [=] { return time_per_turn<SemaphoreLoop<TimerSemaphore, Executor>>(crowd, limit, turns); }}}};
}

constexpr std::array<std::size_t, 3> party_counts{10, 100, 10'000};

template <class Executor>
Row barrier(std::size_t parties, const std::string& executor, const Settings& settings) {
    // Enough phases that the end of the coroutines, which is in what is measured, does not count.
    const std::size_t phases = settings.size(parties > 1000 ? 1'000'000 : 400'000) / parties + 1;
    return {"barrier: " + std::to_string(parties) + " parties, " + executor,
            "ns",
            {"sluice", [=] { return time_per_turn<BarrierLoop<Executor, sluice::Barrier>>(parties, parties, phases); }},
            {{"floor: the post alone", [=] { return time_per_turn<PostLoop<Executor>>(parties, parties, phases); },
              at_most(0.25)},
             {"timer recipe",
              [=] { return time_per_turn<BarrierLoop<Executor, TimerBarrier<Executor>>>(parties, parties, phases); },
              at_most(0.4)}}};
}

/// Children that return at once.
template <class Executor>
struct Children {
    static double time_group(std::size_t count) {
        Children children{count};
        return children.time(with_group(children));
    }

    static double time_co_spawn(std::size_t count) {
        Children children{count};
        return children.time(with_counter(children));
    }

    double time(asio::awaitable<void, Executor> parent) {
        asio::io_context context(1);
        asio::co_spawn(Executor(context.get_executor()), std::move(parent), rethrow);
        context.run();
        require(ran == count && missing == 0, "every child runs and is waited for");
        return watch.per(count);
    }

    static asio::awaitable<void, Executor> child(Children& self) {
        ++self.ran;
        co_return;
    }

    static asio::awaitable<void, Executor> with_group(Children& self) {
        self.watch.start();
        auto body = [&self](sluice::TaskGroup& group) -> asio::awaitable<void, Executor> {
            for (std::size_t i = 0; i < self.count; ++i) {
                group.spawn([&self] { return child(self); });
            }
            co_return;
        };
        co_await sluice::with_task_group<Executor>(std::move(body));
        self.missing = 0;
        self.watch.stop();
    }

    static asio::awaitable<void, Executor> with_counter(Children& self) {
        self.watch.start();
        const Executor executor = co_await asio::this_coro::executor;
        for (std::size_t i = 0; i < self.count; ++i) {
            asio::co_spawn(
                executor, [&self] { return child(self); },
                [&self](std::exception_ptr error) {
                    rethrow(error);
                    if (--self.missing == 0) {
                        self.watch.stop();
                    }
                });
        }
    }

    std::size_t count;
    std::size_t missing = count;
    std::size_t ran = 0;
    StopWatch watch{};
};

template <class Executor>
Row task_group(const std::string& executor, const Settings& settings) {
    const std::size_t count = settings.size(100'000);
    return {"task group: 100,000 children that return at once, " + executor,
            "ns",
            {"sluice", [=] { return Children<Executor>::time_group(count); }},
            {{"co_spawn with a counter", [=] { return Children<Executor>::time_co_spawn(count); }, at_most(1.3)}}};
}

}  // namespace

std::vector<Row> semaphore_rows(const Settings& settings) {
    const std::size_t turns = settings.size(5'000'000);
    Row try_acquire{"try_acquire() + release, uncontended",
                    "ns",
                    {"sluice", [=] { return time_try_acquire(turns); }},
                    {{"channel, inline try", [=] { return time_try_send<ChannelSemaphore>(turns); }, at_most(0.35)},
                     {"channel of void(), inline try", [=] { return time_try_send<EmptyChannelSemaphore>(turns); }}}};
    Row typed = contended<TypedExecutor>("typed executor", at_most(1.6), settings);
    typed.others.push_back(
        {"sluice, any executor",
         [turns = settings.size(200)] { return time_per_turn<SluiceLoop<AnyExecutor>>(crowd, limit, turns); },
         times_faster(1.8)});
    return {try_acquire, uncontended<AnyExecutor>("any executor", settings),
            uncontended<TypedExecutor>("typed executor", settings),
            contended<AnyExecutor>("any executor", at_most(1.4), settings), typed};
}

std::vector<Row> barrier_rows(const Settings& settings) {
    std::vector<Row> rows;
    for (const std::size_t parties : party_counts) {
        rows.push_back(barrier<AnyExecutor>(parties, "any executor", settings));
    }
    for (const std::size_t parties : party_counts) {
        rows.push_back(barrier<TypedExecutor>(parties, "typed executor", settings));
    }
    return rows;
}

std::vector<Row> task_group_rows(const Settings& settings) {
    return {task_group<AnyExecutor>("any executor", settings), task_group<TypedExecutor>("typed executor", settings)};
}

}  // namespace benchmark
