// SPDX-License-Identifier: BSL-1.0
// Runs many coroutines of one loop, and measures from the beginning of the first to the end of the last.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/this_coro.hpp>

#include <cstddef>
#include <exception>

namespace benchmark {

namespace asio = boost::asio;

/// The executor type that Asio has by default, and that of a program in which every type is known.
using AnyExecutor = asio::any_io_executor;
using TypedExecutor = asio::io_context::executor_type;

inline void rethrow(std::exception_ptr error) {
    if (error) {
        std::rethrow_exception(error);
    }
}

/// Coroutines that each run `loop(turns)` once.
template <class Loop, class Gauge>
class Crew {
public:
    using Executor = typename Loop::executor_type;

    Crew(Loop& loop, Gauge& gauge, std::size_t turns) : loop_(loop), gauge_(gauge), turns_(turns) {}

    void run(asio::io_context& context, std::size_t members) {
        running_ = members;
        for (std::size_t i = 0; i < members; ++i) {
            asio::co_spawn(Executor(context.get_executor()), member(), rethrow);
        }
        context.run();
    }

private:
    asio::awaitable<void, Executor> member() {
        // No coroutine gets past this until all have been started, so starting them is not measured.
        co_await asio::post(co_await asio::this_coro::executor, asio::deferred);
        if (!begun_) {
            begun_ = true;
            gauge_.start();
        }
        co_await loop_(turns_);
        if (--running_ == 0) {
            gauge_.stop();
        }
    }

    Loop& loop_;
    Gauge& gauge_;
    std::size_t turns_;
    std::size_t running_ = 0;
    bool begun_ = false;
};

}  // namespace benchmark
