// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/result.hpp>

#include <chrono>
#include <unordered_map>
#include <utility>
#include <vector>

namespace sluice::detail {

// The times of the stage runs that are retried, up to their last retry: a StageResult has only their sums over all
// attempts. Those whose context was destroyed stay, and another may come to the address of such a one: so only a
// stage run with a retry is to be looked up. Allocates only if there are more at once than ever before.
class RetriedRuns {
public:
    struct Times {
        std::chrono::nanoseconds queue_time{};
        std::chrono::nanoseconds latency{};
    };

    void keep(const StageResult<>& run) {
        const Times times{run.queue_time, run.latency};
        if (const auto found = times_.find(&run); found != times_.end()) {
            found->second = times;
        } else if (spare_.empty()) {
            times_.emplace(&run, times);
        } else {
            spare_.back().key() = &run;
            spare_.back().mapped() = times;
            times_.insert(std::move(spare_.back()));
            spare_.pop_back();
        }
    }

    Times of(const StageResult<>& run) const noexcept {
        const auto found = times_.find(&run);
        return found != times_.end() ? found->second : Times();
    }

    void forget(const StageResult<>& run) {
        if (auto node = times_.extract(&run)) {
            spare_.push_back(std::move(node));
        }
    }

private:
    using Map = std::unordered_map<const StageResult<>*, Times>;

    Map times_;
    std::vector<Map::node_type> spare_;
};

}  // namespace sluice::detail
