// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <cstdio>
#include <exception>

namespace sluice::detail {

// The address at which an object was constructed. g++ 12 makes bitwise copies of some temporaries in a full expression
// that contains a co_await, and destroys both: such a copy was never constructed, and its address tells.
class ConstructedAt {
public:
    ConstructedAt() noexcept : address_(this) {}

    ConstructedAt(const ConstructedAt&) = delete;
    ConstructedAt& operator=(const ConstructedAt&) = delete;

    bool is_bitwise_copy() const noexcept { return address_ != this; }

    // From here on this counts as constructed here.
    void reset() noexcept { address_ = this; }

    // Prints the sentence and ends the program, in every build mode.
    [[noreturn]] static void terminate(const char* sentence) noexcept {
        std::fputs(sentence, stderr);
        std::fputc('\n', stderr);
        std::terminate();
    }

private:
    const void* address_;
};

}  // namespace sluice::detail
