// SPDX-License-Identifier: BSL-1.0
// The rows of the table, and how they are measured.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

/// The amount to measure.
struct Settings {
    int rounds = 9;
    bool quick = false;  // a smoke run: sizes so small that the numbers are meaningless

    /// Returns the size `full`, or a small one in a smoke run.
    std::size_t size(std::size_t full) const { return quick ? (full < 100 ? full : full / 100 + 10) : full; }
};

/// A bound on a ratio or a value.
struct Bound {
    enum class Kind {
        at_most,      // ours / other <= limit; or the value itself
        times_faster  // other / ours >= limit
    };
    Kind kind;
    double limit;
};

inline Bound at_most(double limit) { return {Bound::Kind::at_most, limit}; }
inline Bound times_faster(double limit) { return {Bound::Kind::times_faster, limit}; }

/// One way to do the work of a row.
struct Variant {
    std::string name;
    std::function<double()>
        measure;  // runs it once and returns its cost in the row's unit; throws if it did not do its work
    std::optional<Bound> bound{};  // on ours against this one
};

/// The cost of each variant of a row, over all rounds.
class Costs {
public:
    void add(std::string name, double cost) { costs_.emplace_back(std::move(name), cost); }

    /// @throws std::out_of_range if there is no such variant.
    double at(const std::string& name) const;

private:
    std::vector<std::pair<std::string, double>> costs_;
};

/// A value derived from the costs of a row.
struct Derived {
    std::string name;
    std::function<double(const Costs&)> value;
    std::optional<Bound> bound{};
};

struct Row {
    enum class Kind {
        time,        // the minimum of all rounds, and ratios of minima
        wall_clock,  // the median of three rounds, since waiting is measured and not work
        count        // the same in every round, so there is only one
    };

    std::string name;
    std::string unit;
    Variant ours;
    std::vector<Variant> others;  // the floor first
    std::vector<Derived> derived{};
    Kind kind = Kind::time;
    bool ratios = true;                // shows the ratio of ours to each other one; derived values are always shown
    std::optional<int> most_rounds{};  // if a round takes long
};

/// One line of the table: ours against another, or a derived value.
struct Comparison {
    std::string name;
    std::optional<double> cost;   // of the other one; a derived value has none
    std::optional<double> ratio;  // in the direction of its bound; or the derived value
    std::optional<Bound> bound;

    bool missed() const;
};

struct Measured {
    std::string name;
    std::string unit;
    std::string ours_name;
    double ours;
    int rounds;
    std::vector<Comparison> comparisons;
};

/// Runs every variant of the row once per round, so that other load on the computer affects all of them.
Measured measure(const Row& row, const Settings& settings);

/// @throws std::runtime_error with `what` unless `done`: a variant must do the work that it is measured by.
void require(bool done, const char* what);

/// Adds up the CPU time of the thread from each start() to the next stop(). That includes the work of the kernel for
/// this thread, and no other program.
class StopWatch {
public:
    void start() noexcept;
    void stop() noexcept;

    /// Nanoseconds per operation.
    double per(std::size_t operations) const noexcept { return time_ / static_cast<double>(operations); }

private:
    double started_ = 0;
    double time_ = 0;
};

/// Keeps the optimiser from knowing what happens to `object`.
template <class T>
void keep(T& object) noexcept {
    asm volatile("" : : "r"(&object) : "memory");
}

}  // namespace benchmark
