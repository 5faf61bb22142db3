// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/run_on_state.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/asio/strand.hpp>

#include <concepts>
#include <type_traits>
#include <utility>

namespace sluice {

/// When awaited, runs `function()` on `executor`, such as that of a thread pool, and resumes on the executor of the
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
/// Otherwise rethrows what `function` or its coroutine threw.
///
/// @par Completion
/// Through the awaiting coroutine's executor, after `function` and the frame of its coroutine have been destroyed on
/// `executor`. `function` is never called inside the call that awaits.
///
/// @par Cancellation
/// Terminal, partial and total: each type that reaches the awaiting coroutine reaches that of `function`, on its strand
/// (StageSemaphore::acquire() says which types do). The work is waited for, and its value or exception comes out. If it
/// has not begun, because the pool is busy, `function` is not called, and the wait ends when its turn comes. A function
/// that blocks is not interrupted.
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
/// With g++ 12 a lambda written in an expression with `co_await` must capture nothing that has a destructor; see
/// with_task_group(). Virtual time does not wait for other threads: work on a pool takes real time, and a timeout on
/// virtual time may pass meanwhile.
///
/// @par Into a pipeline
/// A coroutine on another executor, such as a server's session on a pool, awaits a pipeline in the same way:
///
/// @code
/// const auto result = co_await sluice::run_on(executor, [&] { return pipeline.process_one(query); });
/// @endcode
///
/// `executor` is the one that the pipeline was constructed with. It must be a strand, or that of a context that one
/// thread runs, so that the call and its cancellation never run beside anything else of the pipeline. The models'
/// awaitables must be those of `any_io_executor`: one with a typed executor cannot run on the strand of this call.
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
