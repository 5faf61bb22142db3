// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/reason.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage_error.hpp>

#include <memory>
#include <stdexcept>
#include <string>
#include <utility>
#include <vector>

namespace sluice {

/// The error of a Fallback whose members have all failed or were skipped.
class FallbackError : public std::runtime_error {
public:
    /// Why one member did not serve the query.
    struct Cause {
        SharedString member;           ///< The name of its stage.
        Reason reason = Reason::none;  ///< Why its stage run failed. If it was skipped: `breaker_open`, or `deadline`.
        StageError error;              ///< Of its stage run; empty if it was skipped.

        bool skipped() const noexcept { return !error; }
    };

    /// @param causes One for each member, in their order.
    explicit FallbackError(std::vector<Cause> causes)
        : std::runtime_error(message(causes)), causes_(std::make_shared<const std::vector<Cause>>(std::move(causes))) {}

    /// One for each member, in their order.
    const std::vector<Cause>& causes() const noexcept { return *causes_; }

private:
    static std::string message(const std::vector<Cause>& causes) {
        std::string text = "all " + std::to_string(causes.size()) + " members failed";
        const char* separator = ": ";
        for (const Cause& cause : causes) {
            text += separator + cause.member.str() + ": " + message(cause);
            separator = "; ";
        }
        return text;
    }

    static std::string message(const Cause& cause) {
        if (!cause.skipped()) {
            return cause.error.message();
        }
        return cause.reason == Reason::breaker_open ? "skipped, since its circuit breaker was open"
                                                    : "skipped, since it was to pause for longer than the query had";
    }

    std::shared_ptr<const std::vector<Cause>> causes_;  // shared, so that a copy does not throw
};

}  // namespace sluice
