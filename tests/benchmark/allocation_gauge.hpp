// SPDX-License-Identifier: BSL-1.0
// Counts allocations. It replaces malloc() and its relatives in this program, including for operator new.
#pragma once

#include <cstddef>

namespace benchmark {

/// Counts what any code allocates between start() and stop() by operator new, malloc() or aligned_alloc(). The count is
/// global, so there may be only one gauge at a time, and one thread.
class AllocationGauge {
public:
    void start() noexcept;
    void stop() noexcept;

    /// The number of blocks that were allocated.
    std::size_t allocations() const noexcept { return allocations_; }

    /// The peak of the allocated bytes, less those at the start. Includes the rounding of malloc().
    std::size_t peak_bytes() const noexcept { return peak_bytes_; }

private:
    std::size_t allocations_ = 0;
    std::size_t peak_bytes_ = 0;
};

}  // namespace benchmark
