// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/exceptions.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>

#include <atomic>
#include <concepts>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

namespace sluice {

namespace detail {

// The state that the awaiting coroutine and the work share while the work lasts. The work owns it: a strand must not
// outlive its pool, and the awaiting coroutine may.
template <class Strand>
struct WorkLink {
    explicit WorkLink(Strand work_strand) : strand(std::move(work_strand)) {}

    Strand strand;
    std::atomic<bool> cancelled = false;
    boost::asio::cancellation_signal signal;  // touched on the strand alone
};

// The value that a function or its awaitable returns, and the executor of its coroutine.
template <class Strand, class Function>
struct WorkTraits {
    using Value = std::invoke_result_t<Function&>;
    using Executor = Strand;
};
template <class Strand, AwaitableFunction Function>
struct WorkTraits<Strand, Function> {
    using Value = awaited_value_t<Function&>;
    using Executor = awaitable_executor_t<Function&>;
};

template <class Strand, class Function>
struct RunOn {
    using Value = typename WorkTraits<Strand, Function>::Value;
    using Executor = typename WorkTraits<Strand, Function>::Executor;
    using Link = std::shared_ptr<WorkLink<Strand>>;

    // The error is passed by value: Asio would keep it on the pool's thread while the other thread handles it already.
    struct Outcome {
        std::exception_ptr error;
        OptionalValue<Value> value;
    };

    static boost::asio::awaitable<void, Executor> call(const WorkLink<Strand>& link, Function& function,
                                                       Outcome& outcome) {
        try {
            if (link.cancelled) {
                throw operation_aborted("run_on");
            }
            if constexpr (AwaitableFunction<Function>) {
                co_await boost::asio::this_coro::reset_cancellation_state(boost::asio::enable_total_cancellation());
                if constexpr (std::is_void_v<Value>) {
                    co_await function();
                    outcome.value.emplace();
                } else {
                    outcome.value.emplace(co_await function());
                }
            } else if constexpr (std::is_void_v<Value>) {
                function();
                outcome.value.emplace();
            } else {
                outcome.value.emplace(function());
            }
        } catch (...) {
            outcome.error = std::current_exception();
        }
    }

    // Holds function and link in its frame, which is destroyed before the outcome is passed on. Cancellation reaches
    // not this coroutine but the one that it starts, which begins immediately, since this one is on the strand.
    static boost::asio::awaitable<Outcome, Executor> work(Link link, Function function) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        // If the awaiting coroutine is on a thread of the pool, everything up to here runs inside its call.
        co_await boost::asio::post(executor, boost::asio::deferred);
        Outcome outcome;
        if constexpr (AwaitableFunction<Function>) {
            const auto slot = link->signal.slot();
            co_await boost::asio::co_spawn(executor, call(*link, function, outcome),
                                           boost::asio::bind_cancellation_slot(slot, boost::asio::deferred));
        } else {
            co_await call(*link, function, outcome);
        }
        co_return outcome;
    }

    template <class AwaitingExecutor, class Pool>
    static boost::asio::awaitable<Value, AwaitingExecutor> run(std::optional<Pool> pool, Function function) {
        auto link = std::make_shared<WorkLink<Strand>>(boost::asio::make_strand(*pool));
        pool.reset();  // it may be a strand
        const boost::asio::cancellation_state state = co_await boost::asio::this_coro::cancellation_state;
        if (auto slot = state.slot(); slot.is_connected()) {  // Asio clears it when this coroutine resumes
            slot.assign([weak = std::weak_ptr(link)](boost::asio::cancellation_type type) {
                if (const auto work = weak.lock()) {
                    work->cancelled = true;
                    boost::asio::post(work->strand, [work, type] { work->signal.emit(type); });
                }
            });
        }
        auto outcome =
            co_await boost::asio::async_initiate<const boost::asio::deferred_t&, void(std::exception_ptr, Outcome)>(
                [&](auto&& handler) {
                    const Executor executor(link->strand);
                    boost::asio::co_spawn(
                        executor, work(std::move(link), std::move(function)),
                        boost::asio::bind_cancellation_slot(boost::asio::cancellation_slot(),
                                                            std::forward<decltype(handler)>(handler)));
                },
                boost::asio::deferred);
        if (outcome.error) {
            std::rethrow_exception(std::move(outcome.error));
        }
        if constexpr (!std::is_void_v<Value>) {
            co_return std::move(*outcome.value);
        }
    }
};

}  // namespace detail

