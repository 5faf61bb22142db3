// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/intrusive_list.hpp>
#include <sluice/sync/detail/wait_canceller.hpp>
#include <sluice/sync/detail/wait_queue.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/execution/outstanding_work.hpp>
#include <boost/asio/prefer.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <boost/version.hpp>

#include <concepts>
#include <cstddef>
#include <exception>
#include <memory>
#include <optional>
#include <stdexcept>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// A child from spawn() to its end. Owned by the completion handler of its coroutine.
struct Child : ListHook {
    explicit Child(std::size_t& running_children) : running(running_children) { ++running; }
    ~Child() {
        unlink();
        --running;
    }

    std::size_t& running;     // the group's count
    WaitCanceller canceller;  // of the child's waits
    boost::asio::cancellation_signal signal;
    bool started = false;  // in Boost 1.83 an earlier cancellation would escape into the event loop
};

// The state that a TaskGroup shares with its children. Its one waiter is the coroutine around the group.
class TaskGroupState : public WaitQueue {
public:
    // Starts `function` as a child, on `executor`.
    template <class Executor, class Function>
    void spawn(const Executor& executor, Function function) {
        if (ended_) {
            throw std::logic_error("TaskGroup::spawn: the group has ended");
        }
        auto child = std::make_unique<Child>(running_);
        children_.push_back(*child);
        Run<Executor, Function>::start(executor, OnEnd{boost::intrusive_ptr<TaskGroupState>(this), std::move(child)},
                                       std::move(function));
    }

    // Cancels each child once, so that its clean-up is not disturbed by what happens to its siblings meanwhile.
    void cancel() noexcept {
        if (std::exchange(cancelled_, true) || context_gone()) {
            return;
        }
        // Cancelling a child may end it or others immediately, so each is reached only through the list.
        IntrusiveList<Child> uncancelled;
        uncancelled.splice_back(children_);
        while (!uncancelled.empty()) {
            Child& child = uncancelled.front();
            child.unlink();
            children_.push_back(child);
            if (child.started) {
                child.signal.emit(boost::asio::cancellation_type::all);
            }
        }
    }

    bool cancelled() const noexcept { return cancelled_; }
    bool cancelled_from_outside() const noexcept { return cancelled_from_outside_; }
    const std::exception_ptr& failure() const noexcept { return failure_; }

private:
    struct OnEnd {
        using cancellation_slot_type = boost::asio::cancellation_slot;

        boost::intrusive_ptr<TaskGroupState> group;
        std::unique_ptr<Child> child;

        cancellation_slot_type get_cancellation_slot() const noexcept { return child->signal.slot(); }

        void operator()(const std::exception_ptr& error) {
            child.reset();
            group->on_end(error);
        }
    };

    // A class template: in a function template g++ 12 warns of the linkage of `Function`, a lambda inside a coroutine.
    template <class Executor, class Function>
    struct Run {
        static constexpr bool takes_canceller = !std::invocable<Function&>;  // a function of the library's own may

#if BOOST_VERSION < 108300 || BOOST_VERSION > 109200 || defined(SLUICE_PORTABLE_AWAIT)
        static void start(const Executor& executor, OnEnd on_end, Function function) {
            TaskGroupState& group = *on_end.group;
            Child& child = *on_end.child;
            boost::asio::co_spawn(executor, run(Pooled(), group, child, std::move(function)), std::move(on_end));
        }

        static boost::asio::awaitable<void, Executor> run(Pooled, TaskGroupState& group, Child& child,
                                                          Function function) {
            child.started = true;
            co_await take_turn(Pooled(), group);
            if (!group.cancelled_) {
                if constexpr (takes_canceller) {
                    co_await function(child.canceller);
                } else {
                    static_cast<void>(co_await function());
                }
            }
        }
#else
        // As co_spawn() does, by way of Asio's insides, which are the same in these versions: one frame instead of two.
        static void start(const Executor& executor, OnEnd on_end, Function function) {
            on_end.child->started = true;
            const boost::asio::cancellation_slot slot = on_end.get_cancellation_slot();
            WaitCanceller& canceller = on_end.child->canceller;
            auto turn = take_turn(Pooled(), *on_end.group);
            boost::asio::detail::awaitable_thread<Executor>(
                run(Pooled(), std::move(on_end), std::move(turn), boost::asio::prefer(executor, work),
                    std::move(function)),
                executor, slot, canceller.connect(slot))
                .launch();  // nothing above has begun if it throws
        }

        // While a child runs, its executor has work.
        static constexpr auto work = boost::asio::execution::outstanding_work.tracked;
        using Work = std::decay_t<decltype(boost::asio::prefer(std::declval<const Executor&>(), work))>;
        using Entry = boost::asio::awaitable<boost::asio::detail::awaitable_thread_entry_point, Executor>;

        static Entry run(Pooled, OnEnd on_end, boost::asio::awaitable<void, Executor> turn, Work,
                         std::optional<Function> function) {
            std::exception_ptr error;
            try {
                co_await std::move(turn);
                if (!on_end.group->cancelled_) {
                    if constexpr (takes_canceller) {
                        co_await (*function)(on_end.child->canceller);
                    } else {
                        static_cast<void>(co_await (*function)());
                    }
                }
            } catch (...) {
                error = std::current_exception();
            }
            function.reset();
            on_end(error);
        }
#endif

        // A coroutine of its own keeps that of the child small.
        static boost::asio::awaitable<void, Executor> take_turn(Pooled, TaskGroupState& group) {
            Waiter start;
            co_await group.yield(start);
        }
    };

    void on_end(const std::exception_ptr& error) {
        if (error && !failure_ && !(cancelled_ && is_cancellation(error))) {
            failure_ = error;
            cancel();
        }
        if (running_ == 0 && waiting() != 0) {
            ended_ = true;
            wake(longest_waiting(), WaitOutcome::granted);
        }
    }

    void on_cancel(Waiter& waiter) noexcept override {
        if (waiter.outcome == WaitOutcome::waiting) {
            cancelled_from_outside_ = true;
            cancel();
        }
    }

    std::size_t running_ = 0;        // children that have not ended, including the body
    IntrusiveList<Child> children_;  // the same, except those that are about to be cancelled
    std::exception_ptr failure_;     // the first
    bool cancelled_ = false;
    bool cancelled_from_outside_ = false;
    bool ended_ = false;  // every child has ended, and the coroutine around the group is about to resume
};

}  // namespace sluice::detail
