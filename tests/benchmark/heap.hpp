// SPDX-License-Identifier: BSL-1.0
// Keeps the history of the heap out of the measurements.
#pragma once

namespace benchmark {

/// From here on, freed memory is kept for the next round. Otherwise every measurement would include the kernel's
/// clearing of pages. That is most of the time of writing a large result, is the same for all variants, and would hide
/// their differences.
void keep_memory();

/// Joins free memory into large blocks. Otherwise 100,000 coroutines cost up to three times as much if the variant
/// before has fragmented the heap.
void tidy_heap();

}  // namespace benchmark
