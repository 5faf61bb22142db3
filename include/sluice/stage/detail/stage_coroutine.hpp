// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/stage/detail/argument.hpp>
#include <sluice/stage/detail/backoff_wait.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/callee.hpp>
#include <sluice/sync/detail/context_bound.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/this_coro.hpp>

#include <cstdint>
#include <exception>
#include <utility>

namespace sluice::detail {

// The coroutine that runs one query through a stage.
//
// A `Target` says where its clock, its result and its value are: query(), result(), which is a reference, or an object
// that this frame holds, and data(result); what is to be done when the run has ended, or an exception leaves it:
// ended(result) and aborted(result); and what is returned: returned(result). A step may skip the run, and saves the
// record after it. The arguments lie in this frame too; an `Arg` is a reference or not. (A class, since g++ objects to
// the frame of a function template with an argument of an unnamed namespace.)
template <class State, class Target, class... Args>
class StageCoroutine {
    using Timer = typename State::Timer;

public:
    using Returned = typename Target::Returned;
    using Executor = typename State::template RunExecutor<Args...>;

    // Goes on with a run whose attempt in place has failed, if `begun` is not null.
    static boost::asio::awaitable<Returned, Executor> run(Pooled, State& stage, Target target, InPlaceRun* begun,
                                                          Args... args) {
        if constexpr (Target::is_step) {
            if (!begun) {
                target.begins();
                if (target.is_filled()) {
                    co_return target.skipped();
                }
            }
        }
        if constexpr (checks_context) {
            const Executor executor = co_await boost::asio::this_coro::executor;
            state_of(stage.endpoint->line)->check_context([&]() -> const auto& { return executor; });
        }
        auto& query = target.query();
        decltype(auto) own = target.result();
        auto& result = result_of(begun, own);
        try {
            if constexpr (Target::is_step) {
                if (query.place->has_left()) [[unlikely]] {  // the route has cut short a step in backoff
                    co_await BackoffWait<Timer>::template come_back<Executor>(Pooled(), *query.place);
                }
            }
            StageSemaphore& line = stage.endpoint->line;
            const bool context_gone = state_of(line)->context_gone();
            if (context_gone) {
                co_await State::template fail_closed<Executor>(Pooled(), stage, query, result);
            }
            const std::uint64_t number = stage.runs_++;
            const bool was_cancelled =
                begun ? begun->was_cancelled : is_cancelled(co_await boost::asio::this_coro::cancellation_state);
            while (!context_gone) {
                typename State::Failure failure;
                if (begun) {
                    failure = State::failure_of(*std::exchange(begun, nullptr));
                } else {
                    boost::asio::execution_context& context = state_of(line)->context();
                    stage.notify(query, &Observer::on_queued, result);
                    auto started = query.now(context);
                    Slot slot = line.try_acquire();
                    if (!slot) {
                        try {
                            slot = co_await line.acquire();
                        } catch (...) {
                            failure.error = std::current_exception();
                        }
                        const auto queued = std::exchange(started, query.read_clock(context));
                        result.queue_time += started - queued;
                    }
                    if constexpr ((is_field_argument<Args> || ...)) {
                        if (slot && (is_missing<Args>(args) || ...)) {
                            slot.release();
                            stage.finish_missing(query, result);
                            break;
                        }
                    }
                    if (slot) {
                        ++result.attempts;
                        stage.notify(query, &Observer::on_started, result);
                        failure.attempted = true;
                        try {
                            if (stage.options_.timeout) {
                                co_await State::template timed_attempt<typename Target::Data, Args...>(
                                    Pooled(), stage, started, result, failure, target.data(result), args...);
                            } else {
                                target.data(result).emplace(
                                    co_await callee(stage.function_)(read_argument<Args>(args)...));
                            }
                        } catch (const ModelError&) {
                            failure.error = std::current_exception();
                        } catch (...) {
                            failure.error = std::current_exception();
                            failure.is_plain = !may_be_multiple_exceptions();
                        }
                        stage.end_attempt(query, result, started, failure.error != nullptr, slot);
                    }
                }
                if (!failure.error) [[likely]] {
                    stage.finish_succeeded(query, result);
                    break;
                }
                // A cancellation that predates this run is ignored.
                stage.throw_if_cancelled(
                    query, result, failure,
                    failure.cancelled ||
                        (is_cancelled(co_await boost::asio::this_coro::cancellation_state) && !was_cancelled));
                if (!failure.attempted) {
                    stage.finish_closed(query, result, Observer::Event::queued);
                    break;
                }
                if (!co_await State::template try_again<Executor>(Pooled(), stage, query, result, failure, number,
                                                                  was_cancelled)) {
                    break;
                }
            }
        } catch (...) {
            target.aborted(result);
            throw;
        }
        target.ended(result);
        if constexpr (Target::is_step) {
            if (target.saves()) {
                const bool throws = co_await boost::asio::this_coro::throw_if_cancelled();
                co_await boost::asio::this_coro::throw_if_cancelled(false);
                co_await target.save();
                co_await boost::asio::this_coro::throw_if_cancelled(throws);
            }
        }
        co_return target.returned(result);
    }

private:
    // That of a step in place lies with its query.
    template <class Result>
    static Result& result_of(InPlaceRun* begun, Result& own) noexcept {
        if constexpr (Target::is_step) {
            return begun ? *begun->result : own;
        } else {
            return own;
        }
    }
};

}  // namespace sluice::detail
