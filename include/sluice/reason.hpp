// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <cstdint>
#include <ostream>
#include <string_view>

namespace sluice {

/// Why a stage run failed, for programs; StageResult::error has the details for people. Set where the failure happens,
/// never guessed from the type of an exception: if the decision on a retry threw as well, the reason stays that of the
/// attempt, and the error is a RetryPredicateError.
///
/// The values do not change between versions. Later versions add others.
enum class Reason : std::uint8_t {
    none = 0,        ///< It did not fail.
    model = 1,       ///< The model function threw, or its cost().
    timeout = 2,     ///< The model function did not return within the timeout of an attempt.
    closed = 3,      ///< The endpoint was closed.
    missing = 4,     ///< A field of the record that the step reads was empty when the attempt was to begin.
    route = 5,       ///< The route threw something else than a failed step.
    checkpoint = 6,  ///< The step succeeded, and the sink's save() threw.
    too_costly =
        7,  ///< The attempt would have cost more than a burst of the endpoint's rates, so it could never begin.
    breaker_open = 8,   ///< The breaker of the endpoint was open, and the stage does not wait for that; see WhileOpen.
    deadline = 9,       ///< The timeout of the query was over, or would have been before anything else; see Query.
    overloaded = 10,    ///< The line of the endpoint was full, or the attempt had waited there for too long; see
                        ///< EndpointOptions::max_waiting.
    fallback = 11,      ///< Every member of a Fallback failed or was skipped; see FallbackError.
    not_accepted = 12,  ///< The model function returned a value that its Fallback did not accept.
};

/// Returns the name of the enumerator, such as `timeout`; `unknown` for any other value.
constexpr std::string_view to_string(Reason reason) noexcept {
    switch (reason) {
        case Reason::none:
            return "none";
        case Reason::model:
            return "model";
        case Reason::timeout:
            return "timeout";
        case Reason::closed:
            return "closed";
        case Reason::missing:
            return "missing";
        case Reason::route:
            return "route";
        case Reason::checkpoint:
            return "checkpoint";
        case Reason::too_costly:
            return "too_costly";
        case Reason::breaker_open:
            return "breaker_open";
        case Reason::deadline:
            return "deadline";
        case Reason::overloaded:
            return "overloaded";
        case Reason::fallback:
            return "fallback";
        case Reason::not_accepted:
            return "not_accepted";
    }
    return "unknown";
}

inline std::ostream& operator<<(std::ostream& out, Reason reason) { return out << to_string(reason); }

}  // namespace sluice
