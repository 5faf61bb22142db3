// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/inference_pipeline.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/deferred.hpp>

#include <chrono>

// Latencies are measured with the clock of the timer.
void timer_without_clock() {
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
    sluice::InferencePipelineOptions options;
}
