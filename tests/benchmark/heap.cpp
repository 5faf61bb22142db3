// SPDX-License-Identifier: BSL-1.0
// For glibc.
#include "heap.hpp"

#include <malloc.h>

#include <array>
#include <cstddef>
#include <cstdlib>
#include <limits>

namespace benchmark {

namespace {

// A thread's cache of freed blocks holds seven of each size up to 1032 bytes. They may lie anywhere, and keep the free
// memory around them from being joined.
constexpr std::size_t sizes = 64;
constexpr std::size_t blocks_per_size = 7;

using Blocks = std::array<void*, sizes * blocks_per_size>;

Blocks allocate_of_every_size() {
    Blocks blocks{};
    for (std::size_t i = 0; i < blocks.size(); ++i) {
        blocks[i] = std::malloc(24 + 16 * (i / blocks_per_size));
    }
    return blocks;
}

void release(const Blocks& blocks) {
    for (void* block : blocks) {
        std::free(block);
    }
}

}  // namespace

void keep_memory() {
    mallopt(M_MMAP_MAX, 0);
    mallopt(M_TRIM_THRESHOLD, std::numeric_limits<int>::max());
}

void tidy_heap() {
    const Blocks from_cache = allocate_of_every_size();
    const Blocks side_by_side = allocate_of_every_size();
    release(side_by_side);  // these fill the cache, so that the others return to the heap
    release(from_cache);
    std::free(std::malloc(std::size_t{1} << 16));  // for a large block, the heap first joins the small ones
}

}  // namespace benchmark
