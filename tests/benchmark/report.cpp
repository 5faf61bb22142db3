// SPDX-License-Identifier: BSL-1.0
#include "report.hpp"

#include <boost/config.hpp>
#include <boost/json.hpp>
#include <boost/version.hpp>

#include <fstream>
#include <iomanip>
#include <sstream>
#include <utility>

namespace benchmark {

namespace {

constexpr int name_width = 62;
constexpr int unit_width = 11;
constexpr int number_width = 10;
constexpr int other_width = 34;

// Three digits that matter, and no exponents.
std::string number(double value) {
    std::ostringstream text;
    const double size = value < 0 ? -value : value;
    text << std::fixed
         << std::setprecision(size == 0 || size >= 100 ? 0
                              : size >= 10             ? 1
                              : size >= 0.01           ? 2
                                                       : 5)
         << value;
    return text.str();
}

std::string describe_ratio(const Comparison& comparison) {
    if (!comparison.ratio) {
        return "";
    }
    std::ostringstream text;
    const bool speed = comparison.bound && comparison.bound->kind == Bound::Kind::times_faster;
    text << std::fixed << std::setprecision(*comparison.ratio >= 100 ? 0 : 2) << *comparison.ratio
         << (speed ? "x" : "");
    return text.str();
}

std::string describe_bound(const Bound& bound) {
    std::ostringstream text;
    text << (bound.kind == Bound::Kind::at_most ? "<= " : ">= ") << bound.limit
         << (bound.kind == Bound::Kind::at_most ? "" : "x");
    return text.str();
}

std::string processor() {
    std::ifstream file("/proc/cpuinfo");
    for (std::string line; std::getline(file, line);) {
        if (line.starts_with("model name")) {
            return line.substr(line.find(':') + 2);
        }
    }
    return "unknown processor";
}

boost::json::object to_json(const Comparison& comparison) {
    boost::json::object object{{"name", comparison.name}};
    if (comparison.cost) {
        object["cost"] = *comparison.cost;
    }
    if (comparison.ratio) {
        object["ratio"] = *comparison.ratio;
    }
    if (comparison.bound) {
        object["target"] = describe_bound(*comparison.bound);
        object["ok"] = !comparison.missed();
    }
    return object;
}

}  // namespace

std::string describe_build() {
    std::ostringstream text;
    text << BOOST_COMPILER << ", Boost " << BOOST_VERSION / 100'000 << '.' << BOOST_VERSION / 100 % 1000 << ", "
         << processor();
    return text.str();
}

void print_heading(std::ostream& out) {
    out << std::left << std::setw(name_width) << "row" << std::setw(unit_width) << "unit" << std::right
        << std::setw(number_width) << "sluice" << "  " << std::left << std::setw(other_width) << "against" << std::right
        << std::setw(number_width) << "cost" << std::setw(number_width) << "ratio" << "  target\n"
        << std::string(name_width + unit_width + 3 * number_width + other_width + 20, '-') << '\n';
}

void print(std::ostream& out, const Measured& row) {
    std::string name = row.name;
    std::string unit = row.unit;
    std::string ours = number(row.ours);
    const auto line = [&](const Comparison& comparison) {
        out << std::left << std::setw(name_width) << std::exchange(name, "") << std::setw(unit_width)
            << std::exchange(unit, "") << std::right << std::setw(number_width) << std::exchange(ours, "") << "  "
            << std::left << std::setw(other_width) << comparison.name << std::right << std::setw(number_width)
            << (comparison.cost ? number(*comparison.cost) : "") << std::setw(number_width)
            << describe_ratio(comparison);
        if (comparison.bound) {
            out << "  " << std::left << std::setw(10) << describe_bound(*comparison.bound)
                << (comparison.missed() ? "MISS" : "ok");
        }
        out << '\n';
    };
    if (row.comparisons.empty()) {
        line({"", std::nullopt, std::nullopt, std::nullopt});
    }
    for (const Comparison& comparison : row.comparisons) {
        line(comparison);
    }
    out << std::flush;
}

void write_json(std::ostream& out, const Settings& settings, const std::vector<Measured>& rows) {
    boost::json::array array;
    for (const Measured& row : rows) {
        boost::json::array comparisons;
        for (const Comparison& comparison : row.comparisons) {
            comparisons.push_back(to_json(comparison));
        }
        array.push_back({{"name", row.name},
                         {"unit", row.unit},
                         {"rounds", row.rounds},
                         {"sluice", row.ours},
                         {"against", std::move(comparisons)}});
    }
    out << boost::json::object{{"build", describe_build()}, {"quick", settings.quick}, {"rows", std::move(array)}}
        << '\n';
}

std::vector<std::string> missed_targets(const std::vector<Measured>& rows) {
    std::vector<std::string> missed;
    for (const Measured& row : rows) {
        for (const Comparison& comparison : row.comparisons) {
            if (comparison.missed()) {
                missed.push_back(row.name + ", against " + comparison.name + ": " + describe_ratio(comparison) +
                                 ", but the target is " + describe_bound(*comparison.bound));
            }
        }
    }
    return missed;
}

}  // namespace benchmark
