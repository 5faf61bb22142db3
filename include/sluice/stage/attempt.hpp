// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/rate.hpp>

#include <chrono>
#include <cstdint>
#include <optional>

namespace sluice {

/// One attempt of a stage run: what it is for, and what the provider says of it. A model function may take it as its
/// last parameter, an `Attempt&`, if it cannot be called without it:
///
/// @code
/// asio::awaitable<std::string> ask(std::string text, sluice::Attempt& attempt);
/// @endcode
///
/// @par Lifetime
/// It lives until the attempt has ended.
///
/// @par Thread safety
/// Unsafe: it belongs to the thread or strand of the stage.
class Attempt {
public:
    Attempt(const Attempt&) = delete;
    Attempt& operator=(const Attempt&) = delete;

    const SharedString& query_id() const noexcept { return stage_run_.query_id; }
    const SharedString& stage() const noexcept { return stage_run_.stage; }
    int number() const noexcept { return stage_run_.attempts; }  ///< From 1.

    /// The time until the attempt is cancelled, by the timeout of its stage or that of its query; zero if that has
    /// passed. Empty without a timeout.
    virtual std::optional<std::chrono::nanoseconds> time_left() const = 0;

    /// Says what the call has taken, as the provider reports it. It replaces the estimate when the attempt ends,
    /// however it ends: what was not used is given back to the rates of the endpoint, and what was used beyond the
    /// estimate is a debt that later calls wait for. The last report counts.
    /// @throws std::invalid_argument naming the number that is not from 0 to 10^15, and its value.
    virtual void used(const Cost& usage) = 0;

    /// Pauses the endpoint: the provider asks all callers to wait, although it serves this call. A Verdict with
    /// `retry_after` does the same if the call fails. At most 2 min.
    virtual void pause(std::chrono::nanoseconds duration) noexcept = 0;

    /// Says what the provider reports in headers: so much of a rate is left, and it is full again after `reset`. If
    /// nothing is left the endpoint is paused for that time, so that the next call is not refused.
    void remaining(std::int64_t amount, std::chrono::nanoseconds reset) noexcept {
        if (amount <= 0) {
            pause(reset);
        }
    }

protected:
    explicit Attempt(const StageResult<>& stage_run) noexcept : stage_run_(stage_run) {}
    ~Attempt() = default;

private:
    const StageResult<>& stage_run_;
};

}  // namespace sluice
