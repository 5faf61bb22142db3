// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/context_bound.hpp>
#include <sluice/sync/detail/intrusive_list.hpp>
#include <sluice/sync/detail/sequence_checker.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/assert.hpp>

#include <cstddef>
#include <utility>

namespace sluice::detail {

// The shared state under every primitive: the coroutines that wait, and those that are about to be resumed.
//
// The call that decides a waiter's outcome never resumes it. It moves the waiter to the ready list, and one posted
// drain resumes everything that was ready when it began, in order. So no call that wakes a coroutine is re-entered by
// it, and neither a cascade nor a burst of wake-ups grows the stack.
class WaitQueue : public ContextBound {
public:
    // An asynchronous operation with the signature void(): suspends the coroutine until `waiter` is made ready.
    auto wait(Waiter& waiter) noexcept { return Wait<NoCanceller>{this, &waiter, {}}; }

    // The same, cancelled by a WaitCanceller where that can.
    template <class Canceller>
    auto wait(Waiter& waiter, Canceller& canceller) noexcept {
        return Wait<Canceller&>{this, &waiter, canceller};
    }

    // An asynchronous operation with the signature void(): suspends the coroutine until the next drain. Cannot be
    // cancelled.
    auto yield(Waiter& waiter) noexcept {
        waiter.outcome = WaitOutcome::granted;
        return wait(waiter);
    }

    // Adds `waiter`, which is resumed soon if its outcome is decided already. In the end `resume` is either called or
    // destroyed with the context.
    template <class Resume>
    void enter(Waiter& waiter, boost::asio::cancellation_slot cancellation, Resume&& resume) {
        const SequenceChecker::Scope scope(sequence_checker_);
        waiter.queue = this;
        BOOST_ASSERT(!context_gone());
        if (cancellation.is_connected()) {
            cancellation.emplace<OnCancel>(waiter);
        }
        waiter.store(std::forward<Resume>(resume), cancellation);
        if (waiter.outcome == WaitOutcome::waiting) {
            ++waiting_count_;
            line_up(waiting_, waiter);
        } else {
            ready_.push_back(waiter);
            schedule();
        }
    }

    // Whether a wait continues without suspending: if its outcome is decided, unless the 64 before it did. That one
    // goes through the executor, so that a loop gives other handlers a turn. A wait that suspends here ends the row; a
    // suspension elsewhere does not, since nothing tells.
    bool continues_at_once(bool decided) noexcept {
        if (decided && ++at_once_in_a_row_ <= 64) {
            return true;
        }
        at_once_in_a_row_ = 0;
        return false;
    }

    // `waiter`, which waits here or was granted what it waits for and has not resumed yet, was cancelled.
    void cancel(Waiter& waiter) noexcept { on_cancel(waiter); }

    // For a waiter in this queue that is destroyed with its context, although it does not lie in the coroutine that
    // waits.
    void drop(Waiter& waiter) noexcept {
        waiter.unlink();
        if (!context_gone()) {  // otherwise on_context_gone() has done this
            waiting_count_ -= waiter.outcome == WaitOutcome::waiting ? 1 : 0;
            waiter.disconnect();
            on_drop(waiter);
        }
        waiter.drop();
    }

    std::size_t waiting() const noexcept { return waiting_count_; }

    // The executor of the drain; empty once its context has been destroyed.
    virtual boost::asio::any_io_executor get_executor() const = 0;

protected:
    // For functions that use the queue and post nothing. A drain that is posted from outside the executor, by a
    // destructor for example, may begin before the function that posted it has returned.
    SequenceChecker sequence_checker_;

    // `waiter` was cancelled. May be called until it resumes, and so after its outcome was decided.
    virtual void on_cancel(Waiter& waiter) noexcept = 0;

    // `waiter` will never resume, because the context is being destroyed.
    virtual void on_drop(Waiter&) noexcept {}

    // Adds `waiter`, which begins to wait. May decide its outcome.
    virtual void line_up(IntrusiveList<Waiter>& waiting, Waiter& waiter) noexcept { waiting.push_back(waiter); }

    virtual void post_drain() = 0;
    virtual void drop_executor() noexcept = 0;

    Waiter& longest_waiting() noexcept { return waiting_.front(); }

    // The same among those that match, or null. O(those before it).
    template <class Matches>
    Waiter* longest_waiting(Matches matches) noexcept {
        return waiting_.find(matches);
    }

    // Decides the outcome of one waiter.
    void wake(Waiter& waiter, WaitOutcome outcome) noexcept {
        --waiting_count_;
        waiter.outcome = outcome;
        waiter.unlink();
        ready_.push_back(waiter);
        schedule();
    }

