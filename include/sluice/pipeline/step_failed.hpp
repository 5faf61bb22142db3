// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <cstdint>
#include <exception>

namespace sluice {

namespace detail {

template <class RunStateType, class Executor, bool throws, class Field, class StageRef, class T>
struct StepTarget;

}  // namespace detail

/// Thrown by a step of a Run if its stage run failed, or if the sink's save() has thrown after it: it ends the route,
/// and the query becomes a dead letter.
class StepFailed : public std::exception {
public:
    const char* what() const noexcept override { return "sluice::StepFailed: a step of the route failed"; }

    /// The index of its stage run in the results of the query.
    std::int32_t index() const noexcept { return index_; }

private:
    template <class, class, bool, class, class, class>
    friend struct detail::StepTarget;

    explicit StepFailed(std::int32_t index) noexcept : index_(index) {}

    std::int32_t index_;
};

}  // namespace sluice
