// SPDX-License-Identifier: BSL-1.0
#include "report.hpp"

#include <boost/config.hpp>
#include <boost/json.hpp>
#include <boost/version.hpp>

#include <algorithm>
#include <fstream>
#include <iomanip>
#include <sstream>
#include <utility>

namespace benchmark {

namespace {

constexpr int number_width = 10;

// Three significant digits, and no exponent.
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
        object["limit"] = comparison.bound->limit;
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

Table::Table(std::ostream& out, const std::vector<Row>& rows) : out_(out) {
    const auto widen = [](int& width, const std::string& text) {
        width = std::max(width, static_cast<int>(text.size()) + 2);
    };
    for (const Row& row : rows) {
        widen(name_width_, row.name);
        widen(unit_width_, row.unit);
        for (const Variant& other : row.others) {
            widen(other_width_, other.name);
        }
        for (const Derived& derived : row.derived) {
            widen(other_width_, derived.name);
        }
    }
    std::ostringstream heading;
    heading << std::left << std::setw(name_width_) << "row" << std::setw(unit_width_) << "unit" << std::right
            << std::setw(number_width) << "sluice" << "  " << std::left << std::setw(other_width_) << "against"
            << std::right << std::setw(number_width) << "cost" << std::setw(number_width) << "ratio" << "  target";
    out_ << heading.str() << '\n' << std::string(heading.str().size() + 8, '-') << '\n';
}

void Table::print(const Measured& row) {
    // Only the first line of a row has its name, its unit and our cost.
    std::string name = row.name;
    std::string unit = row.unit;
    std::string ours = number(row.ours);
    for (const Comparison& comparison : row.comparisons) {
        std::ostringstream line;
        line << std::left << std::setw(name_width_) << std::exchange(name, "") << std::setw(unit_width_)
             << std::exchange(unit, "") << std::right << std::setw(number_width) << std::exchange(ours, "") << "  "
             << std::left << std::setw(other_width_) << comparison.name << std::right << std::setw(number_width)
             << (comparison.cost ? number(*comparison.cost) : "") << std::setw(number_width)
             << describe_ratio(comparison);
        if (comparison.bound) {
            line << "  " << std::left << std::setw(8) << describe_bound(*comparison.bound)
                 << (comparison.missed() ? "MISS" : "ok");
        }
        const std::string text = line.str();
        out_ << text.substr(0, text.find_last_not_of(' ') + 1) << '\n';
    }
    out_ << std::flush;
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
