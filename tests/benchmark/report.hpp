// SPDX-License-Identifier: BSL-1.0
// What was measured, as a table and as JSON.
#pragma once

#include "harness.hpp"

#include <ostream>
#include <string>
#include <vector>

namespace benchmark {

/// What it was measured with: the compiler, Boost, and the processor.
std::string describe_build();

void print_heading(std::ostream& out);

/// One line per comparison.
void print(std::ostream& out, const Measured& row);

void write_json(std::ostream& out, const Settings& settings, const std::vector<Measured>& rows);

/// The bounds that do not hold, one per line, each with what was measured.
std::vector<std::string> missed_targets(const std::vector<Measured>& rows);

}  // namespace benchmark
