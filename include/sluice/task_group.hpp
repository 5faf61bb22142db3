// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/concepts.hpp>
#include <sluice/detail/awaitable_traits.hpp>
#include <sluice/detail/callee.hpp>
#include <sluice/detail/on_executor.hpp>
#include <sluice/detail/task_group_state.hpp>
#include <sluice/detail/wait_queue.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/execution/bad_executor.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>
#include <boost/system/system_error.hpp>

#include <concepts>
#include <exception>
#include <type_traits>
#include <utility>

namespace sluice {

class TaskGroup;

namespace detail {
template <class Executor, class Body>
struct GroupRun;
}

/// Runs `body(group)`, an awaitable, and every child that it spawns into the group, and ends when all of them have
/// ended: nothing outlives it. Gives what the body gave.
///
/// `Executor` is that of the awaiting coroutine, if it is not `any_io_executor`. The body is started like a child,
/// after this coroutine has suspended.
///
/// @par Failure
/// The first exception that leaves the body or a child cancels the others, waits for their clean-up, and is the
/// exception that comes out. `operation_aborted`, or `channel_cancelled`, from a child that the group has cancelled is
/// not a failure, also inside of `multiple_exceptions`; the same from one that nobody cancelled is. What fails after
/// the first failure is discarded.
///
/// @par Cancellation
/// Whatever type reaches the awaiting coroutine cancels the body and every child, with every type. When all have ended,
/// `operation_aborted` comes out, or the first failure, if there was one. After TaskGroup::cancel() the group ends
/// normally; a body that then has no value to give ends with `operation_aborted`.
///
/// @par Lifetime
/// `body` is kept until the end. With g++ 12, which destroys a temporary closure in the operand of `co_await` twice, a
/// lambda given directly must capture nothing that has a destructor: capture by reference, or name the lambda and move
/// it in. (The same holds for every function that is awaited where it is called.)
///
/// If the execution context is destroyed meanwhile, the coroutines are destroyed with it in no particular order: their
/// destructors must not reach into each other's frames.
template <class Executor = boost::asio::any_io_executor, class Body>
[[nodiscard]] auto with_task_group(Body body) -> boost::asio::awaitable<detail::awaited_t<Body&, TaskGroup&>, Executor>;

/// The scope in which with_task_group() runs its children.
///
/// @par Thread safety
/// Unsafe: a group belongs to one thread or strand, that of the coroutine that awaits with_task_group().
class TaskGroup {
public:
    TaskGroup(const TaskGroup&) = delete;
    TaskGroup& operator=(const TaskGroup&) = delete;

    /// Starts a child: an awaitable, or a callable that gives one. The callable lives as long as its coroutine, so a
    /// lambda that captures is safe here. A value that the child gives is discarded.
    ///
    /// The child begins on the group's executor after this call, in the order of spawning, never inside it. Children
    /// may spawn. A child spawned into a cancelled group, or cancelled before it began, never begins: its callable is
    /// destroyed uncalled.
    ///
    /// @throws boost::asio::execution::bad_executor if the child's coroutine is bound to another type of executor than
    /// the group's.
    /// @throws std::logic_error if every child has ended already.
    template <class Task>
    void spawn(Task task) {
        if constexpr (Awaitable<Task>) {
            spawn(detail::Given<Task>{std::move(task)});
        } else {
            static_assert(AwaitableFunction<Task>,
                          "sluice::AwaitableFunction: spawn() needs an asio::awaitable, or a function that gives one "
                          "when it is called without arguments");
            state_->spawn(executor<detail::awaiting_executor_t<Task&>>(), std::move(task));
        }
    }

    /// Cancels the body and every child, each once. A group that was cancelled in this way ends normally when they have
    /// ended, whatever was left undone. If a cancellation handler of the user's throws, the program terminates.
    void cancel() noexcept { state_->cancel(); }

    /// Whether the group was cancelled: by cancel(), by a failure, or from outside.
    bool cancelled() const noexcept { return state_->cancelled(); }

private:
    template <class Executor, class Body>
    friend struct detail::GroupRun;

    explicit TaskGroup(boost::intrusive_ptr<detail::TaskGroupState> state) noexcept : state_(std::move(state)) {}

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
    using T = awaited_t<Body&, TaskGroup&>;

    struct RunBody {
        Body& body;
        TaskGroup& group;
        Awaited<T>& result;

        boost::asio::awaitable<void, Executor> operator()() const {
            if constexpr (std::is_void_v<T>) {
                co_await callee(body)(group);
                result.emplace();
            } else {
                result.emplace(co_await callee(body)(group));
            }
        }
    };

    static boost::asio::awaitable<T, Executor> run(Body body) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        const auto state = make_queue<TaskGroupState>("TaskGroup", executor);
        TaskGroup group(state);
        Awaited<T> result;
        state->spawn(executor, RunBody{body, group, result});

        Waiter children_ended;
        co_await state->wait(children_ended);

        if (state->failure()) {
            std::rethrow_exception(state->failure());
        }
        if (state->cancelled_from_outside() || (!result && !std::is_void_v<T>)) {
            throw boost::system::system_error(boost::asio::error::operation_aborted, "with_task_group");
        }
        if constexpr (!std::is_void_v<T>) {
            co_return std::move(*result);
        }
    }
};

}  // namespace detail

template <class Executor, class Body>
auto with_task_group(Body body) -> boost::asio::awaitable<detail::awaited_t<Body&, TaskGroup&>, Executor> {
    static_assert(
        AwaitableFunction<Body, TaskGroup&>,
        "sluice::AwaitableFunction: the body of with_task_group() must be callable with a TaskGroup& and give "
        "an asio::awaitable");
    return detail::GroupRun<Executor, Body>::run(std::move(body));
}

}  // namespace sluice
