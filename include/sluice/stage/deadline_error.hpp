// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/require.hpp>

#include <chrono>
#include <stdexcept>
#include <string>

namespace sluice {

/// The error of a stage run that ended since the timeout of its query was over; see Query::timeout. If an attempt had
/// failed before, its error is nested in this one (`std::nested_exception`).
class DeadlineError : public std::runtime_error {
public:
    /// @param timeout That of the query.
    explicit DeadlineError(std::chrono::nanoseconds timeout) : std::runtime_error(message(timeout)) {}

private:
    static std::string message(std::chrono::nanoseconds timeout) {
        const double milliseconds = std::chrono::duration<double, std::milli>(timeout).count();
        return "the query's timeout of " + detail::format_number(milliseconds) + " ms is over";
    }
};

}  // namespace sluice
