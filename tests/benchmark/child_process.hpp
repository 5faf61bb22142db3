// SPDX-License-Identifier: BSL-1.0
// Runs other programs.
#pragma once

#include <string>
#include <vector>

namespace benchmark {

struct ChildResult {
    std::string output;   // what it printed
    double cpu_time = 0;  // nanoseconds, including its own children's
};

/// Runs a program, which is found as in a shell, and waits until it has ended.
/// @throws std::runtime_error if it cannot be run or does not succeed.
ChildResult run_child(const std::vector<std::string>& command);

}  // namespace benchmark
