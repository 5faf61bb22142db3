// SPDX-License-Identifier: BSL-1.0
#include "rates.hpp"

#include <charconv>
#include <chrono>
#include <cstdint>
#include <optional>
#include <string_view>
#include <system_error>

namespace openai {

namespace {

struct RateHeaders {
    std::string_view limit;
    std::string_view remaining;
    std::string_view reset;
};

constexpr RateHeaders rates[] = {
    {"x-ratelimit-limit-requests", "x-ratelimit-remaining-requests", "x-ratelimit-reset-requests"},
    {"x-ratelimit-limit-tokens", "x-ratelimit-remaining-tokens", "x-ratelimit-reset-tokens"}};

// What is longer may be a date in seconds, as some servers send. If it is meant, the next answer says so, as an error:
// that is better than to hold all calls for hours without a word.
constexpr std::chrono::hours longest_pause(1);

std::optional<std::int64_t> amount_of(std::string_view text) noexcept {
    std::int64_t amount = 0;
    const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), amount);
    const bool whole = error == std::errc() && end == text.data() + text.size();
    return whole && amount >= 0 ? std::optional(amount) : std::nullopt;
}

}  // namespace

void report_rates(const Headers& headers, sluice::Attempt& attempt) {
    for (const auto& names : rates) {
        const auto remaining = amount_of(value_of(headers, names.remaining));
        if (!remaining) {
            continue;
        }
        const std::string_view limit = value_of(headers, names.limit);
        const auto reset = duration_of(value_of(headers, names.reset));
        const bool limited = limit.empty() || amount_of(limit).value_or(0) > 0;
        if (limited && reset && *reset > std::chrono::nanoseconds(0) && *reset <= longest_pause) {
            attempt.remaining(*remaining, *reset);
        }
    }
}

}  // namespace openai
