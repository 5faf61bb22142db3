// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/pipeline/detail/drain_state.hpp>
#include <sluice/pipeline/detail/pipeline_numbers.hpp>
#include <sluice/pipeline/detail/sink_call.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/detail/deadline.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/timeouts.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/slot.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <cstddef>
#include <exception>
#include <memory>
#include <type_traits>
#include <utility>
#include <vector>

namespace sluice::detail {

// The settings of a pipeline beside its route and its sink.
struct PipelineSettings {
    std::ptrdiff_t window;
    std::ptrdiff_t max_in_backoff;
    Observer* observer;
};

// The state that a pipeline shares with its operations and streams, which may outlive it.
//
// A `Route` runs queries: the coroutine `run(state, job)` takes one through its stages and fills in the result. If it
// has not ended the query, `end_otherwise(state, job, error)` does; see process(). Either awaits bury() for a dead
// letter.
template <class RouteType, class SinkType, class T>
class PipelineState : public PipelineNumbers {
public:
    using Sink = SinkType;
    using Job = typename RouteType::Job;
    using Result = typename Job::Result;
    using Executor = typename RouteType::Executor;
    using Timer = T;
    static constexpr bool drains = RouteType::drains;
    using Drain = std::conditional_t<drains, DrainState<T>, NoDrain>;

    // `args` make the route.
    template <class... Args>
    PipelineState(const PipelineSettings& settings, Sink& sink, Args&&... args)
        : PipelineNumbers(settings.window),
          route(std::forward<Args>(args)...),
          max_in_backoff(settings.max_in_backoff),
          dead_letters_(&sink),
          observer_(settings.observer) {}

    // Runs job.result.query and fills in the rest of the result. What it throws, or null, goes to has_ended(). If that
    // returns false, end_otherwise() must be awaited, with throw_if_cancelled(false): it ends the query in another way
    // than by completion, or throws if that was cancelled.
    boost::asio::awaitable<void, Executor> process(Job& job) { return route.run(*this, job); }
    bool has_ended(Job& job, const std::exception_ptr& error) noexcept { return route.has_ended(job, error); }
    boost::asio::awaitable<void, Executor> end_otherwise(
        Job& job, std::exception_ptr error) {  // NOLINT(performance-unnecessary-value-param): some routes keep it
        return route.end_otherwise(*this, job, std::move(error));
    }

    // The query, if it has a timeout, has been taken in.
    void start_timeout(Job& job, boost::asio::execution_context& context) const {
        if (const auto timeout = job.result.query.timeout) [[unlikely]] {
            job.deadline = std::make_unique<DeadlineOf<T>>(now<T>(context), *timeout);
        }
    }

    // A query with a timeout waits for a place in its window, or until it is late.
    static boost::asio::awaitable<void, Executor> wait_for_place(Pooled, PipelineState& state, Job& job) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        StageSemaphore& places = job.window->places();
        Waiter waiter;
        const typename Timeouts<T>::Wait wait(*state.timeouts, executor,
                                              static_cast<const DeadlineOf<T>&>(*job.deadline).due, waiter);
        co_await state_of(places)->wait(waiter);
        if (waiter.outcome == WaitOutcome::granted) {
            job.place = granted_slot(places);
        } else if (!wait.expired()) {
            throw operation_aborted("QueryWindow");
        } else {  // if too many are away, one more is, as a window that has shrunk may have too many that run
            job.stay_away(job.window->permit_absence());
        }
    }

    void check_context(const Executor& executor) const { route.check_context(executor); }

    Observer* observer() const noexcept { return observer_; }
    Sink& sink() const noexcept { return *dead_letters_; }

    // A query is in work from its intake until it has ended in one of two ways. `its_drain` is that of its call, batch
    // or stream. These are calls and no guard, since a frame that is destroyed with its context may outlive this.
    void begin_query(Drain& its_drain) noexcept {
        ++counted().taken;
        its_drain.begin_query();
    }
    void end_query(Drain& its_drain, const QueryResult& result) {
        end(its_drain, result.unfinished  ? &QueryEnds::unfinished
                       : result.completed ? &QueryEnds::completed
                                          : &QueryEnds::dead);
    }
    void end_cancelled(Drain& its_drain) { end(its_drain, &QueryEnds::cancelled); }

    // Hands a query that failed, as its result says, to the dead-letter sink. No cancellation reaches the sink. To be
    // awaited with throw_if_cancelled(false), since a query that has failed becomes a dead letter even if it has been
    // cancelled meanwhile.
    static boost::asio::awaitable<void, Executor> bury(Pooled, PipelineState& state, Result& result) {
        Sink& sink = *state.dead_letters_;
        const StageResult<>& reason = *result.failure();
        try {
            using Returned = decltype(put(sink, result, reason));
            if constexpr (Awaitable<Returned>) {
                const Executor executor = co_await boost::asio::this_coro::executor;
                const auto operation = [&] { return Put<Returned>::run(sink, result, reason); };
                co_await call_sink(executor, operation);
            } else {
                put(sink, result, reason);
            }
        } catch (...) {
            result.dead_letter_error = std::current_exception();
        }
        if (state.observer_) {
            state.observer_->on_dead_letter(result.query, reason, result.dead_letter_error);
        }
    }

    // Of what a query with a timeout waits for outside of its stages.
    const boost::intrusive_ptr<Timeouts<T>> timeouts{new Timeouts<T>(WhenIdle::cancel_later)};

    Drain drain;
    std::vector<Result> unfinished;  // of streams that were drained
    RouteType route;
    const std::ptrdiff_t max_in_backoff;

private:
    // Whether a sink's put() takes more than the query and the reason.
    static constexpr bool takes_record = requires(Sink& sink, const Result& result, const StageResult<>& reason) {
        sink.put(result.query, reason, result.record);
    };
    static constexpr bool takes_result = requires(Sink& sink, const Result& result, const StageResult<>& reason) {
        sink.put(result.query, reason, result);
    };

    static auto put(Sink& sink, const Result& result, const StageResult<>& reason) {
        if constexpr (takes_record) {
            return sink.put(result.query, reason, result.record);
        } else if constexpr (takes_result) {
            return sink.put(result.query, reason, result);
        } else {
            return sink.put(result.query, reason);
        }
    }

    // The same, if it returns an awaitable: what the arguments were converted to lives as long as the call.
    template <class Coroutine>
    struct Put {
        using Returned = boost::asio::awaitable<void, typename Coroutine::executor_type>;

        static Returned run(Sink& sink, const Result& result, const StageResult<>& reason) {
            if constexpr (takes_record) {
                static_cast<void>(co_await sink.put(result.query, reason, result.record));
            } else if constexpr (takes_result) {
                static_cast<void>(co_await sink.put(result.query, reason, result));
            } else {
                static_cast<void>(co_await sink.put(result.query, reason));
            }
        }
    };

    void end(Drain& its_drain, std::size_t QueryEnds::* counter) {
        ++(counted().*counter);
        its_drain.end_query(counter);
    }

    Sink* dead_letters_;
    Observer* observer_;
};

}  // namespace sluice::detail
