// SPDX-License-Identifier: BSL-1.0
// The load that every client of the benchmark over HTTP makes, and the measurement of it.
#pragma once

#include <chrono>
#include <cstddef>
#include <string>
#include <vector>

namespace benchmark {

struct LoadOptions {
    std::string url;  ///< The base, such as "http://127.0.0.1:8080/v1".
    std::size_t queries = 20'000;
    std::size_t slots = 200;
};

/// @throws std::invalid_argument naming the option that is wrong.
LoadOptions parse_load(int argc, char** argv);

/// The messages of each query.
inline constexpr const char* system_message = "You answer in one short paragraph.";
std::string question(std::size_t number);

/// Measures the process from its construction on.
class Measurement {
public:
    using Clock = std::chrono::steady_clock;

    explicit Measurement(std::size_t queries);

    /// Counts a call that began at `begun` and has returned a text of `characters`.
    void count(Clock::time_point begun, std::size_t characters);

    /// Prints, as JSON: the queries, the characters of all answers, the time and CPU time in seconds, the median and
    /// 99th percentile of a call in milliseconds, and the greatest resident memory in kB.
    void print() const;

private:
    Clock::time_point start_ = Clock::now();
    double cpu_start_;
    std::size_t characters_ = 0;
    std::vector<Clock::duration> calls_;
};

}  // namespace benchmark
