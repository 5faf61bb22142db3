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
    // `due` is when the attempt is cancelled, if it is.
    AttemptOf(const StageResult<>& stage_run, Line& line, std::optional<typename T::time_point> due) noexcept
        : Attempt(stage_run), line_(line), due_(due) {}

    std::optional<std::chrono::nanoseconds> time_left() const override {
        if (!due_) {
            return std::nullopt;
        }
        return std::max<std::chrono::nanoseconds>(*due_ - now<T>(line_.context()), std::chrono::nanoseconds(0));
    }

    void used(const Cost& usage) override {
        require_valid("Attempt::used", usage);
        usage_ = usage;
    }

    void pause(std::chrono::nanoseconds duration) noexcept override { line_.pause_as_asked(duration); }

    const std::optional<Cost>& usage() const noexcept { return usage_; }

private:
    Line& line_;
    std::optional<typename T::time_point> due_;
    std::optional<Cost> usage_;
};

// That of a model function that takes none.
struct NoAttempt {};

}  // namespace sluice::detail
