// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/retry_budget.hpp>
#include <sluice/sync/detail/require.hpp>

#include <boost/assert.hpp>

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::detail {

// Throws std::invalid_argument naming the option that is out of range, and its value.
inline void require_valid(std::string_view owner, const RetryBudget& options) {
    const std::string where = std::string(owner) + ": retry_budget";
    require(options.ratio >= 0 && options.ratio <= 1, where, "ratio must be from 0 to 1", options.ratio);
    require(options.min_retries >= 0, where, "min_retries must not be negative", options.min_retries);
}

// The stage runs in work at an endpoint with a retry budget, and how many of them are retries.
class RetryBudgetState {
public:
    // `options` are valid.
    explicit RetryBudgetState(const RetryBudget& options) noexcept
        : millionths_(static_cast<std::uint64_t>(std::llround(options.ratio * 1e6))),
          min_retries_(static_cast<std::uint64_t>(options.min_retries)) {}

    // Stage runs refer to this.
    RetryBudgetState(const RetryBudgetState&) = delete;
    RetryBudgetState& operator=(const RetryBudgetState&) = delete;

    std::size_t retries() const noexcept { return retries_; }

private:
    friend class BudgetedRun;

    bool is_used_up() const noexcept { return retries_ >= std::max(min_retries_, millionths_ * in_work_ / 1'000'000); }

    const std::uint64_t millionths_;  // as a floating-point number, 0.29 of 100 would be less than 29
    const std::uint64_t min_retries_;
    std::size_t in_work_ = 0;
    std::size_t retries_ = 0;  // of those in work
};

// A stage run. It is in work, at an endpoint with a retry budget, from its construction to its destruction; so no path
// loses a retry. Lies in the frame of the coroutine that runs the stage.
class BudgetedRun {
public:
    // `budget` is null if there is none, and otherwise outlives this.
    explicit BudgetedRun(RetryBudgetState* budget) noexcept : budget_(budget) {
        if (budget_) {
            ++budget_->in_work_;
        }
    }
    ~BudgetedRun() {
        if (budget_) {
            end_retry();
            --budget_->in_work_;
        }
    }

    BudgetedRun(const BudgetedRun&) = delete;
    BudgetedRun& operator=(const BudgetedRun&) = delete;

    // Draws the retry that was decided on. Returns false if the budget is used up. @pre This is no retry.
    bool begin_retry() noexcept {
        BOOST_ASSERT(!is_retry_);
        if (!budget_) {
            return true;
        }
        if (budget_->is_used_up()) {
            return false;
        }
        ++budget_->retries_;
        is_retry_ = true;
        return true;
    }

    // An attempt has ended. If a retry was drawn for it, it is returned.
    void end_retry() noexcept {
        if (is_retry_) {
            --budget_->retries_;
            is_retry_ = false;
        }
    }

private:
    RetryBudgetState* const budget_;
    bool is_retry_ = false;
};

}  // namespace sluice::detail
