// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/require.hpp>

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstdint>
#include <exception>
#include <functional>
#include <optional>
#include <random>
#include <stdexcept>
#include <utility>

namespace sluice {

/// The wait before a retry: `initial * multiplier^(retry - 1)`, but at most `cap`, less a random part of up to `jitter`
/// times that.
struct Backoff {
    std::chrono::nanoseconds initial = std::chrono::milliseconds(100);  ///< Before the first retry; not negative.
    double multiplier = 2;                                              ///< At least 1.
    std::optional<std::chrono::nanoseconds> cap =
        std::nullopt;     ///< At least `initial`. Default: 30 s, or `initial` if that is more.
    double jitter = 0.5;  ///< From 0 (no randomness) to 1 (any wait down to none).

    /// The same seed produces the same delays. Default: a random seed for each RetryPolicy and each Stage, so that
    /// clients that lose their provider at the same time do not retry at the same time. On virtual time a stage has the
    /// same default seed in every execution of the program.
    std::optional<std::uint64_t> seed = std::nullopt;
};

/// The error of a query whose RetryPolicy::Predicate threw. Its message says what was thrown; the model function's own
/// error is nested in it.
class RetryPredicateError : public std::runtime_error, public std::nested_exception {
public:
    using std::runtime_error::runtime_error;
};

/// Decides whether and when a failed attempt is retried. A value: its const functions change nothing.
///
/// @par Thread safety
/// Const functions may be called concurrently if the predicate may.
class RetryPolicy {
public:
    /// Whether to retry an attempt that ended with this exception, which is never null. If the predicate throws, the
    /// attempt is not retried, and the query's error is a RetryPredicateError.
    using Predicate = std::function<bool(const std::exception_ptr&)>;

    RetryPolicy() noexcept = default;

    /// @param max_retries The number of attempts after the first; not negative.
    /// @param backoff The waits between attempts.
    /// @param retry_if Which exceptions to retry; if empty, all.
    /// @throws std::invalid_argument naming the parameter that is out of range and its value.
    explicit RetryPolicy(int max_retries, Backoff backoff = {}, Predicate retry_if = {})
        : max_retries_(max_retries), backoff_(backoff), retry_if_(std::move(retry_if)) {
        constexpr std::chrono::nanoseconds usual_cap = std::chrono::seconds(30);
        cap_ = backoff.cap.value_or(std::max(usual_cap, backoff.initial));
        seed_ = backoff.seed ? *backoff.seed : random_seed();
        const auto require = [](bool holds, const char* rule, auto value) {
            detail::require(holds, "RetryPolicy", rule, value);
        };
        require(max_retries >= 0, "max_retries must not be negative", max_retries);
        require(backoff.initial.count() >= 0, "initial must not be negative (ns)", backoff.initial.count());
        require(std::isfinite(backoff.multiplier) && backoff.multiplier >= 1,
                "multiplier must be finite and at least 1", backoff.multiplier);
        require(cap_ >= backoff.initial, "cap must be at least initial (ns)", cap_.count());
        require(backoff.jitter >= 0 && backoff.jitter <= 1, "jitter must be from 0 to 1", backoff.jitter);
    }

    /// Whether to make another attempt after `attempts` attempts, the last of which ended with `error`.
    bool should_retry(int attempts, const std::exception_ptr& error) const {
        return attempts <= max_retries_ && (!retry_if_ || retry_if_(error));
    }

    /// Returns the wait before a retry, from zero to the cap. A pure function of its arguments and the settings.
    ///
    /// Capped exponential backoff with jitter: M. Brooker, "Exponential Backoff And Jitter", AWS Architecture Blog,
    /// 2015.
    ///
    /// @param retry The number of the retry, from 1.
    /// @param stage_run Selects the random numbers: queries that share a policy have different ones, so that they do
    /// not retry in step.
    std::chrono::nanoseconds delay(int retry, std::uint64_t stage_run = 0) const noexcept {
        const auto initial = static_cast<double>(backoff_.initial.count());
        const auto cap = static_cast<double>(cap_.count());
        if (backoff_.initial.count() == 0) {
            return std::chrono::nanoseconds(0);
        }
        const double full = initial * std::pow(backoff_.multiplier, retry - 1);  // may be infinite, but not NaN
        if (backoff_.jitter == 0) {
            return full < cap ? std::chrono::nanoseconds(static_cast<std::int64_t>(full)) : cap_;
        }
        const double wait = std::fmin(full, cap) * (1 - backoff_.jitter * random(retry, stage_run));
        return wait < cap ? std::chrono::nanoseconds(static_cast<std::int64_t>(wait)) : cap_;
    }

    int max_retries() const noexcept { return max_retries_; }
    const Backoff& backoff() const noexcept { return backoff_; }

    /// Returns the same policy with this seed, unless the Backoff has one.
    RetryPolicy with_default_seed(std::uint64_t seed) const {
        RetryPolicy policy = *this;
        if (!backoff_.seed) {
            policy.seed_ = seed;
        }
        return policy;
    }

    /// Returns a different seed each time.
    static std::uint64_t random_seed() {
        std::random_device device;
        return (std::uint64_t{device()} << 32) | device();
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
        const std::uint64_t bits = mix(mix(mix(seed_) ^ stage_run) ^ static_cast<std::uint64_t>(retry));
        return static_cast<double>(bits >> 11) * 0x1p-53;
    }

    int max_retries_ = 0;
    Backoff backoff_;
    std::chrono::nanoseconds cap_{};
    std::uint64_t seed_ = 0;
    Predicate retry_if_;
};

/// Returns a RetryPolicy::Predicate that retries only exceptions of the given types and of types derived from them.
/// Nested exceptions count too, and so does the first of the exceptions in an `asio::multiple_exceptions`.
template <class... Exceptions>
    requires(sizeof...(Exceptions) > 0)
RetryPolicy::Predicate retry_on() {
    return [](const std::exception_ptr& thrown) {
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
    };
}

}  // namespace sluice
