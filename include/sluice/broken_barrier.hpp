// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/requirements.hpp>

#include <stdexcept>

namespace sluice {

/// What the parties of a Barrier get when it breaks, or when they arrive at a broken one.
class BrokenBarrier : public std::runtime_error {
public:
    using std::runtime_error::runtime_error;
};

}  // namespace sluice
