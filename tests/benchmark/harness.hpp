// SPDX-License-Identifier: BSL-1.0
// What a row of the table is, and how it is measured.
#pragma once

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

/// How much is measured.
struct Settings {
    int rounds = 9;
    bool quick = false;  // a smoke run: sizes so small that the numbers mean nothing

    /// A size, made small for a smoke run.
    std::size_t size(std::size_t full) const { return quick ? (full < 100 ? full : full / 100 + 10) : full; }
};

/// What a ratio, or a value, must be.
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

/// One way to do what a row is about.
struct Variant {
    std::string name;
    std::function<double()> measure;  // runs it once; its cost in the row's unit. Throws if it did not do its work.
    std::optional<Bound> bound{};     // of ours against this one
};

/// The cost of each variant of a row, all rounds put together.
class Costs {
public:
    void add(std::string name, double cost) { costs_.emplace_back(std::move(name), cost); }

    /// @throws std::out_of_range if there is no such variant.
    double at(const std::string& name) const;

private:
    std::vector<std::pair<std::string, double>> costs_;
};

/// What is worked out from the costs of a row.
struct Derived {
    std::string name;
    std::function<double(const Costs&)> value;
    std::optional<Bound> bound{};
};

struct Row {
    enum class Kind {
        time,        // the minimum of all rounds, and ratios of minima
        wall_clock,  // the median of three rounds, since it is not the thread's work that is measured but its waiting
        count        // the same in every round, so there is but one
    };

    std::string name;
    std::string unit;
    Variant ours;
    std::vector<Variant> others;  // the floor first
    std::vector<Derived> derived{};
    Kind kind = Kind::time;
    bool ratios = true;                // of ours to each other; where they say nothing, only what is derived is shown
    std::optional<int> most_rounds{};  // where one takes long
};

/// One line of the table: ours against another, or a derived value.
struct Comparison {
    std::string name;
    std::optional<double> cost;   // of the other one; a derived value has none
    std::optional<double> ratio;  // the way round that its bound wants it; or the derived value
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

/// Runs every variant of the row once per round, so that whatever else the computer does meets all of them.
Measured measure(const Row& row, const Settings& settings);

/// @throws std::runtime_error naming the variant, unless it did the work that it is measured by.
void require(bool done, const char* what);

/// The CPU time of the thread between each start() and stop(), added up. What other programs do to the wall clock is
/// not in it; what the kernel does for this thread is.
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

/// Hides from the optimiser what happens to `object`.
template <class T>
void keep(T& object) noexcept {
    asm volatile("" : : "r"(&object) : "memory");
}

}  // namespace benchmark
