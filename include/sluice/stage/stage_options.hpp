// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/stage/retry.hpp>

#include <chrono>
#include <optional>
#include <type_traits>

namespace sluice {

/// The options of a Stage. Fields are only ever appended.
///
/// @code
/// const sluice::StageOptions options{.timeout = 30s, .retry = {.max_retries = 3}};
/// @endcode
struct StageOptions {
    /// For each attempt, from when it gets its slot; positive. Default: none.
    std::optional<std::chrono::nanoseconds> timeout = std::nullopt;
    RetryPolicy retry = {};        ///< Default: no retries.
    Observer* observer = nullptr;  ///< Observes every stage run, and must outlive them. Default: none.
};
static_assert(std::is_aggregate_v<StageOptions> && std::is_trivially_destructible_v<StageOptions>);

}  // namespace sluice
