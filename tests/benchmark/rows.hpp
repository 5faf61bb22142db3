// SPDX-License-Identifier: BSL-1.0
// All rows of the table, by subject.
#pragma once

#include "harness.hpp"

#include <vector>

namespace benchmark {

std::vector<Row> semaphore_rows(const Settings& settings);
std::vector<Row> barrier_rows(const Settings& settings);
std::vector<Row> task_group_rows(const Settings& settings);
std::vector<Row> pipeline_rows(const Settings& settings);
std::vector<Row> route_rows(const Settings& settings);
std::vector<Row> timeout_rows(const Settings& settings);
std::vector<Row> endpoint_rows(const Settings& settings);
std::vector<Row> policy_rows(const Settings& settings);
std::vector<Row> metrics_rows(const Settings& settings);
std::vector<Row> flight_rows(const Settings& settings);
std::vector<Row> scaling_rows(const Settings& settings);
std::vector<Row> allocation_rows(const Settings& settings);
std::vector<Row> virtual_time_rows(const Settings& settings);
std::vector<Row> clock_rows(const Settings& settings);
std::vector<Row> makespan_rows(const Settings& settings);
std::vector<Row> compile_time_rows(const Settings& settings);

}  // namespace benchmark