/// Awaiting it runs `function()` on `executor`, such as that of a thread pool, and resumes on the executor of the
/// awaiting coroutine with the value that the function returned or the exception that it threw.
///
/// `function` is a callable without arguments. It returns a value or nothing, and may block its thread; or it returns
/// an `asio::awaitable`, whose coroutine then runs on `executor`. A model function that works on a pool:
///
/// @code
/// auto classify = [&pool](const std::string& text) {
///     return sluice::run_on(pool.get_executor(), [text] { return blocking_call(text); });
/// };
/// @endcode
///
/// Each call has a strand of its own. (Awaiting `co_spawn(pool, ...)` has none, so its cancellation races with the work
/// inside Asio.)
///
/// @tparam AwaitingExecutor The executor type of the awaiting coroutine.
/// @throws boost::system::system_error with `operation_aborted` if it was cancelled before `function` was called.
/// @throws what `function` or its coroutine threw.
///
/// @par Completion
/// Through the awaiting coroutine's executor, after `function` and the frame of its coroutine have been destroyed on
/// `executor`. `function` is never called inside the call that awaits.
///
/// @par Cancellation
/// Terminal, partial and total: each type that reaches the awaiting coroutine reaches that of `function`, on its strand
/// (StageSemaphore::acquire() says which types do). The work is waited for, and its value or exception comes out. If it
/// has not begun, because the pool is busy, it is not called, and ends when its turn comes. A function that blocks is
/// not interrupted.
///
/// @par Thread safety
/// Safe: any number of calls may run at once. `function` is called and destroyed on `executor` while the awaiting
/// coroutine is suspended, so it may refer to that coroutine's variables.
///
/// @par Lifetime
/// `function` is stored. The execution context of the awaiting coroutine must outlive the work: declare it before the
/// pool. Destroying a pool waits for the functions that are running, and destroys the coroutines that are suspended on
/// it together with those that await them. A pool that was stopped or joined runs nothing more: a coroutine that awaits
/// it waits until it is destroyed. While a pool is being destroyed no other thread may use it, and so cancel its work.
///
/// With g++ 12 a lambda written in the operand of `co_await` must capture nothing that has a destructor; see
/// with_task_group(). Virtual time does not wait for other threads: a timeout on virtual time may pass during the work.
///
///
/// @par Into a pipeline
/// A coroutine on another executor, such as a server's session on a pool, awaits a pipeline in the same way:
///
/// @code
/// const auto result = co_await sluice::run_on(executor, [&] { return pipeline.process_one(query); });
/// @endcode
///
/// `executor` is the one that the pipeline was constructed with. It runs one handler at a time, so the call and its
/// cancellation never run beside anything else of the pipeline. The models' awaitables must be those of
/// `any_io_executor`: one with a typed executor cannot run on the strand of this call.
template <class AwaitingExecutor = boost::asio::any_io_executor, class Executor, class Function>
    requires boost::asio::execution::is_executor<Executor>::value
[[nodiscard]] auto run_on(Executor executor, Function function) {
    static_assert(std::invocable<Function&>, "sluice::run_on() needs a function that can be called without arguments");
    if constexpr (std::invocable<Function&>) {
        using Run = detail::RunOn<boost::asio::strand<Executor>, Function>;
        static_assert(std::is_void_v<typename Run::Value> || detail::NothrowMovable<typename Run::Value>,
                      "sluice::run_on(): the function must return a value or nothing: no reference, nothing that may "
                      "throw when it is moved");
        static_assert(std::constructible_from<typename Run::Executor, boost::asio::strand<Executor>>,
                      "sluice::run_on(): the function's asio::awaitable must be able to run on a strand, as those of "
                      "asio::any_io_executor are");
        return Run::template run<AwaitingExecutor, Executor>(std::move(executor), std::move(function));
    }
}

}  // namespace sluice
