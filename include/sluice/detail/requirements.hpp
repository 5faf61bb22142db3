// SPDX-License-Identifier: BSL-1.0
#pragma once

// Included first by whatever includes nothing else of sluice. The include of what is not there ends the compilation,
// which would go on to a thousand errors otherwise.
#if !defined(__cpp_concepts) || !defined(__cpp_impl_coroutine)
#error "sluice needs C++20: compile with -std=c++20 or newer"
#include <sluice/needs_cxx20>
#endif
#if !defined(__cpp_exceptions)
#error "sluice needs exceptions: compile without -fno-exceptions"
#include <sluice/needs_exceptions>
#endif
