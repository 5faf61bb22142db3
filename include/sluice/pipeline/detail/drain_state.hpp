// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/pipeline_numbers.hpp>
#include <sluice/stage/detail/drain_scope.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/condition_variable.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <memory>
#include <optional>
#include <typeinfo>
#include <utility>

namespace sluice::detail {

// Stands for the drain of what cannot be drained.
struct NoDrain {
    struct Running {
        explicit Running(NoDrain&) noexcept {}
    };

    explicit NoDrain(NoDrain* = nullptr) noexcept {}

    static void begin_query() noexcept {}
    static void end_query(std::size_t QueryEnds::*) noexcept {}
};

// The drain of a pipeline, or of one of its streams: it begins with start(), and has ended when nothing runs any more.
// The drain of the pipeline drains its streams, and what runs in a stream also runs in its pipeline.
template <class T>
class DrainState final : private Drainable {
public:
    explicit DrainState(DrainState* of_pipeline = nullptr) : pipeline_(of_pipeline) {
        if (pipeline_) {
            pipeline_->scope.enter(*this);
            if (pipeline_->scope.draining()) {
                on_drain();
                if (pipeline_->scope.grace_over()) {
                    on_grace_over();
                }
            }
        }
    }

    // With the clock of T.
    class Scope final : public DrainScope {
    public:
        Scope() noexcept : DrainScope(typeid(T)) {}

        std::chrono::nanoseconds now(boost::asio::execution_context& context) override {
            const auto time = detail::now<T>(context);
            if (!first_) {
                first_ = time;
            }
            return time - *first_;
        }

        // The deadline of `other`, which is draining, since the reading that this keeps.
        std::chrono::nanoseconds deadline_of(const DrainScope& other) {
            if (other.timer != timer || other.deadline() == never) {
                return never;
            }
            const auto& others_first = static_cast<const Scope&>(other).first_;
            if (!first_) {
                first_ = others_first;
            }
            return other.deadline() + (*others_first - *first_);
        }

    private:
        static constexpr auto never = std::chrono::nanoseconds::max();  // of a scope with another timer

        std::optional<typename T::time_point> first_;
    };

    Scope scope;

    // A query is in work from its intake until it has ended; see PipelineState.
    void begin_query() noexcept { enter(&DrainState::in_work_); }
    void end_query(std::size_t QueryEnds::* counter) {
        --in_work_;
        if (scope.draining()) {
            ++(counts_.*counter);
            end_if_idle();
        }
        if (pipeline_) {
            pipeline_->end_query(counter);
        }
    }

    // A batch or stream while it runs. When it ends, the drain may.
    class Running {
    public:
        explicit Running(DrainState& drain) noexcept : drain_(drain) { drain_.enter(&DrainState::running_); }
        ~Running() { drain_.stopped(); }

        Running(const Running&) = delete;
        Running& operator=(const Running&) = delete;

    private:
        DrainState& drain_;
    };

    // Starts the drain, on `executor`, or shortens its grace, and waits for the end. `owner` keeps this alive. A grace
    // of more than a century is one, so that no sum overflows.
    template <class Executor>
    static boost::asio::awaitable<void, Executor> run(Pooled, DrainState& drain, Executor executor,
                                                      std::shared_ptr<void> owner, std::chrono::nanoseconds grace) {
        constexpr std::chrono::nanoseconds century = std::chrono::hours(24 * 36525);
        drain.start(std::move(owner), executor, std::clamp(grace, std::chrono::nanoseconds::zero(), century));
        while (!drain.ended_) {
            Waiter waiter;
            co_await drain.progress_->wait(waiter);
            if (waiter.outcome == WaitOutcome::aborted) {
                throw operation_aborted("drain");
            }
        }
    }

    // Whether it was asked for here, and not only through the pipeline.
    bool started() const noexcept { return progress_ != nullptr; }

    // The executor of the drain; empty if nobody has asked for it.
    boost::asio::any_io_executor get_executor() const {
        return progress_   ? progress_->get_executor()
               : pipeline_ ? pipeline_->get_executor()
                           : boost::asio::any_io_executor();
    }

    // The drain of another scope is also one of this stream: it begins, or shortens its grace.
    void join(const DrainScope& other) {
        const auto deadline = scope.deadline_of(other);
        if (scope.begins_before(deadline)) {
            scope.drain(deadline);  // which may destroy this
        }
    }
    void end_grace() {
        scope.end_grace();
        end_if_idle();
    }

    const QueryEnds& counts() const noexcept { return counts_; }

private:
    template <class Executor>
    void start(std::shared_ptr<void> owner, const Executor& executor, std::chrono::nanoseconds grace) {
        auto progress = progress_ ? progress_ : make_queue<ConditionVariable>("Pipeline", executor);
        const auto deadline = scope.now(context_of(executor)) + grace;
        const bool begins = !ended_ && scope.begins_before(deadline);
        if (begins) {
            start_timer(std::move(owner), executor, grace);
        }
        progress_ = std::move(progress);  // nothing has begun if one of these throws
        if (begins) {
            scope.drain(deadline);
        }
        end_if_idle();
    }

    // The timer of a grace. The context owns it.
    struct Grace {
        template <class Executor>
        Grace(DrainState& its_drain, std::shared_ptr<void> its_owner, const Executor& executor)
            : drain(its_drain), owner(std::move(its_owner)), timer(std::in_place, executor) {}
        ~Grace() {  // the context may destroy this first
            if (drain.timer_ == &timer) {
                drain.timer_ = nullptr;
            }
        }

        Grace(const Grace&) = delete;
        Grace& operator=(const Grace&) = delete;

        DrainState& drain;
        std::shared_ptr<void> owner;
        std::optional<T> timer;
    };

    // In place of another timer.
    template <class Executor>
    void start_timer(std::shared_ptr<void> owner, const Executor& executor, std::chrono::nanoseconds grace) {
        auto waiting = std::make_unique<Grace>(*this, std::move(owner), executor);
        std::optional<T>& timer = waiting->timer;
        timer->expires_after(std::chrono::ceil<typename T::duration>(grace));
        timer->async_wait(boost::asio::deferred)([waiting = std::move(waiting)](const auto&...) {
            DrainState& drain = waiting->drain;
            if (drain.timer_ == &waiting->timer) {  // no drain has a shorter grace, and not all has ended
                drain.timer_ = nullptr;
                drain.end_grace();
            }
        });
        end_timer();
        timer_ = &timer;
    }

    void end_timer() {
        if (timer_) {
            std::exchange(timer_, nullptr)->reset();  // ends the wait: a Timer need not have cancel()
        }
    }

    void on_drain() override { join(pipeline_->scope); }
    void on_grace_over() override { end_grace(); }

    void enter(std::size_t DrainState::* number) noexcept {
        ++(this->*number);
        if (pipeline_) {
            ++(pipeline_->*number);
        }
    }

    void stopped() {
        --running_;
        end_if_idle();
        if (pipeline_) {
            pipeline_->stopped();
        }
    }

    void end_if_idle() {
        if (progress_ && scope.draining() && in_work_ == 0 && running_ == 0 && !ended_) {
            ended_ = true;
            end_timer();
            progress_->notify_all();
        }
    }

    DrainState* const pipeline_;         // of a stream
    QueryEnds counts_;                   // of those in work when it began, or handed over by a source after that
    std::size_t in_work_ = 0;            // queries
    std::size_t running_ = 0;            // batches and streams
    std::optional<T>* timer_ = nullptr;  // of the grace, while it is awaited
    boost::intrusive_ptr<ConditionVariable> progress_;
    bool ended_ = false;
};

}  // namespace sluice::detail
