// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/result.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/rate_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/sync/detail/clock.hpp>

#include <algorithm>
#include <chrono>
#include <optional>

namespace sluice::detail {

// The Attempt of a stage whose timer is a T.
template <class T>
class AttemptOf final : public Attempt {
public:
    AttemptOf(const StageResult<>& stage_run, Line& line, std::optional<std::chrono::nanoseconds> timeout,
              typename T::time_point started) noexcept
        : Attempt(stage_run), line_(line), timeout_(timeout), started_(started) {}

    std::optional<std::chrono::nanoseconds> time_left() const override {
        if (!timeout_) {
            return std::nullopt;
        }
        const std::chrono::nanoseconds past = now<T>(line_.context()) - started_;
        return std::max(*timeout_ - past, std::chrono::nanoseconds(0));
    }

    void used(const Cost& usage) override {
        require_valid("Attempt::used", usage);
        usage_ = usage;
    }

    void pause(std::chrono::nanoseconds duration) noexcept override { line_.pause_as_asked(duration); }

    const std::optional<Cost>& usage() const noexcept { return usage_; }

private:
    Line& line_;
    std::optional<std::chrono::nanoseconds> timeout_;
    typename T::time_point started_;
    std::optional<Cost> usage_;
};

// That of a model function that takes none.
struct NoAttempt {};

}  // namespace sluice::detail
