// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <type_traits>

namespace sluice {

/// A budget of retries that the stages of an endpoint share, so that retries cannot multiply the load of a provider
/// that fails: of the stage runs in work at the endpoint, at most `max(min_retries, ratio * in work)` may be retries at
/// once, rounded down. Fields are only ever appended.
///
/// @code
/// const sluice::EndpointOptions options{.limit = 8, .retry_budget = sluice::RetryBudget{.ratio = 0.1}};
/// @endcode
///
/// A stage run is in work from when it first enters the line of the endpoint until it ends: while it waits, while its
/// model runs, and in backoff. It is a retry from the decision to retry until the attempt that follows has ended, or
/// the run was cancelled before. So a retry in backoff counts: many cannot wait and then begin together.
///
/// If the budget is used up when a retry is to be decided, there is none: the stage run fails at once, with the error
/// and the Reason of its attempt, and StageResult::retries_withheld is true. When fewer stage runs are in work, the
/// limit is lower for the next decision; retries already decided are still made.
///
/// An attempt after a throttled one draws nothing, up to RetryPolicy::max_throttled times, nor does one after an
/// attempt that failed in an outage and uses up no retry: the endpoint itself holds these back.
///
/// The budget counts, and reads no clock: the same events lead to the same decisions. Each takes O(1). Sources: the
/// retry budgets of Envoy, whose rule and defaults these are, and of failsafe-go, both of concurrent retries; that
/// retries in backoff count is the lesson of envoyproxy/envoy#30205.
struct RetryBudget {
    /// The share of retries among the stage runs in work; from 0 to 1, rounded to millionths. With 1 there is no limit,
    /// since no stage run is more than one retry.
    double ratio = 0.2;

    /// The number of retries that are allowed however few stage runs are in work; not negative. If both are 0, nothing
    /// is retried but what a provider has throttled, or what an outage spares.
    int min_retries = 3;
};
static_assert(std::is_aggregate_v<RetryBudget> && std::is_trivially_destructible_v<RetryBudget>);

}  // namespace sluice
