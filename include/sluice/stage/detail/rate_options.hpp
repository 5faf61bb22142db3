// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/multiply_divide.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/sync/detail/require.hpp>

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <string_view>

namespace sluice::detail {

// The largest amount, burst and cost.
inline constexpr std::int64_t most_tokens = 1'000'000'000'000'000;

struct RateDimension {
    const char* option;             // its name in options
    const char* unit;               // what it counts, for messages
    std::int64_t Cost::* cost;      // what a call takes of it
    std::chrono::nanoseconds rest;  // the default burst is as much as comes in this time
};

// In the order of Rate::Dimension.
inline constexpr std::array<RateDimension, 3> rate_dimensions = {
    {{"requests", "requests", &Cost::requests, std::chrono::seconds(1)},
     {"input_tokens", "input tokens", &Cost::input_tokens, std::chrono::minutes(1)},
     {"output_tokens", "output tokens", &Cost::output_tokens, std::chrono::minutes(1)}}};

constexpr const RateDimension& describe(Rate::Dimension dimension) noexcept {
    return rate_dimensions[static_cast<std::size_t>(dimension)];
}

// The burst of a valid period, or its default.
constexpr std::int64_t burst_of(Rate::Dimension dimension, const Rate::Period& period) noexcept {
    if (period.burst) {
        return *period.burst;
    }
    const auto amount = static_cast<std::uint64_t>(period.amount);
    const std::uint64_t rested = multiply_divide(amount, static_cast<std::uint64_t>(describe(dimension).rest.count()),
                                                 0, static_cast<std::uint64_t>(period.per.count()))
                                     .quotient;
    return static_cast<std::int64_t>(std::clamp<std::uint64_t>(rested, 1, amount));
}

// Throws std::invalid_argument naming the option and the value if a period of `rate` is out of range.
inline void require_valid(std::string_view owner, Rate::Dimension dimension, const Rate& rate) {
    std::size_t number = 0;
    for (const Rate::Period& period : rate.periods()) {
        const std::string where =
            std::string(owner) + ": " + describe(dimension).option + ", period " + std::to_string(++number);
        const std::int64_t burst = period.burst.value_or(1);
        require(period.amount >= 1 && period.amount <= most_tokens, where, "amount must be from 1 to 10^15",
                period.amount);
        require(period.per.count() > 0, where, "per must be positive", period.per.count(), " ns");
        require(burst >= 1 && burst <= most_tokens, where, "burst must be from 1 to 10^15", burst);
    }
}

// Whether a number of tokens may be part of a cost.
constexpr bool is_valid_cost(std::int64_t tokens) noexcept { return tokens >= 0 && tokens <= most_tokens; }
constexpr bool is_valid(const Cost& cost) noexcept {
    return std::ranges::all_of(rate_dimensions, [&](const auto& of) { return is_valid_cost(cost.*of.cost); });
}

// Throws std::invalid_argument naming the member and the value if one is out of range.
inline void require_valid(std::string_view owner, const Cost& cost) {
    for (const RateDimension& dimension : rate_dimensions) {
        const std::int64_t tokens = cost.*dimension.cost;
        if (!is_valid_cost(tokens)) {
            const std::string rule = std::string(dimension.option) + " of a cost must be from 0 to 10^15";
            require(false, owner, rule.c_str(), tokens);
        }
    }
}

}  // namespace sluice::detail
