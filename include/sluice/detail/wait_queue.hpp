// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/intrusive_list.hpp>
#include <sluice/detail/one_thread.hpp>
#include <sluice/detail/waiter.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/query.hpp>
#include <boost/assert.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <cstddef>
#include <mutex>
#include <utility>

namespace sluice::detail {

class WaitQueue;

// Tells every wait queue of an execution context that the context is going, so that neither has to outlive the other.
class WaitService final : public boost::asio::execution_context::service {
public:
    static inline boost::asio::execution_context::id id;

    explicit WaitService(boost::asio::execution_context& context) : service(context) {}

    void add(WaitQueue& queue);
    void remove(WaitQueue& queue) noexcept;

private:
    void shutdown() noexcept override;

    std::mutex mutex_;  // queues of several strands of one context come and go at the same time
    IntrusiveList<WaitQueue> queues_;
};

// The shared state under every primitive: coroutines that wait, and coroutines that are to be resumed.
//
// A waiter is never resumed by the call that decides its fate: that call moves it to the ready list, and one posted
// drain resumes all that were ready when it began, in order. So nothing that wakes a coroutine is re-entered by it, and
// neither a cascade nor a burst grows the stack.
//
// Reference counted without atomics: all of it is touched on one thread or strand, that of the executor. Only coming
// into being and going are safe beside other queues of the same context.
class WaitQueue : public ListHook {
public:
    WaitQueue(const WaitQueue&) = delete;
    WaitQueue& operator=(const WaitQueue&) = delete;

    // An asynchronous operation with the signature void(): suspends the coroutine until `waiter` is made ready.
    auto wait(Waiter& waiter) noexcept { return Wait{this, &waiter}; }

    // The same for a coroutine that is to go on at the next drain, with nothing to wait for that could be cancelled.
    auto yield(Waiter& waiter) noexcept {
        waiter.outcome = Outcome::granted;
        return wait(waiter);
    }

    // Lets `waiter` in, to be resumed soon if its outcome is decided. `resume` is called in the end, or destroyed with
    // the context.
    template <class Resume>
    void enter(Waiter& waiter, boost::asio::cancellation_slot cancellation, Resume&& resume) {
        const OneThread::Section section(one_thread_);
        waiter.queue = this;
        BOOST_ASSERT(!context_gone());
        if (cancellation.is_connected()) {
            cancellation.emplace<OnCancel>(waiter);
        }
        waiter.store(std::forward<Resume>(resume), cancellation);
        if (waiter.outcome == Outcome::waiting) {
            waiting_.push_back(waiter);
            ++waiting_count_;
        } else {
            ready_.push_back(waiter);
            schedule();
        }
    }

    std::size_t waiting() const noexcept { return waiting_count_; }

    // Whether the execution context is being destroyed, or has been, and its coroutines with it.
    bool context_gone() const noexcept { return service_ == nullptr; }

    // Asserts that a coroutine on the executor that `get_executor_of()` returns lives in the execution context of this
    // queue. It is not asked where nothing is asserted: an any_io_executor is dear to copy.
    template <class GetExecutor>
    void check_context(const GetExecutor& get_executor_of) const {
        BOOST_ASSERT_MSG(context_gone() || is_in_context(get_executor_of()),
                         "sluice: awaited in a coroutine of another execution context than the object's own, which "
                         "would never resume it: see run_on()");
        static_cast<void>(get_executor_of);
    }

    // The executor of the drain; an empty one once its context has been destroyed.
    virtual boost::asio::any_io_executor get_executor() const = 0;

protected:
    WaitQueue() noexcept = default;
    virtual ~WaitQueue() {
        if (service_) {
            service_->remove(*this);
        }
    }

    // For what touches the queue and posts nothing: a drain that is posted from elsewhere than the executor, by a
    // destructor say, may begin before whoever posted it has returned.
    OneThread one_thread_;

    // `waiter` was cancelled. Called until it resumes, so perhaps after its outcome was decided.
    virtual void on_cancel(Waiter& waiter) noexcept = 0;

    // `waiter` will never resume, because the context is going.
    virtual void on_drop(Waiter&) noexcept {}

    virtual void post_drain() = 0;
    virtual void drop_executor() noexcept = 0;

