// SPDX-License-Identifier: BSL-1.0
// Counts allocations. It replaces malloc() and its relatives in this program, which operator new goes through as well.
#pragma once

#include <cstddef>

namespace benchmark {

/// What is allocated between start() and stop(), whether by operator new, malloc() or aligned_alloc(), and by whom.
/// There is one count for the whole program: one gauge at a time, and one thread.
class AllocationGauge {
public:
    void start() noexcept;
    void stop() noexcept;

    /// How many blocks were allocated.
    std::size_t allocations() const noexcept { return allocations_; }

    /// How many more bytes than at the start were allocated at once, at most; with what malloc() rounds up.
    std::size_t peak_bytes() const noexcept { return peak_bytes_; }

private:
    std::size_t allocations_ = 0;
    std::size_t peak_bytes_ = 0;
};

}  // namespace benchmark
