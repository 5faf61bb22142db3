// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/spawn_uncancelled.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>

#include <exception>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// A call of a sink that returns an awaitable, as a coroutine of its own. It begins and ends on a fresh stack, since a
// sink may answer without suspending, or send the query through a pipeline with the same sink.
template <class Function>
struct SinkCall {
    using Executor = typename std::invoke_result_t<const Function&>::executor_type;

    boost::asio::awaitable<void, Executor> operator()() const {
        co_await boost::asio::post(co_await boost::asio::this_coro::executor, boost::asio::deferred);
        std::exception_ptr error;
        try {
            static_cast<void>(co_await function());
        } catch (...) {
            error = std::current_exception();
        }
        co_await boost::asio::post(co_await boost::asio::this_coro::executor, boost::asio::deferred);
        if (error) {
            std::rethrow_exception(error);
        }
    }

    Function function;
};

// Returns an operation that awaits `function()` where no cancellation reaches it; see spawn_uncancelled().
template <class Executor, class Function>
auto call_sink(const Executor& executor, Function function) {
    return spawn_uncancelled(executor, SinkCall<Function>{std::move(function)});
}

}  // namespace sluice::detail
