// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/task_group.hpp>

namespace sluice::detail {

// The body of the group that a batch or a stream runs in, and its children.
template <class Crew>
struct Begin {
    Crew& crew;

    auto operator()(TaskGroup& group) const { return crew.begin(group); }
};

template <class Crew>
struct Work {
    Crew& crew;
    TaskGroup& group;

    auto operator()() const { return crew.work(group); }
};

}  // namespace sluice::detail
