// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/rate_meter.hpp>
#include <sluice/stage/detail/token_bucket.hpp>
#include <sluice/stage/detail/token_ledger.hpp>
#include <sluice/stage/rate.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <optional>
#include <utility>
#include <vector>

namespace sluice::detail {

// Limits may be as great as a number can be.
inline std::uint64_t saturating_sum(std::uint64_t a, std::uint64_t b) noexcept {
    return a > std::numeric_limits<std::uint64_t>::max() - b ? std::numeric_limits<std::uint64_t>::max() : a + b;
}

// Levels are from -10^18 to 10^15.
inline std::int64_t saturating_sum(std::int64_t a, std::int64_t b) noexcept {
    constexpr std::int64_t most = 2'000'000'000'000'000'000;
    return std::clamp(a + b, -most, most);
}

inline void add_state(std::optional<BreakerMetrics>& metrics, const BreakerStatus& status) {
    if (!metrics) {
        metrics.emplace();
    }
    switch (status.state) {
        case BreakerStatus::closed:
            ++(status.forced ? metrics->forced_closed : metrics->closed);
            break;
        case BreakerStatus::open:
            ++(status.forced ? metrics->forced_open : metrics->open);
            break;
        case BreakerStatus::half_open:
            ++metrics->half_open;
            break;
    }
}

// The periods of one rate, sorted by length and without doubles.
inline std::vector<RateMetrics::Period> periods_of(const RateMeter& meter, Rate::Dimension dimension,
                                                   std::chrono::nanoseconds now) {
    std::vector<RateMetrics::Period> periods;
    for (std::size_t i = 0; i != meter.periods(dimension); ++i) {
        const TokenBucket bucket = meter.bucket(dimension, i, now);
        periods.push_back({bucket.per(), bucket.level(), bucket.burst()});
    }
    const auto key = [](const RateMetrics::Period& period) { return std::pair(period.per, period.left); };
    std::ranges::sort(periods, {}, key);
    const auto doubles = std::ranges::unique(periods, {}, &RateMetrics::Period::per);
    periods.erase(doubles.begin(), doubles.end());
    return periods;
}

inline void add_periods(std::vector<RateMetrics::Period>& sums, const std::vector<RateMetrics::Period>& periods) {
    for (const RateMetrics::Period& period : periods) {
        const auto at = std::ranges::lower_bound(sums, period.per, {}, &RateMetrics::Period::per);
        if (at == sums.end() || at->per != period.per) {
            sums.insert(at, period);
        } else {
            at->left = saturating_sum(at->left, period.left);
            at->burst = saturating_sum(at->burst, period.burst);
        }
    }
}

// Adds the numbers that say what is the case now.
inline void add_present(EndpointMetrics& metrics, Line& line) {
    const std::chrono::nanoseconds now = line.now();
    metrics.limit = saturating_sum(metrics.limit, static_cast<std::uint64_t>(line.limit()));
    metrics.active += static_cast<std::uint64_t>(line.active());
    metrics.waiting += line.waiting();
    metrics.pause_left = std::max(metrics.pause_left, line.pause_left(now));
    if (line.breaker()) {
        add_state(metrics.breaker, line.breaker()->status(now));
    }
    for (std::size_t i = 0; i != metrics.rates.size(); ++i) {
        add_periods(metrics.rates[i].periods, periods_of(line.meter(), static_cast<Rate::Dimension>(i), now));
    }
}

// Adds accounts, of another RateMetrics or a TokenLedger.
inline void add_accounts(RateMetrics& metrics, const auto& accounts) noexcept {
    metrics.granted += accounts.granted;
    metrics.debt += accounts.debt;
    metrics.settled += accounts.settled;
    metrics.refunded += accounts.refunded;
    metrics.outstanding += accounts.outstanding;
}

inline void add_openings(std::optional<BreakerMetrics>& metrics, std::uint64_t openings) {
    if (!metrics) {
        metrics.emplace();
    }
    metrics->openings += openings;
}

// Adds the numbers that say what has happened.
inline void add_past(EndpointMetrics& metrics, const Line& line) {
    if (line.breaker()) {
        add_openings(metrics.breaker, line.breaker()->openings());
    }
    for (std::size_t i = 0; i != metrics.rates.size(); ++i) {
        add_accounts(metrics.rates[i], line.meter().ledger(static_cast<Rate::Dimension>(i)));
    }
}
inline void add_past(EndpointMetrics& metrics, const EndpointMetrics& destroyed) {
    if (destroyed.breaker) {
        add_openings(metrics.breaker, destroyed.breaker->openings);
    }
    for (std::size_t i = 0; i != metrics.rates.size(); ++i) {
        add_accounts(metrics.rates[i], destroyed.rates[i]);
    }
}

}  // namespace sluice::detail
