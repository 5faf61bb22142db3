// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/bitwise_copy.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/wait_queue.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/asio/associated_cancellation_slot.hpp>
#include <boost/asio/associated_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/post.hpp>

#include <concepts>
#include <exception>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// A completion inside the call that starts the operation. It resumes the coroutine on top of its own suspension, and so
// may be nested only so deep.
struct InlineCompletion {
    static inline thread_local constinit int depth = 0;
    static constexpr int max_depth = 64;

    InlineCompletion() noexcept { ++depth; }
    ~InlineCompletion() { --depth; }

    InlineCompletion(const InlineCompletion&) = delete;
    InlineCompletion& operator=(const InlineCompletion&) = delete;
};

// A token that may start an operation: that of a coroutine which awaits it, or one of Asio's own questions about it.
// Nothing else keeps the operation alive until it completes.
template <class Token, class Value>
concept CoroutineToken = std::same_as<Token, boost::asio::detail::async_operation_probe> ||
                         std::same_as<Token, boost::asio::detail::completion_signature_probe> ||
                         (std::invocable<Token&, std::exception_ptr, Value> && requires {
                             typename Token::executor_type;
                             typename Token::cancellation_slot_type;
                         });

// What every WaitOperation is derived from.
struct AnyWaitOperation {};

template <class Operation, class Executor>
class OperationAwaiter;

// The base of the operations that wait. Awaiting one allocates no coroutine frame, since its state lies in the frame of
// the coroutine that awaits it. It converts to an awaitable where one is needed.
//
// `Derived` has state_, which points to the queue, and waiter_; decide(), which begins the wait, and returns whether it
// could decide its outcome; failed(), error() and value(), for when the wait has ended: whether it failed, with which
// exception, and what it returns otherwise; and check_awaited(bool), which asserts that the operation was not
// forgotten.
template <class Derived, class Value>
class WaitOperation : public AnyWaitOperation {
public:
    using value_type = Value;

    WaitOperation& operator=(const WaitOperation&) = delete;

    template <class Token>
        requires CoroutineToken<std::decay_t<Token>, Value>
    auto operator()(Token&& token) {
        return boost::asio::async_initiate<Token, void(std::exception_ptr, Value)>(
            [this](auto&& handler) { this->start(std::forward<decltype(handler)>(handler)); }, token);
    }

    boost::asio::awaitable<Value> operator()() { return std::move(self()); }

    template <class Executor>
    operator boost::asio::awaitable<Value, Executor>() && {
        return run<Executor>(Pooled(), std::move(self()));
    }

protected:
    // `other` was moved to this. Neither counts as forgotten, even if this one is never awaited.
    void take_over(WaitOperation& other) noexcept { forgotten_ = other.forgotten_ = false; }

    // An exception, such as Asio's in a cancelled coroutine, may keep an operation from being awaited.
    ~WaitOperation() {
        check_address();
        Derived::check_awaited(!forgotten_ || std::uncaught_exceptions() != 0);
    }

private:
    friend Derived;
    template <class, class>
    friend class OperationAwaiter;

    WaitOperation() noexcept = default;

    template <class Handler>
    struct Completion {
        Derived* operation;
        Handler handler;

        using executor_type = boost::asio::associated_executor_t<Handler>;
        using cancellation_slot_type = boost::asio::associated_cancellation_slot_t<Handler>;

        executor_type get_executor() const noexcept { return boost::asio::get_associated_executor(handler); }
        cancellation_slot_type get_cancellation_slot() const noexcept {
            return boost::asio::get_associated_cancellation_slot(handler);
        }

        void operator()() { operation->complete(std::move(handler)); }
    };

    // Returns whether the outcome is decided. `get_executor()` returns the executor of the coroutine.
    template <class GetExecutor>
    bool begin(const GetExecutor& get_executor) {
        check_address();
        forgotten_ = false;
        const bool decided = self().decide();
        queue().check_context(get_executor);
        return decided;
    }

    // Begins the wait. Completes now if the outcome is decided; otherwise adds the wait to the queue and completes when
    // it resumes. This object may be gone afterwards.
    template <class Handler>
    void start(Handler&& handler) {
        const bool decided = begin([&] { return boost::asio::get_associated_executor(handler); });
        if (decided && InlineCompletion::depth < InlineCompletion::max_depth) {
            const InlineCompletion here;
            complete(std::forward<Handler>(handler));
        } else {
            enter(Completion<std::decay_t<Handler>>{&self(), std::forward<Handler>(handler)});
        }
    }

    // Calls `resume` through its executor: now if the outcome is decided, and otherwise when it will be.
    template <class Resume>
    void enter(Resume&& resume) {
        if (queue().context_gone()) {  // nothing drains that queue any more
            boost::asio::post(std::forward<Resume>(resume));
        } else {
            const auto cancellation = boost::asio::get_associated_cancellation_slot(resume);
            queue().enter(self().waiter_, cancellation, std::forward<Resume>(resume));
        }
    }

    // This object is gone when the handler returns; the handler does not lie in it.
    template <class Handler>
    void complete(Handler&& handler) {
        if (self().failed()) {
            std::forward<Handler>(handler)(self().error(), Value());
        } else {
            std::forward<Handler>(handler)(std::exception_ptr(), self().value());
        }
    }

    Value result() {
        if (self().failed()) [[unlikely]] {
            rethrow();
        }
        return self().value();
    }

    [[noreturn]] void rethrow() { std::rethrow_exception(self().error()); }

    void check_address() const noexcept {
        if (address_.is_bitwise_copy()) [[unlikely]] {
            ConstructedAt::terminate(
                "sluice: a bitwise copy of an operation, such as g++ 12 makes of `co_await (free ? a.acquire() : "
                "b.acquire())`; write the two co_awaits one by one");
        }
    }

    Derived& self() noexcept { return static_cast<Derived&>(*this); }
    WaitQueue& queue() noexcept { return *self().state_; }

    template <class Executor>
    static boost::asio::awaitable<Value, Executor> run(Pooled, Derived operation) {
        co_return co_await std::move(operation);
    }

    ConstructedAt address_;
    bool forgotten_ = true;  // neither awaited nor moved from yet
};

}  // namespace sluice::detail
