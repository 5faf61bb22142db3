// SPDX-License-Identifier: BSL-1.0
// The results as a table and as JSON.
#pragma once

#include "harness.hpp"

#include <ostream>
#include <string>
#include <vector>

namespace benchmark {

/// The compiler, the version of Boost, and the processor.
std::string describe_build();

/// A table that is printed row by row, as the rows are measured.
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

/// The bounds that do not hold, one per line, each with the measured value.
std::vector<std::string> missed_targets(const std::vector<Measured>& rows);

}  // namespace benchmark
