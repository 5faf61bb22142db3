// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/retry.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/detail/require.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <optional>
#include <random>
#include <string>
#include <string_view>

namespace sluice::detail {

// Throws std::invalid_argument naming the option of `policy` that is out of range, and its value, if one is.
inline void require_valid(std::string_view owner, const RetryPolicy& policy) {
    const Backoff& backoff = policy.backoff;
    require(policy.max_retries >= 0, owner, "max_retries must not be negative", policy.max_retries);
    require(backoff.initial.count() >= 0, owner, "initial must not be negative", backoff.initial.count(), " ns");
    require(std::isfinite(backoff.multiplier) && backoff.multiplier >= 1, owner,
            "multiplier must be finite and at least 1", backoff.multiplier);
    require(policy.cap() >= backoff.initial, owner, "cap must be at least initial", policy.cap().count(), " ns");
    require(backoff.jitter >= 0 && backoff.jitter <= 1, owner, "jitter must be from 0 to 1", backoff.jitter);
}

// Returns a different number each time.
inline std::uint64_t random_seed() {
    std::random_device device;
    return (std::uint64_t{device()} << 32) | device();
}

// A retry that is to be made: what the error means, and the wait before the attempt.
struct Retry {
    Verdict verdict;
    std::chrono::nanoseconds delay;
};

// Decides after `attempts` attempts, the last of which ended with `error`: returns the retry, or nothing if there is to
// be none. If user code throws, `error` becomes a RetryPredicateError with the model's error nested in it.
// `get_verdict` is called only if there may be a retry.
template <class GetVerdict>
std::optional<Retry> decide_retry(const RetryPolicy& policy, int attempts, std::uint64_t stage_run,
                                  std::exception_ptr& error, const GetVerdict& get_verdict) {
    if (attempts > policy.max_retries) {
        return std::nullopt;
    }
    const char* asked = "verdict function";
    try {
        const Verdict verdict = get_verdict(error);
        asked = "retry predicate";
        if (!policy.should_retry(attempts, error, verdict)) {
            return std::nullopt;
        }
        return Retry{verdict, std::max(policy.delay(attempts, stage_run),
                                       verdict.retry_after.value_or(std::chrono::nanoseconds(0)))};
    } catch (...) {
        const StageError thrown(std::current_exception());
        try {
            std::rethrow_exception(error);
        } catch (...) {
            error = std::make_exception_ptr(
                RetryPredicateError(std::string("the ") + asked + " threw " + thrown.type() + ": " + thrown.message()));
        }
        return std::nullopt;
    }
}

}  // namespace sluice::detail
