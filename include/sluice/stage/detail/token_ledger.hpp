// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/assert.hpp>

#include <cstdint>

namespace sluice::detail {

// The accounts of one dimension of a rate: nothing that was granted disappears. The sums wrap around after 2^64.
struct TokenLedger {
    std::uint64_t granted = 0;      // when calls began
    std::uint64_t debt = 0;         // used beyond what was granted
    std::uint64_t settled = 0;      // used
    std::uint64_t refunded = 0;     // granted, but not used
    std::uint64_t outstanding = 0;  // granted to calls that have not been settled

    constexpr void grant(std::int64_t tokens) noexcept {
        granted += static_cast<std::uint64_t>(tokens);
        outstanding += static_cast<std::uint64_t>(tokens);
    }

    constexpr void settle(std::int64_t tokens, std::int64_t used) noexcept {
        BOOST_ASSERT_MSG(outstanding >= static_cast<std::uint64_t>(tokens), "a charge must be settled only once");
        outstanding -= static_cast<std::uint64_t>(tokens);
        settled += static_cast<std::uint64_t>(used);
        if (used > tokens) {
            debt += static_cast<std::uint64_t>(used - tokens);
        } else {
            refunded += static_cast<std::uint64_t>(tokens - used);
        }
    }

    constexpr bool is_balanced() const noexcept { return granted + debt == settled + refunded + outstanding; }
};

}  // namespace sluice::detail
