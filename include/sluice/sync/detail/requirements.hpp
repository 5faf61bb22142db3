// SPDX-License-Identifier: BSL-1.0
#pragma once

// Included first by every header that includes no other header of sluice. Including a file that does not exist ends the
// compilation, which would otherwise continue to a thousand errors.
#if !defined(__cpp_concepts) || !defined(__cpp_impl_coroutine)
#error "sluice needs C++20: compile with -std=c++20 or newer"
#include <sluice/needs_cxx20>
#endif
#if !defined(__cpp_exceptions)
#error "sluice needs exceptions: compile without -fno-exceptions"
#include <sluice/needs_exceptions>
#endif
