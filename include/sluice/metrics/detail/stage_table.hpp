// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/shared_string.hpp>

#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <unordered_map>

namespace sluice::detail {

// The metrics of each stage, by its name.
//
// The copies of a name share their text, so a stage that has been found before is found by the address of that,
// without a look at it. This keeps the text, so that no other comes to its address.
class StageTable {
public:
    StageMetrics& operator[](const SharedString& name) {
        const auto found = known_.find(&name.str());
        return found != known_.end() ? *found->second.metrics : add(name);
    }

    const std::map<SharedString, StageMetrics>& by_name() const noexcept { return by_name_; }

private:
    struct Known {
        SharedString name;
        StageMetrics* metrics;
    };

    // A program may make any number of stages of one name, such as a pipeline for each request.
    static constexpr std::size_t most_known = 1000;

    StageMetrics& add(const SharedString& name) {
        StageMetrics& metrics = by_name_[name];
        metrics.stage = name;
        if (known_.size() == most_known) {
            known_.clear();
        }
        known_.try_emplace(&name.str(), Known{name, &metrics});
        return metrics;
    }

    std::map<SharedString, StageMetrics> by_name_;
    std::unordered_map<const std::string*, Known> known_;
};

}  // namespace sluice::detail
