// SPDX-License-Identifier: BSL-1.0
// For glibc, whose own functions remain available under other names.
#include "allocation_gauge.hpp"

#include <errno.h>
#include <malloc.h>
#include <stdlib.h>

#include <algorithm>
#include <cstddef>

extern "C" {
void* __libc_malloc(std::size_t size);
void* __libc_calloc(std::size_t count, std::size_t size);
void* __libc_realloc(void* block, std::size_t size);
void* __libc_memalign(std::size_t alignment, std::size_t size);
void __libc_free(void* block);
}

namespace {

// Costs a branch while it is off. Only the thread that measures writes it, and no other runs while it counts.
struct {
    bool on = false;
    std::size_t allocations = 0;
    std::ptrdiff_t bytes = 0;
    std::ptrdiff_t peak = 0;
} heap;

void* count(void* block) noexcept {
    if (heap.on && block) {
        ++heap.allocations;
        heap.bytes += static_cast<std::ptrdiff_t>(malloc_usable_size(block));
        heap.peak = std::max(heap.peak, heap.bytes);
    }
    return block;
}

void discount(void* block) noexcept {
    if (heap.on && block) {
        heap.bytes -= static_cast<std::ptrdiff_t>(malloc_usable_size(block));
    }
}

}  // namespace

extern "C" {

void* malloc(std::size_t size) noexcept { return count(__libc_malloc(size)); }

void* calloc(std::size_t number, std::size_t size) noexcept { return count(__libc_calloc(number, size)); }

void* realloc(void* block, std::size_t size) noexcept {
    discount(block);
    return count(__libc_realloc(block, size));
}

void* memalign(std::size_t alignment, std::size_t size) noexcept { return count(__libc_memalign(alignment, size)); }

void* aligned_alloc(std::size_t alignment, std::size_t size) noexcept {
    return count(__libc_memalign(alignment, size));
}

int posix_memalign(void** block, std::size_t alignment, std::size_t size) noexcept {
    *block = count(__libc_memalign(alignment, size));
    return *block ? 0 : ENOMEM;
}

void free(void* block) noexcept {
    discount(block);
    __libc_free(block);
}

}  // extern "C"

namespace benchmark {

void AllocationGauge::start() noexcept {
    heap = {};
    heap.on = true;
}

void AllocationGauge::stop() noexcept {
    heap.on = false;
    allocations_ = heap.allocations;
    peak_bytes_ = static_cast<std::size_t>(heap.peak);
}

}  // namespace benchmark
