// SPDX-License-Identifier: BSL-1.0
// Pipelines without sluice: the floor, one coroutine that runs one query after the other, and the peer, a channel per
// stage and a coroutine per query. Both fill in the same results as sluice, with the same bookkeeping.
#pragma once

#include "crew.hpp"
#include "limiters.hpp"
#include "models.hpp"

#include <sluice/query.hpp>
#include <sluice/result.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/this_coro.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <exception>
#include <span>
#include <utility>
#include <vector>

namespace benchmark {

/// Has no limits.
template <class Executor>
struct NoLimits {
    static constexpr bool limited = false;

    explicit NoLimits(const Executor&) noexcept {}
};

/// Has a channel as a semaphore for each stage.
template <class AnExecutor>
struct ChannelLimits {
    using Semaphore = ChannelSemaphore<AnExecutor>;

    static constexpr bool limited = true;

    explicit ChannelLimits(AnExecutor executor)
        : semaphores{Semaphore(executor, limits[0]), Semaphore(executor, limits[1]), Semaphore(executor, limits[2])} {}

    std::array<Semaphore, stages> semaphores;
};

template <class Models, template <class> class Limits>
struct Handwritten {
    using Executor = typename Models::Executor;
    using Clock = std::chrono::steady_clock;

    Models& models;
    Limits<Executor>& limits;
    const StageNames& names;
    int retries;
    std::vector<Result>& results;  // with capacity for all, so that they do not move

    /// Runs queries one after the other.
    asio::awaitable<void, Executor> run(std::span<const sluice::Query> queries) {
        for (const sluice::Query& query : queries) {
            Result& result = results.emplace_back(query);
            result.stage_results.reserve(stages);
            bool alive = true;
            for (std::size_t stage = 0; stage < stages && alive; ++stage) {
                sluice::StageResult<>& record = result.stage_results.emplace_back(query.id, names[stage]);
                for (;;) {
                    auto started = Clock::now();
                    if constexpr (Limits<Executor>::limited) {
                        if (!limits.semaphores[stage].try_acquire()) {
                            co_await limits.semaphores[stage].async_acquire();
                            const auto queued = std::exchange(started, Clock::now());
                            record.queue_time += started - queued;
                        }
                    }
                    ++record.attempts;
                    std::exception_ptr error;
                    try {
                        switch (stage) {
                            case 0:
                                result.intent = co_await models.classify(result.query.text);
                                break;
                            case 1:
                                result.entities = co_await models.extract(result.query.text);
                                break;
                            default:
                                result.response =
                                    co_await models.generate(*result.intent, *result.entities, result.query.text);
                        }
                        record.success = true;
                    } catch (...) {
                        error = std::current_exception();
                    }
                    record.latency += Clock::now() - started;
                    if constexpr (Limits<Executor>::limited) {
                        limits.semaphores[stage].release();
                    }
                    if (record.success) {
                        break;
                    }
                    if (record.attempts > retries) {
                        record.error = std::move(error);
                        alive = false;
                        break;
                    }
                }
            }
            result.completed = alive;
        }
    }
};

}  // namespace benchmark
