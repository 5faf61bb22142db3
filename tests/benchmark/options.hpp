// SPDX-License-Identifier: BSL-1.0
// The options of the command line.
#pragma once

#include "harness.hpp"

#include <string>

namespace benchmark {

inline constexpr const char* usage = R"(usage: sluice_benchmark [options]

Measures sluice against the floor of Asio and its peers, and prints a table.

  --rounds N      the number of rounds (default 9); a cost is the minimum of all rounds
  --filter TEXT   only the rows whose names contain TEXT
  --quick         a smoke run: few rounds, small sizes, meaningless numbers
  --json FILE     also write the table as JSON
  --check         exit with 1 if a target is missed, and say which
  -h, --help      print this text
)";

struct Options {
    Settings settings;
    std::string filter;
    std::string json;
    bool check = false;
    bool help = false;
};

/// @throws std::invalid_argument that says which option is wrong.
Options parse(int argc, char** argv);

}  // namespace benchmark
