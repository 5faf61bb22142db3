// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/exceptions.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <type_traits>

namespace sluice {

/// The wait before a retry: `initial * multiplier^(retry - 1)`, but at most `cap`, less a random part of up to `jitter`
/// times that. If the Verdict on the error asks for a longer wait, that replaces it, whatever the cap.
struct Backoff {
    std::chrono::nanoseconds initial = std::chrono::milliseconds(100);  ///< Before the first retry; not negative.
    double multiplier = 2;                                              ///< At least 1.
    std::optional<std::chrono::nanoseconds> cap =
        std::nullopt;     ///< At least `initial`. Default: 30 s, or `initial` if that is more.
    double jitter = 0.5;  ///< From 0 (no randomness) to 1 (any wait down to none).

    /// The same seed produces the same delays. Default: a random seed for each Stage and each with_retry(), so that
    /// clients that lose their provider at the same time do not retry at the same time. With a timer whose time depends
    /// on the execution context, as virtual time does, the default seed is the same in every execution of the program.
    std::optional<std::uint64_t> seed = std::nullopt;
};
static_assert(std::is_aggregate_v<Backoff> && std::is_trivially_destructible_v<Backoff>);

/// The error after a RetryPolicy::retry_if or VerdictFunction threw. Its message says what was thrown; the
/// model function's own error is nested in it.
class RetryPredicateError : public std::runtime_error, public std::nested_exception {
public:
    using std::runtime_error::runtime_error;
};

/// Decides whether and when a failed attempt is retried. Stage and with_retry() reject values that are out of range. An
/// endpoint may allow fewer retries: see RetryBudget.
struct RetryPolicy {
    int max_retries = 0;   ///< The number of attempts after the first; not negative.
    Backoff backoff = {};  ///< The waits between attempts.

    /// Which errors to retry; it is never passed a null pointer. Default: those whose Verdict is retryable. If it
    /// throws, the attempt is not retried, and the error is a RetryPredicateError.
    bool (*retry_if)(const std::exception_ptr& error) = nullptr;

    /// The number of further attempts after those that the provider refused since it was sent too much: see
    /// Verdict::throttled. They count apart, since a rate limit passes by waiting; after them, such an attempt
    /// counts as any other failure. Not negative.
    int max_throttled = 8;

    /// Whether to make another attempt after `attempts` attempts, the last of which ended with `error`.
    /// Throttled attempts do not count.
    bool should_retry(int attempts, const std::exception_ptr& error, const Verdict& verdict = {}) const {
        return attempts <= max_retries && (retry_if ? retry_if(error) : verdict.retryable());
    }

    /// Returns the backoff before a retry, from zero to the cap. A pure function of its arguments and the settings.
    ///
    /// Capped exponential backoff with jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    /// 2015.
    ///
    /// @param retry The number of the retry, from 1.
    /// @param stage_run Selects the random numbers: queries that share a policy have different ones, so that they do
    /// not retry in step.
    std::chrono::nanoseconds delay(int retry, std::uint64_t stage_run = 0) const noexcept {
        const auto initial = static_cast<double>(backoff.initial.count());
        const auto longest = static_cast<double>(cap().count());
        if (backoff.initial.count() == 0) {
            return std::chrono::nanoseconds(0);
        }
        const double full = initial * std::pow(backoff.multiplier, retry - 1);  // may be infinite, but not NaN
        if (backoff.jitter == 0) {
            return full < longest ? std::chrono::nanoseconds(static_cast<std::int64_t>(full)) : cap();
        }
        const double wait = std::fmin(full, longest) * (1 - backoff.jitter * random(retry, stage_run));
        return wait < longest ? std::chrono::nanoseconds(static_cast<std::int64_t>(wait)) : cap();
    }

    /// The longest backoff.
    std::chrono::nanoseconds cap() const noexcept {
        constexpr std::chrono::nanoseconds usual = std::chrono::seconds(30);
        return backoff.cap.value_or(std::max(usual, backoff.initial));
    }

private:
    // The finaliser of SplitMix64: G. Steele, D. Lea, C. Flood, "Fast splittable pseudorandom number generators", 2014.
    static std::uint64_t mix(std::uint64_t x) noexcept {
        x += 0x9e3779b97f4a7c15;
        x = (x ^ (x >> 30)) * 0xbf58476d1ce4e5b9;
        x = (x ^ (x >> 27)) * 0x94d049bb133111eb;
        return x ^ (x >> 31);
    }

    // Uniform in [0, 1).
    double random(int retry, std::uint64_t stage_run) const noexcept {
        const std::uint64_t bits =
            mix(mix(mix(backoff.seed.value_or(0)) ^ stage_run) ^ static_cast<std::uint64_t>(retry));
        return static_cast<double>(bits >> 11) * 0x1p-53;
    }
};
static_assert(std::is_aggregate_v<RetryPolicy> && std::is_trivially_destructible_v<RetryPolicy>);

/// A RetryPolicy::retry_if that retries only exceptions of the given types and of types derived from them. Nested
/// exceptions count too, and so does the first of the exceptions in an `asio::multiple_exceptions`.
///
/// @code
/// const sluice::RetryPolicy policy{.max_retries = 2, .retry_if = sluice::retry_on<sluice::TimeoutError>};
/// @endcode
template <class... Exceptions>
    requires(sizeof...(Exceptions) > 0)
bool retry_on(const std::exception_ptr& thrown) {
    return detail::any_of_chain(thrown, [](const std::exception_ptr& error) {
        const auto is = [&]<class Exception>() {
            try {
                std::rethrow_exception(error);
            } catch (const Exception&) {
                return true;
            } catch (...) {
                return false;
            }
        };
        return (is.template operator()<Exceptions>() || ...);
    });
}

}  // namespace sluice
