// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/exceptions.hpp>

#include <boost/asio/async_result.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/strand.hpp>
#include <boost/asio/this_coro.hpp>

#include <atomic>
#include <exception>
#include <memory>
#include <optional>
#include <type_traits>
#include <utility>

namespace sluice::detail {

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
    struct Returned {
        std::exception_ptr error;
        OptionalValue<Value> value;
    };

    static boost::asio::awaitable<void, Executor> call(const WorkLink<Strand>& link, Function& function,
                                                       Returned& returned) {
        try {
            if (link.cancelled) {
                throw operation_aborted("run_on");
            }
            if constexpr (AwaitableFunction<Function>) {
                co_await boost::asio::this_coro::reset_cancellation_state(boost::asio::enable_total_cancellation());
                if constexpr (std::is_void_v<Value>) {
                    co_await function();
                    returned.value.emplace();
                } else {
                    returned.value.emplace(co_await function());
                }
            } else if constexpr (std::is_void_v<Value>) {
                function();
                returned.value.emplace();
            } else {
                returned.value.emplace(function());
            }
        } catch (...) {
            returned.error = std::current_exception();
        }
    }

    // Holds function and link in its frame, which is destroyed before what it returned is passed on. Cancellation
    // reaches not this coroutine but the one that it starts, which begins immediately, since this one is on the strand.
    static boost::asio::awaitable<Returned, Executor> work(Link link, Function function) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        // If the awaiting coroutine is on a thread of the pool, everything up to here runs inside its call.
        co_await boost::asio::post(executor, boost::asio::deferred);
        Returned returned;
        if constexpr (AwaitableFunction<Function>) {
            const auto slot = link->signal.slot();
            co_await boost::asio::co_spawn(executor, call(*link, function, returned),
                                           boost::asio::bind_cancellation_slot(slot, boost::asio::deferred));
        } else {
            co_await call(*link, function, returned);
        }
        co_return returned;
    }

    template <class AwaitingExecutor, class Pool>
    static boost::asio::awaitable<Value, AwaitingExecutor> run(std::optional<Pool> pool, Function function) {
        auto link = std::make_shared<WorkLink<Strand>>(Strand(*pool));
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
        auto returned =
            co_await boost::asio::async_initiate<const boost::asio::deferred_t&, void(std::exception_ptr, Returned)>(
                [&](auto&& handler) {
                    const Executor executor(link->strand);
                    boost::asio::co_spawn(
                        executor, work(std::move(link), std::move(function)),
                        boost::asio::bind_cancellation_slot(boost::asio::cancellation_slot(),
                                                            std::forward<decltype(handler)>(handler)));
                },
                boost::asio::deferred);
        if (returned.error) {
            std::rethrow_exception(std::move(returned.error));
        }
        if constexpr (!std::is_void_v<Value>) {
            co_return std::move(*returned.value);
        }
    }
};

}  // namespace sluice::detail
