// SPDX-License-Identifier: BSL-1.0
#include "harness.hpp"

#include "heap.hpp"

#include <time.h>

#include <algorithm>
#include <stdexcept>

namespace benchmark {

namespace {

double thread_time() noexcept {
    timespec now{};
    clock_gettime(CLOCK_THREAD_CPUTIME_ID, &now);
    return static_cast<double>(now.tv_sec) * 1e9 + static_cast<double>(now.tv_nsec);
}

int rounds_of(const Row& row, const Settings& settings) {
    switch (row.kind) {
        case Row::Kind::time:
            return std::min(settings.rounds, row.most_rounds.value_or(settings.rounds));
        case Row::Kind::wall_clock:
            return std::min(settings.rounds, 3);
        case Row::Kind::count:
            return 1;
    }
    return 1;
}

double reduce(Row::Kind kind, std::vector<double> costs) {
    std::sort(costs.begin(), costs.end());
    return kind == Row::Kind::wall_clock ? costs[costs.size() / 2] : costs.front();
}

}  // namespace

double Costs::at(const std::string& name) const {
    for (const auto& [variant, cost] : costs_) {
        if (variant == name) {
            return cost;
        }
    }
    throw std::out_of_range("no variant '" + name + "'");
}

bool Comparison::missed() const {
    if (!bound || !ratio) {
        return false;
    }
    return bound->kind == Bound::Kind::at_most ? !(*ratio <= bound->limit) : !(*ratio >= bound->limit);
}

Measured measure(const Row& row, const Settings& settings) {
    std::vector<const Variant*> variants{&row.ours};
    for (const Variant& other : row.others) {
        variants.push_back(&other);
    }
    const int rounds = rounds_of(row, settings);
    std::vector<std::vector<double>> samples(variants.size());
    for (int round = 0; round < rounds; ++round) {
        for (std::size_t i = 0; i < variants.size(); ++i) {
            // Each round begins with another variant, so that none always follows the same one.
            const std::size_t which = (i + static_cast<std::size_t>(round)) % variants.size();
            tidy_heap();
            samples[which].push_back(variants[which]->measure());
        }
    }

    Costs costs;
    for (std::size_t i = 0; i < variants.size(); ++i) {
        costs.add(variants[i]->name, reduce(row.kind, samples[i]));
    }
    Measured measured{row.name, row.unit, row.ours.name, costs.at(row.ours.name), rounds, {}};
    for (const Variant& other : row.others) {
        const double cost = costs.at(other.name);
        std::optional<double> ratio;
        if (row.ratios) {
            const bool speed = other.bound && other.bound->kind == Bound::Kind::times_faster;
            ratio = speed ? cost / measured.ours : measured.ours / cost;
        }
        measured.comparisons.push_back({other.name, cost, ratio, other.bound});
    }
    for (const Derived& derived : row.derived) {
        measured.comparisons.push_back({derived.name, std::nullopt, derived.value(costs), derived.bound});
    }
    return measured;
}

void require(bool done, const char* what) {
    if (!done) {
        throw std::runtime_error(std::string("a variant did not do its work: ") + what);
    }
}

void StopWatch::start() noexcept { started_ = thread_time(); }
void StopWatch::stop() noexcept { time_ += thread_time() - started_; }

}  // namespace benchmark