    Waiter& longest_waiting() noexcept { return waiting_.front(); }

    // Decides the fate of one waiter.
    void wake(Waiter& waiter, Outcome outcome) noexcept {
        --waiting_count_;
        waiter.outcome = outcome;
        waiter.unlink();
        ready_.push_back(waiter);
        schedule();
    }

    void wake_all(Outcome outcome) noexcept {
        waiting_.for_each([&](Waiter& waiter) { waiter.outcome = outcome; });
        IntrusiveList<Waiter> all;
        take_waiting(all);
        make_ready(all);
    }

    // Moves everyone who waits now to `taken`, in the order of their arrival.
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

private:
    friend class WaitService;
    template <class, class>
    friend class OnExecutor;

    // Lies in the waiter's cancellation slot, and may be destroyed before the waiter: with the signal.
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

    struct Wait {
        WaitQueue* queue;
        Waiter* waiter;

        // Constrained, since co_await asks of every operand whether it can be called with a coroutine frame.
        template <boost::asio::completion_token_for<void()> Token>
        auto operator()(Token&& token) const {
            return boost::asio::async_initiate<Token, void()>(
                [wait = *this](auto&& handler) { wait.start(std::forward<decltype(handler)>(handler)); }, token);
        }

        template <class Handler>
        void start(Handler&& handler) const {
            queue->check_context([&] { return boost::asio::get_associated_executor(handler); });
            const auto slot = waiter->outcome == Outcome::waiting
                                  ? boost::asio::get_associated_cancellation_slot(handler)
                                  : boost::asio::cancellation_slot();
            queue->enter(*waiter, slot, std::forward<Handler>(handler));
        }
    };

    // Resumes those that are ready now; whoever becomes ready meanwhile has the next drain, so that the handlers which
    // others have posted get their turn.
    void drain() {
        struct Burst {
            WaitQueue& queue;
            IntrusiveList<Waiter> waiters;

            explicit Burst(WaitQueue& ready_queue) noexcept : queue(ready_queue) { waiters.splice_back(queue.ready_); }
            ~Burst() {  // with some left, if a resumed coroutine has let an exception out into the loop
                waiters.splice_back(queue.ready_);
                queue.scheduled_ = false;
                queue.make_ready(waiters);
            }
        } burst(*this);
        const OneThread::Section section(one_thread_);
        while (!burst.waiters.empty()) {
            Waiter& waiter = burst.waiters.front();
            waiter.unlink();
            waiter.resume();
        }
    }

    template <class Executor>
    bool is_in_context(const Executor& executor) const {
        return &service_->context() == &static_cast<const boost::asio::execution_context&>(
                                           boost::asio::query(executor, boost::asio::execution::context));
    }

    void schedule() noexcept {
        if (!scheduled_) {
            scheduled_ = true;
            post_drain();
        }
    }

    // The frames that go here may run any code as they go, and that may come back to this queue: so everybody is taken
    // out of it first.
    void shut_down() noexcept {
        service_ = nullptr;
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

    friend void intrusive_ptr_add_ref(WaitQueue* queue) noexcept { ++queue->references_; }
    friend void intrusive_ptr_release(WaitQueue* queue) noexcept {
        if (--queue->references_ == 0) {
            delete queue;
        }
    }

    WaitService* service_ = nullptr;  // null once the context is going
    IntrusiveList<Waiter> waiting_;   // first come, first served; their outcome is `waiting`
    IntrusiveList<Waiter> ready_;     // in the order in which they resume; nothing keeps them any more
    std::size_t waiting_count_ = 0;
    std::size_t references_ = 0;
    bool scheduled_ = false;  // a drain is posted or runs
};

inline void WaitService::add(WaitQueue& queue) {
    const std::lock_guard lock(mutex_);
    queues_.push_back(queue);
    queue.service_ = this;
}

inline void WaitService::remove(WaitQueue& queue) noexcept {
    const std::lock_guard lock(mutex_);
    queue.unlink();
}

inline void WaitService::shutdown() noexcept {
    while (!queues_.empty()) {  // nobody else is here any more: the context is being destroyed
        const boost::intrusive_ptr<WaitQueue> queue(&queues_.front());
        queue->unlink();
        queue->shut_down();
    }
}

}  // namespace sluice::detail
