// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/run_on.hpp>

#include <boost/asio/thread_pool.hpp>

// A function that runs on a pool captures its data.
void run_on_with_arguments(boost::asio::thread_pool& pool) {
#ifdef MISTAKE
    auto work = [](int number) { return number; };
#else
    auto work = [number = 1] { return number; };
#endif
    static_cast<void>(sluice::run_on(pool.get_executor(), work));
}
