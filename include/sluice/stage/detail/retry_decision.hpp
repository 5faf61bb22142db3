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
    require(policy.max_throttled >= 0, owner, "max_throttled must not be negative", policy.max_throttled);
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

// No templates: g++ 12 does not compile these enumerators in one.
inline bool is_throttled(const Verdict& verdict) noexcept { return verdict.kind == Verdict::throttled; }

inline bool is_invalid(const Verdict& verdict) noexcept { return verdict.kind == Verdict::invalid; }

// Whether the provider asks all callers to wait.
inline bool asks_for_pause(const Verdict& verdict) noexcept {
    return verdict.retry_after && (verdict.kind == Verdict::throttled || verdict.kind == Verdict::overloaded);
}

// Returns a RetryPredicateError with `error` nested in it: what was `asked` about it threw the exception that is being
// handled.
inline std::exception_ptr predicate_error(const char* asked, const std::exception_ptr& error) {
    const StageError thrown(std::current_exception());
    try {
        std::rethrow_exception(error);
    } catch (...) {
        return std::make_exception_ptr(
            RetryPredicateError(std::string("the ") + asked + " threw " + thrown.type() + ": " + thrown.message()));
    }
}

// The failed attempts of one run, which it counts, and the decision on a further one.
class RetryDecision {
public:
    // Decides after an attempt that ended with `error`: returns the wait before the next one, or nothing if there is to
    // be none. If user code throws, `error` becomes a RetryPredicateError with the model's error nested in it.
    // A `spared` attempt uses up no retry, and the breaker holds the line until the next.
    // `get_verdict` is called only if there may be a retry. A `plain` error is not a throttled one.
    template <class GetVerdict>
    std::optional<std::chrono::nanoseconds> after(const RetryPolicy& policy, std::uint64_t stage_run,
                                                  std::exception_ptr& error, bool spared, bool plain,
                                                  const GetVerdict& get_verdict) {
        if (!spared && failed_ >= policy.max_retries && (plain || throttled_ >= policy.max_throttled)) {
            return std::nullopt;
        }
        const char* asked = "verdict function";
        try {
            const Verdict verdict = get_verdict(error);
            asked = "retry predicate";
            if (spared) {
                return policy.retry_if && !policy.retry_if(error) ? std::nullopt
                                                                  : std::optional(std::chrono::nanoseconds(0));
            }
            const bool throttled = is_throttled(verdict) && throttled_ < policy.max_throttled;
            int& count = throttled ? throttled_ : failed_;
            if (!(throttled ? !policy.retry_if || policy.retry_if(error)
                            : policy.should_retry(failed_ + 1, error, verdict))) {
                return std::nullopt;
            }
            ++count;
            return std::max(policy.delay(count, stage_run), verdict.retry_after.value_or(std::chrono::nanoseconds(0)));
        } catch (...) {
            error = predicate_error(asked, error);
            return std::nullopt;
        }
    }

    // The retries that were decided on so far. Throttled and spared attempts do not count.
    int retries() const noexcept { return failed_; }

private:
    int failed_ = 0;     // and were repeated, or are to be
    int throttled_ = 0;  // the same
};

}  // namespace sluice::detail
