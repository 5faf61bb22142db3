// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/requirements.hpp>

#include <cstdio>
#include <exception>

namespace sluice::detail {

// Ends the program, in every build mode, with a sentence that says why it could not go on.
[[noreturn]] inline void terminate_with(const char* sentence) noexcept {
    std::fputs(sentence, stderr);
    std::fputc('\n', stderr);
    std::terminate();
}

}  // namespace sluice::detail