    // Decides that of the waiters that match.
    template <class Matches>
    void wake_if(Matches matches, WaitOutcome outcome) noexcept {
        waiting_.for_each([&](Waiter& waiter) {
            if (matches(waiter)) {
                wake(waiter, outcome);
            }
        });
    }

    void wake_all(WaitOutcome outcome) noexcept {
        waiting_.for_each([&](Waiter& waiter) { waiter.outcome = outcome; });
        IntrusiveList<Waiter> all;
        take_waiting(all);
        make_ready(all);
    }

    // Moves all current waiters to `taken`, in the order of their arrival.
    void take_waiting(IntrusiveList<Waiter>& taken) noexcept {
        taken.splice_back(waiting_);
        waiting_count_ = 0;
    }

    void make_ready(IntrusiveList<Waiter>& taken) noexcept {
        if (!taken.empty()) {
            ready_.splice_back(taken);
            schedule();
        }
    }

    // Destroying a frame may run any code, which may use this queue: so the lists are emptied first.
    void on_context_gone() noexcept override {
        scheduled_ = true;  // no drain is posted again
        IntrusiveList<Waiter> dropped;
        dropped.splice_back(waiting_);
        dropped.splice_back(ready_);
        waiting_count_ = 0;
        dropped.for_each([this](Waiter& waiter) {
            waiter.disconnect();
            on_drop(waiter);
        });
        while (!dropped.empty()) {
            Waiter& waiter = dropped.front();
            waiter.unlink();
            waiter.drop();
        }
        drop_executor();
    }

private:
    template <class, class>
    friend class BoundQueue;

    // The handler in the waiter's cancellation slot. The signal may be destroyed, and this with it, before the waiter.
    class OnCancel {
    public:
        explicit OnCancel(Waiter& waiter) noexcept : waiter_(waiter) {}
        ~OnCancel() { waiter_.forget_slot(); }

        OnCancel(const OnCancel&) = delete;
        OnCancel& operator=(const OnCancel&) = delete;

        void operator()(boost::asio::cancellation_type type) const {
            using boost::asio::cancellation_type;
            if ((type & (cancellation_type::terminal | cancellation_type::partial | cancellation_type::total)) !=
                cancellation_type::none) {
                waiter_.queue->on_cancel(waiter_);
            }
        }

    private:
        Waiter& waiter_;
    };

    struct NoCanceller {
        static bool begin(Waiter&, const boost::asio::cancellation_slot&) noexcept { return false; }
    };

    template <class Canceller>
    struct Wait {
        WaitQueue* queue;
        Waiter* waiter;
        [[no_unique_address]] Canceller canceller;

        // Constrained, since co_await asks of every operand whether it can be called with a coroutine frame.
        template <boost::asio::completion_token_for<void()> Token>
        auto operator()(Token&& token) const {
            return boost::asio::async_initiate<Token, void()>(
                [self = *this](auto&& handler) {
                    self.queue->check_context([&] { return boost::asio::get_associated_executor(handler); });
                    auto slot = self.waiter->outcome == WaitOutcome::waiting
                                    ? boost::asio::get_associated_cancellation_slot(handler)
                                    : boost::asio::cancellation_slot();
                    if (self.canceller.begin(*self.waiter, slot)) {
                        slot = {};
                    }
                    self.queue->enter(*self.waiter, slot, std::forward<decltype(handler)>(handler));
                },
                token);
        }
    };

    // Resumes the waiters that are ready now. Those that become ready meanwhile are resumed by the next drain, so that
    // other posted handlers get their turn.
    void drain() {
        struct Burst {
            WaitQueue& queue;
            IntrusiveList<Waiter> waiters;

            explicit Burst(WaitQueue& ready_queue) noexcept : queue(ready_queue) { waiters.splice_back(queue.ready_); }
            ~Burst() {  // some are left if a resumed coroutine let an exception escape into the event loop
                waiters.splice_back(queue.ready_);
                queue.scheduled_ = false;
                queue.make_ready(waiters);
            }
        } burst(*this);
        const SequenceChecker::Scope scope(sequence_checker_);
        while (!burst.waiters.empty()) {
            Waiter& waiter = burst.waiters.front();
            waiter.unlink();
            waiter.resume();
        }
    }

    void schedule() noexcept {
        if (!scheduled_) {
            scheduled_ = true;
            post_drain();
        }
    }

    IntrusiveList<Waiter> waiting_;  // first come, first served; their outcome is `waiting`
    IntrusiveList<Waiter> ready_;    // in the order in which they resume
    std::size_t waiting_count_ = 0;
    int at_once_in_a_row_ = 0;
    bool scheduled_ = false;  // a drain is posted or running
};

}  // namespace sluice::detail
