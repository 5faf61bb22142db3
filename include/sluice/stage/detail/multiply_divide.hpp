// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <cstdint>
#include <limits>

namespace sluice::detail {

struct Division {
    std::uint64_t quotient;
    std::uint64_t remainder;
};

// Returns (a * b + c) / divisor exactly, although the product may need 128 bits. If the quotient needs more than 64, it
// is the largest number, and the remainder 0. `divisor` is not 0.
//
// Small numbers take one multiplication and one division. Others are multiplied by halves; a product of more than 64
// bits is divided bit by bit, in 64 steps of shift and subtract. D. Knuth, "The Art of Computer Programming", volume 2,
// 4.3.1, algorithms M and D, the latter in base 2.
constexpr Division multiply_divide(std::uint64_t a, std::uint64_t b, std::uint64_t c, std::uint64_t divisor) noexcept {
    constexpr std::uint64_t half = 0xffff'ffff;
    if ((a | b | c) <= half) [[likely]] {
        const std::uint64_t sum = a * b + c;
        return {sum / divisor, sum % divisor};
    }
    const std::uint64_t bottom = (a & half) * (b & half);
    const std::uint64_t left = (a >> 32) * (b & half);
    const std::uint64_t middle = (bottom >> 32) + (left & half) + (a & half) * (b >> 32);
    std::uint64_t high = (left >> 32) + (middle >> 32) + (a >> 32) * (b >> 32);
    std::uint64_t low = (middle << 32 | (bottom & half)) + c;
    high += low < c ? 1 : 0;

    if (high == 0) {
        return {low / divisor, low % divisor};
    }
    if (high >= divisor) {
        return {std::numeric_limits<std::uint64_t>::max(), 0};
    }
    for (int bit = 0; bit < 64; ++bit) {  // `high` is the remainder so far; the quotient moves into `low`
        const bool carry = high >> 63 != 0;
        high = high << 1 | low >> 63;
        low <<= 1;
        if (carry || high >= divisor) {
            high -= divisor;
            ++low;
        }
    }
    return {low, high};
}

}  // namespace sluice::detail
