// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/require.hpp>

#include <chrono>
#include <stdexcept>

namespace sluice {

/// The error of a stage run that ended since the timeout of its query was over; see Query::timeout. If an attempt had
/// failed before, its error is nested in this one (`std::nested_exception`).
class DeadlineError : public std::runtime_error {
public:
    /// @param timeout That of the query.
    explicit DeadlineError(std::chrono::nanoseconds timeout)
        : std::runtime_error("the query's timeout of " + detail::in_milliseconds(timeout) + " is over") {}

    /// The same, for a query that is refused before that since it could not be done in time; see
    /// EndpointOptions::shed_late.
    /// @param timeout That of the query.
    /// @param call_time The time that a call takes.
    DeadlineError(std::chrono::nanoseconds timeout, std::chrono::nanoseconds call_time)
        : std::runtime_error("too little is left of the query's timeout of " + detail::in_milliseconds(timeout) +
                             ": a call takes " + detail::in_milliseconds(call_time)) {}
};

}  // namespace sluice
