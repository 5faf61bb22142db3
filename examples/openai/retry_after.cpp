// SPDX-License-Identifier: BSL-1.0
#include "retry_after.hpp"

#include <string_view>

namespace openai {

std::optional<std::chrono::nanoseconds> retry_after(const Headers& headers, std::chrono::system_clock::time_point now) {
    const auto positive = [](double seconds) { return seconds > 0 ? std::optional(time_of(seconds)) : std::nullopt; };
    if (const auto milliseconds = number_of(value_of(headers, "retry-after-ms"))) {
        return positive(*milliseconds / 1000);
    }
    const std::string_view text = value_of(headers, "retry-after");
    if (const auto seconds = number_of(text)) {
        return positive(*seconds);
    }
    const auto this_second = std::chrono::floor<std::chrono::seconds>(now);
    const auto date = date_of(text, this_second);
    if (!date) {
        return std::nullopt;
    }
    const auto answered = date_of(value_of(headers, "date"), this_second).value_or(this_second);
    return positive(std::chrono::duration<double>(*date - answered).count());
}

}  // namespace openai
