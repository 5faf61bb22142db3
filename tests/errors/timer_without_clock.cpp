// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/timed_by.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/io_context.hpp>

#include <chrono>

// Latencies are measured with the clock of the timer.
void timer_without_clock(boost::asio::io_context& context) {
    struct TestTimer {
        using executor_type = boost::asio::any_io_executor;
        using duration = std::chrono::nanoseconds;
        using time_point = std::chrono::steady_clock::time_point;
#ifndef MISTAKE
        using clock_type = std::chrono::steady_clock;
#endif

        explicit TestTimer(executor_type) {}
        void expires_after(duration) {}
        void async_wait(boost::asio::deferred_t) {}
    };
    static_cast<void>(sluice::timed_by<TestTimer>(context.get_executor()));
}
