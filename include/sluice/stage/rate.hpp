// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <stdexcept>
#include <string>
#include <type_traits>

namespace sluice {

/// How much may begin: an amount in each of up to four periods, which all apply at once.
///
/// @code
/// const sluice::Rate requests(500, 1min);
/// const sluice::Rate tokens = sluice::Rate(200'000, 1min, 50'000).also(10'000'000, 24h, 200'000);
/// @endcode
///
/// In any interval of length t, at most `burst + amount * t / per` begins, to the nanosecond. Whatever takes a Rate
/// rejects values that are out of range.
///
/// @par Thread safety
/// Distinct objects: safe.
class Rate {
public:
    /// The quantities that providers limit.
    enum class Dimension : std::uint8_t { requests, input_tokens, output_tokens };
    using enum Dimension;

    /// One limit of a Rate.
    struct Period {
        std::int64_t amount = 0;            ///< How much, from 1 to 10^15.
        std::chrono::nanoseconds per = {};  ///< In how long; more than zero.

        /// How much may begin at once after a rest, from 1 to 10^15. A call that costs more can never begin. Default,
        /// never less than 1 nor more than `amount`: of requests as many as in one second; of tokens as many as in one
        /// minute, since a single call may take most of them. For a day that is little, of both: set it.
        std::optional<std::int64_t> burst = std::nullopt;

        friend constexpr bool operator==(const Period&, const Period&) noexcept = default;
    };

    /// The largest number of periods.
    static constexpr std::size_t max_periods = 4;

    /// No limit.
    static const Rate unlimited;

    /// See Period.
    constexpr Rate(std::int64_t amount, std::chrono::nanoseconds per,
                   std::optional<std::int64_t> burst = std::nullopt) noexcept
        : periods_{{{amount, per, burst}}}, size_(1) {}

    /// Returns this rate with a further period.
    /// @throws std::invalid_argument if this would be the fifth.
    [[nodiscard]] constexpr Rate also(std::int64_t amount, std::chrono::nanoseconds per,
                                      std::optional<std::int64_t> burst = std::nullopt) const {
        if (size_ == max_periods) {
            throw std::invalid_argument("Rate: there must be at most 4 periods, got a fifth of " +
                                        std::to_string(amount) + " per " + std::to_string(per.count()) + " ns");
        }
        Rate extended = *this;
        extended.periods_[extended.size_++] = {amount, per, burst};
        return extended;
    }

    /// The limits, in the order in which they were given; none if the rate is unlimited.
    constexpr std::span<const Period> periods() const noexcept { return {periods_.data(), size_}; }

    friend constexpr bool operator==(const Rate&, const Rate&) noexcept = default;

private:
    constexpr Rate() noexcept = default;

    std::array<Period, max_periods> periods_ = {};
    std::size_t size_ = 0;
};
inline constexpr Rate Rate::unlimited = {};
static_assert(std::is_trivially_copyable_v<Rate> && std::is_trivially_destructible_v<Rate>);

/// The quantities that one call takes of its endpoint's rates: the estimate before it begins, or the usage that the
/// provider reports. Each is from 0 to 10^15.
struct Cost {
    std::int64_t requests = 1;
    std::int64_t input_tokens = 0;
    std::int64_t output_tokens = 0;

    friend constexpr bool operator==(const Cost&, const Cost&) noexcept = default;
};
static_assert(std::is_aggregate_v<Cost> && std::is_trivially_destructible_v<Cost>);

}  // namespace sluice
