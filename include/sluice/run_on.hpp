// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/concepts.hpp>
#include <sluice/detail/awaitable_traits.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/system/system_error.hpp>

#include <atomic>
#include <concepts>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

namespace sluice {

namespace detail {

// What the coroutine that awaits and the work share while the work lasts. The work owns it: Asio's strands must not
// outlive the pool, as what waits elsewhere may do.
template <class Strand>
struct WorkLink {
    explicit WorkLink(Strand work_strand) : strand(std::move(work_strand)) {}

    Strand strand;
    std::atomic<bool> cancelled = false;
    boost::asio::cancellation_signal signal;  // touched on the strand alone
};

// Lies in the cancellation slot of the coroutine that awaits.
template <class Strand>
struct CancelWork {
    std::weak_ptr<WorkLink<Strand>> work;

    void operator()(boost::asio::cancellation_type type) const {
        if (const auto link = work.lock()) {
            link->cancelled = true;
            boost::asio::post(link->strand, [link, type] { link->signal.emit(type); });
        }
    }
};

// The value that a function gives, by itself or by its awaitable, and the executor of its coroutine.
template <class Strand, class Function>
struct WorkTraits {
    using Value = std::invoke_result_t<Function&>;
    using Executor = Strand;
};
template <class Strand, AwaitableFunction Function>
struct WorkTraits<Strand, Function> {
    using Value = awaited_t<Function&>;
    using Executor = awaiting_executor_t<Function&>;
};

template <class Strand, class Function>
struct RunOn {
    using Value = typename WorkTraits<Strand, Function>::Value;
    using Executor = typename WorkTraits<Strand, Function>::Executor;
    using Link = std::shared_ptr<WorkLink<Strand>>;

    // An error is handed on by hand: Asio would keep it on the pool's thread while the other handles it already.
    using Outcome = std::pair<std::exception_ptr, Awaited<Value>>;

    static boost::asio::awaitable<void, Executor> call(const WorkLink<Strand>& link, Function& function,
                                                       Outcome& outcome) {
        try {
            if (link.cancelled) {
                throw boost::system::system_error(boost::asio::error::operation_aborted, "run_on");
            }
            if constexpr (AwaitableFunction<Function>) {
                co_await boost::asio::this_coro::reset_cancellation_state(boost::asio::enable_total_cancellation());
                if constexpr (std::is_void_v<Value>) {
                    co_await function();
                    outcome.second.emplace();
                } else {
                    outcome.second.emplace(co_await function());
                }
            } else if constexpr (std::is_void_v<Value>) {
                function();
                outcome.second.emplace();
            } else {
                outcome.second.emplace(function());
            }
        } catch (...) {
            outcome.first = std::current_exception();
        }
    }

    // Has function and link in its frame, which is gone before the outcome is handed on. Cancellation does not reach
    // this coroutine, but the one that it starts, which begins at once, since this one is on the strand.
    static boost::asio::awaitable<Outcome, Executor> work(Link link, Function function) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        // If the coroutine that awaits is on a thread of the pool, all up to here is called by it.
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
            slot.template emplace<CancelWork<Strand>>(CancelWork<Strand>{link});
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
        if (outcome.first) {
            std::rethrow_exception(std::move(outcome.first));
        }
        if constexpr (!std::is_void_v<Value>) {
            co_return std::move(*outcome.second);
        }
    }
};

}  // namespace detail

/// Runs `function()` on `executor`, that of a thread pool say, and comes back to the executor of the awaiting coroutine
/// with the value that the function returned or the exception that it threw.
///
/// `function` is a callable without arguments. It returns a value or nothing, and may block its thread; or it returns
/// an `asio::awaitable`, a coroutine that then runs on `executor`. A model function that does its work on a pool:
///
///     auto classify = [&pool](const std::string& text) {
///         return sluice::run_on(pool.get_executor(), [text] { return blocking_call(text); });
///     };
///
/// Each call has a strand of its own. (Awaiting `co_spawn(pool, ...)` has none, and its cancellation then races with
/// the work inside of Asio.) `AwaitingExecutor` is that of the awaiting coroutine, if it is not `any_io_executor`.
///
/// @throws boost::system::system_error with `operation_aborted` if it was cancelled before `function` was called; else
/// whatever `function` or its coroutine threw.
///
/// @par Completion
/// Through the executor of the awaiting coroutine, after `function` and the frame of its coroutine were destroyed on
/// `executor`: nothing of the work is left then. `function` is never called inside the call that awaits.
///
/// @par Cancellation
/// Terminal, partial, total: each type that reaches the awaiting coroutine (`co_spawn` lets only terminal through,
/// unless told otherwise) reaches that of `function`, on its strand. The work is waited for, and what it returns or
/// throws comes out, a value as well. Work that has not begun, since the pool is busy, is not called at all, and ends
/// when the pool gets to it. A function that blocks is not interrupted: it returns when it returns.
///
/// @par Thread safety
/// Safe: any number of calls may run at once. `function` is called and destroyed on `executor` while the awaiting
/// coroutine is suspended, so it may refer to that coroutine's variables.
///
/// @par Lifetime
/// `function` is kept. The execution context of the awaiting coroutine must outlive the work: declare it before the
/// pool, so that the pool is destroyed first. A pool that is destroyed waits for the functions that run, and the
/// coroutines that are suspended on it are destroyed, with those that await them. A pool that was stopped, or joined,
/// runs nothing more: whoever awaits it waits until it is destroyed. As always with Asio, nobody may use a pool, and so
/// cancel its work, while it is being destroyed.
///
/// With g++ 12 a lambda given directly in the operand of `co_await` must capture nothing that has a destructor; see
/// with_task_group().
///
/// @par Virtual time
/// It does not wait for other threads: work on a pool takes real time, and a timeout on virtual time may pass
/// meanwhile.
///
/// @par Into a pipeline
/// A coroutine on another executor, such as a server's session on a pool, awaits a pipeline in the same way,
///
///     const auto result = co_await sluice::run_on(executor, [&] { return pipeline.process_one(query); });
///
/// where `executor` is the one that the pipeline was made with. All that runs in the strand of the call runs on that
/// executor, which runs one thing at a time, for it is a strand, or that of a context which one thread runs. So the
/// call and its cancellation never run beside anything else of the pipeline. The models' awaitables must be those of
/// `any_io_executor`: a typed one of theirs is no strand of this call.
template <class AwaitingExecutor = boost::asio::any_io_executor, class Executor, class Function>
    requires boost::asio::execution::is_executor<Executor>::value
[[nodiscard]] auto run_on(Executor executor, Function function) {
    static_assert(std::invocable<Function&>, "sluice::run_on() needs a function that can be called without arguments");
    if constexpr (std::invocable<Function&>) {
        using Run = detail::RunOn<boost::asio::strand<Executor>, Function>;
        static_assert(std::is_void_v<typename Run::Value> || ModelValue<typename Run::Value>,
                      "sluice::run_on(): the function must return a value or nothing: no reference, nothing that may "
                      "throw when it is moved");
        static_assert(std::constructible_from<typename Run::Executor, boost::asio::strand<Executor>>,
                      "sluice::run_on(): the function's asio::awaitable must be able to run on a strand, as those of "
                      "asio::any_io_executor are");
        return Run::template run<AwaitingExecutor, Executor>(std::move(executor), std::move(function));
    }
}

}  // namespace sluice
