// SPDX-License-Identifier: BSL-1.0
// Keeps what the heap went through before out of what is measured.
#pragma once

namespace benchmark {

/// From here on, memory that was freed is kept for the next round. Else each would be measured with the kernel's
/// clearing of pages in it, which is the greater part of writing a large result, the same for all, and would hide what
/// they differ in.
void keep_memory();

/// Joins free memory into large blocks. Else 100,000 coroutines cost up to three times as much, or not, as whoever ran
/// before has left the heap in pieces, or not.
void tidy_heap();

}  // namespace benchmark
