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

/// A table that is printed row by row, as they are measured.
class Table {
public:
    /// Makes the columns wide enough for these rows, and prints the heading.
    Table(std::ostream& out, const std::vector<Row>& rows);

    /// One line per comparison.
    void print(const Measured& row);

private:
    std::ostream& out_;
    int name_width_ = 0;
    int unit_width_ = 0;
    int other_width_ = 0;
};

void write_json(std::ostream& out, const Settings& settings, const std::vector<Measured>& rows);

/// The bounds that do not hold, one per line, each with what was measured.
std::vector<std::string> missed_targets(const std::vector<Measured>& rows);

}  // namespace benchmark
