// SPDX-License-Identifier: BSL-1.0
// sluice against the floor of Asio and its peers: one table, measured in one run.
#include "heap.hpp"
#include "options.hpp"
#include "report.hpp"
#include "rows.hpp"

#include <exception>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace benchmark;

std::vector<Row> rows_of(const Settings& settings, const std::string& filter) {
    std::vector<Row> rows;
    for (const auto& make : {semaphore_rows, barrier_rows, task_group_rows, endpoint_rows, policy_rows, pipeline_rows,
                             route_rows, timeout_rows, metrics_rows, virtual_time_rows, flight_rows, scaling_rows,
                             allocation_rows, clock_rows, makespan_rows, compile_time_rows}) {
        for (Row& row : make(settings)) {
            if (row.name.find(filter) != std::string::npos) {
                rows.push_back(std::move(row));
            }
        }
    }
    if (rows.empty()) {
        throw std::invalid_argument("--filter: no row's name contains '" + filter + "'");
    }
    return rows;
}

int run(const Options& options) {
    const std::vector<Row> rows = rows_of(options.settings, options.filter);
    std::ofstream json;
    if (!options.json.empty()) {
        json.open(options.json);
        if (!json) {
            throw std::invalid_argument("--json: cannot write '" + options.json + "'");
        }
    }

    keep_memory();
    std::cout << describe_build() << (options.settings.quick ? "; a smoke run, with meaningless numbers" : "") << '\n';
    Table table(std::cout, rows);
    std::vector<Measured> measured;
    for (const Row& row : rows) {
        measured.push_back(measure(row, options.settings));
        table.print(measured.back());
    }
    if (json.is_open()) {
        write_json(json, options.settings, measured);
        if (!json.flush()) {
            throw std::runtime_error("cannot write '" + options.json + "'");
        }
    }
    const std::vector<std::string> missed = missed_targets(measured);
    if (!options.check || missed.empty()) {
        return 0;
    }
    for (const std::string& target : missed) {
        std::cerr << "sluice_benchmark: missed: " << target << '\n';
    }
    return 1;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        const Options options = parse(argc, argv);
        if (options.help) {
            std::cout << usage;
            return 0;
        }
        return run(options);
    } catch (const std::invalid_argument& error) {
        std::cerr << "sluice_benchmark: " << error.what() << '\n';
        return 2;
    } catch (const std::exception& error) {
        std::cerr << "sluice_benchmark: " << error.what() << '\n';
        return 3;
    }
}
