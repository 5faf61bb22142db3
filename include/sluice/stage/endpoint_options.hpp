// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/breaker.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry_budget.hpp>
#include <sluice/stage/verdict.hpp>

#include <cstddef>
#include <optional>
#include <type_traits>

namespace sluice {

class EndpointObserver;

/// The options of an Endpoint. Fields are only ever appended.
///
/// @code
/// const sluice::EndpointOptions options{.limit = 8, .requests = sluice::Rate(500, 1min)};
/// @endcode
struct EndpointOptions {
    std::ptrdiff_t limit = 0;               ///< How many attempts may run at once; at least 1.
    VerdictFunction verdict = &verdict_of;  ///< What an error of the model means; not null.

    /// How many attempts may begin in a time. Default: any number.
    Rate requests = Rate::unlimited;

    /// How many tokens the attempts may take in a time, as the model function estimates them; see Stage. Default: any
    /// number.
    Rate input_tokens = Rate::unlimited;
    Rate output_tokens = Rate::unlimited;

    /// Stops the attempts while the provider is down. Default: none.
    std::optional<BreakerOptions> breaker = std::nullopt;

    /// How many of the stage runs may be retries at once. Default: any number.
    std::optional<RetryBudget> retry_budget = std::nullopt;
    /// Is told of pauses and of what the breaker does; see EndpointObserver, also for how long it must live. Default:
    /// none.
    EndpointObserver* observer = nullptr;
};
static_assert(std::is_aggregate_v<EndpointOptions> && std::is_trivially_destructible_v<EndpointOptions>);

}  // namespace sluice
