// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/run_on.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/thread_pool.hpp>

// A coroutine that is bound to the executor type of a context does not run on a strand of a pool.
void run_on_of_a_bound_coroutine(boost::asio::thread_pool& pool) {
#ifdef MISTAKE
    auto work = []() -> boost::asio::awaitable<int, boost::asio::io_context::executor_type> { co_return 1; };
#else
    auto work = []() -> boost::asio::awaitable<int> { co_return 1; };
#endif
    static_cast<void>(sluice::run_on(pool.get_executor(), work));
}
