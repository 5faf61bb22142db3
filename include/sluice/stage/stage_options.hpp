// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/stage/retry.hpp>

#include <chrono>
#include <cstdint>
#include <optional>
#include <type_traits>

namespace sluice {

/// What a query does while the breaker of its endpoint is open.
///
/// One that waits does so until probes have shown that the provider is up again, or until Query::timeout is over. If
/// every call fails for another reason, that is never: without a timeout, close the endpoint, force the breaker closed,
/// or cancel the query.
enum class WhileOpen : std::uint8_t {
    hold_unless_exhausted,  ///< It waits in the line; but fails if a call has found the account exhausted when the
                            ///< breaker opened, or since then, or if a Fallback has another member behind this stage.
    hold,                   ///< It waits in the line.
    fail                    ///< It fails at once, with Reason::breaker_open, even if it waits already; or when its
                            ///< backoff has ended.
};

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
    WhileOpen while_open = WhileOpen::hold_unless_exhausted;  ///< Whether a query waits for an open breaker.
};
static_assert(std::is_aggregate_v<StageOptions> && std::is_trivially_destructible_v<StageOptions>);

}  // namespace sluice
