// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>

namespace sluice::detail {

// How long the calls of an endpoint take: the median of the last 64 that succeeded.
//
// A median, since a few very long answers must not make every query look late; of the last calls, since a provider may
// become slower; and none before there are 20, since that of a few is chance.
class CallTimes {
public:
    using Time = std::chrono::nanoseconds;

    // A call has succeeded. O(64).
    void add(Time time) noexcept {
        times_[next_] = time;
        next_ = (next_ + 1) % times_.size();
        count_ = std::min(count_ + 1, times_.size());
        if (count_ >= enough) {
            auto sorted = times_;
            const auto middle = sorted.begin() + static_cast<std::ptrdiff_t>((count_ - 1) / 2);
            std::nth_element(sorted.begin(), middle, sorted.begin() + static_cast<std::ptrdiff_t>(count_));
            median_ = *middle;
        }
    }

    // At least half of the calls took no longer: the lower of the two in the middle, if their number is even. 0 as long
    // as there are too few. O(1).
    Time median() const noexcept { return median_; }

private:
    static constexpr std::size_t enough = 20;

    std::array<Time, 64> times_{};
    std::size_t next_ = 0;
    std::size_t count_ = 0;
    Time median_{0};
};

}  // namespace sluice::detail
