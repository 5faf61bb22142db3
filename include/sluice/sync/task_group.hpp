// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/callee.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/task_group_state.hpp>
#include <sluice/sync/detail/waiter.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/execution/bad_executor.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <concepts>
#include <exception>
#include <type_traits>
#include <utility>

namespace sluice {

/// The scope in which with_task_group() runs its children.
///
/// @par Thread safety
/// Unsafe: a group belongs to one thread or strand, that of the coroutine that awaits with_task_group().
class TaskGroup {
public:
    explicit TaskGroup(boost::intrusive_ptr<detail::TaskGroupState> state) noexcept : state_(std::move(state)) {}

    TaskGroup(const TaskGroup&) = delete;
    TaskGroup& operator=(const TaskGroup&) = delete;

    /// Starts a child: an awaitable, or a callable that returns one. The callable lives as long as its coroutine, so a
    /// lambda with captures is safe here. A value that the child returns is discarded.
    ///
    /// Children begin on the group's executor after this call returns, in the order in which they were spawned. They
    /// may spawn children. One that is spawned into a cancelled group, or cancelled before it began, never begins: its
    /// callable is destroyed without being called.
    ///
    /// @throws boost::asio::execution::bad_executor if the child's coroutine has another type of executor than the
    /// group.
    /// @throws std::logic_error if every child has ended already.
    template <class Task>
    void spawn(Task task) {
        if constexpr (Awaitable<Task>) {
            spawn([task = std::move(task)]() mutable { return std::move(task); });
        } else {
            static_assert(AwaitableFunction<Task>,
                          "sluice::AwaitableFunction: spawn() needs an asio::awaitable, or a function that returns one "
                          "when it is called without arguments");
            state_->spawn(executor<detail::awaitable_executor_t<Task&>>(), std::move(task));
        }
    }

    /// Cancels the body and every child, once each. A group that was cancelled in this way ends normally when they have
    /// ended, whatever they left undone. If a user's cancellation handler throws, the program terminates.
    void cancel() noexcept { state_->cancel(); }

    /// Whether the group was cancelled: by cancel(), by a failure, or from outside.
    bool cancelled() const noexcept { return state_->cancelled(); }

private:
    // Starts a child whose function takes the WaitCanceller of the child's waits.
    template <class Executor, class Function>
    friend void spawn_worker(TaskGroup& group, Function function) {
        group.state_->spawn(group.executor<Executor>(), std::move(function));
    }

    template <class Executor>
    Executor executor() const {
        boost::asio::any_io_executor any = state_->get_executor();
        if constexpr (std::same_as<Executor, boost::asio::any_io_executor>) {
            return any;
        } else if (const auto* typed = any.template target<Executor>()) {
            return *typed;
        } else {
            throw boost::asio::execution::bad_executor();
        }
    }

    boost::intrusive_ptr<detail::TaskGroupState> state_;
};

namespace detail {

template <class Executor, class Body>
struct GroupRun {
    using Value = awaited_value_t<Body&, TaskGroup&>;

    static boost::asio::awaitable<void, Executor> run_body(Body& body, TaskGroup& group, OptionalValue<Value>& result) {
        if constexpr (std::is_void_v<Value>) {
            co_await callee(body)(group);
            result.emplace();
        } else {
            result.emplace(co_await callee(body)(group));
        }
    }

    static boost::asio::awaitable<Value, Executor> run(Body body) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        const auto state = make_queue<TaskGroupState>("TaskGroup", executor);
        TaskGroup group(state);
        OptionalValue<Value> result;
        state->spawn(executor, [&] { return run_body(body, group, result); });

        Waiter children_ended;
        co_await state->wait(children_ended);

        if (state->failure()) {
            std::rethrow_exception(state->failure());
        }
        if (state->cancelled_from_outside() || (!result && !std::is_void_v<Value>)) {
            throw operation_aborted("with_task_group");
        }
        if constexpr (!std::is_void_v<Value>) {
            co_return std::move(*result);
        }
    }
};

}  // namespace detail

/// When awaited, runs `body(group)`, and every child that is spawned into the group, until all of them have ended, and
/// returns the value of the body. Nothing outlives it.
///
/// @code
/// const auto body = [&](sluice::TaskGroup& group) -> asio::awaitable<void> {
///     group.spawn([&] { return classify(query); });
///     group.spawn([&] { return extract(query); });
///     co_return;
/// };
/// co_await sluice::with_task_group(body);  // both have ended
/// @endcode
///
/// The body is started like a child, after the awaiting coroutine has suspended.
///
/// @tparam Executor The executor type of the awaiting coroutine.
///
/// @par Failure
/// The first exception that leaves the body or a child cancels the others, waits for their clean-up, and is then
/// thrown. Later exceptions are discarded. `operation_aborted` or `channel_cancelled`, including inside
/// `multiple_exceptions`, is not a failure if the group had cancelled the child, and is one otherwise.
///
/// @par Cancellation
/// Any type of cancellation that reaches the awaiting coroutine cancels the body and every child, with every type. When
/// all have ended, the first failure is thrown, or `operation_aborted` if there was none. After TaskGroup::cancel() the
/// group ends normally; if the body then has no value to return, `operation_aborted` is thrown.
///
/// @par Lifetime
/// `body` is stored until the end. g++ 12 destroys a temporary closure in an expression with `co_await` twice. So a
/// lambda written there must capture nothing that has a destructor: capture by reference, or name the lambda and move
/// it in. That applies to every function that is awaited where it is called.
///
/// If the execution context is destroyed meanwhile, the coroutines are destroyed with it in no particular order: their
/// destructors must not access each other's frames.
template <class Executor = boost::asio::any_io_executor, class Body>
[[nodiscard]] auto with_task_group(Body body)
    -> boost::asio::awaitable<detail::awaited_value_t<Body&, TaskGroup&>, Executor> {
    static_assert(AwaitableFunction<Body, TaskGroup&>,
                  "sluice::AwaitableFunction: the body of with_task_group() must be callable with a TaskGroup& and "
                  "return an asio::awaitable");
    return detail::GroupRun<Executor, Body>::run(std::move(body));
}

}  // namespace sluice
