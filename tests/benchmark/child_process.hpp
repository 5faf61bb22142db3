// SPDX-License-Identifier: BSL-1.0
// Other programs that the benchmark runs.
#pragma once

#include <string>
#include <vector>

namespace benchmark {

struct ChildResult {
    std::string output;   // what it printed
    double cpu_time = 0;  // nanoseconds, its own children's included
};

/// Runs a program, found as a shell would find it, and waits until it has ended.
/// @throws std::runtime_error if it cannot be run or does not succeed.
ChildResult run_child(const std::vector<std::string>& command);

}  // namespace benchmark
