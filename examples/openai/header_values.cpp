// SPDX-License-Identifier: BSL-1.0
#include "header_values.hpp"

#include <algorithm>
#include <array>
#include <charconv>
#include <cmath>
#include <cstddef>
#include <system_error>

namespace openai {

namespace {

using std::chrono::nanoseconds;

// Reads a number at the beginning of `text`, and removes it.
std::optional<double> take_number(std::string_view& text) noexcept {
    // By hand, since libc++ 19 has no std::from_chars for it.
    const auto is_digit = [](char c) { return '0' <= c && c <= '9'; };
    constexpr int most_decimals = 15;  // the others change nothing
    double number = 0;
    double scale = 1;
    int decimals = -1;  // after a point
    std::size_t digits = 0;
    std::size_t read = 0;
    for (; read != text.size() && (is_digit(text[read]) || (text[read] == '.' && decimals < 0)); ++read) {
        if (text[read] == '.') {
            decimals = 0;
            continue;
        }
        ++digits;
        if (decimals < most_decimals) {
            number = number * 10 + (text[read] - '0');
            if (decimals >= 0) {
                ++decimals;
                scale *= 10;
            }
        }
    }
    if (digits == 0 || !std::isfinite(number)) {
        return std::nullopt;
    }
    text.remove_prefix(read);
    return number / scale;
}

// Removes a unit at the beginning of `text`, and returns how many seconds it is.
std::optional<double> take_unit(std::string_view& text) noexcept {
    struct Unit {
        std::string_view name;
        double seconds;
    };
    // The longer ones come first.
    constexpr Unit units[] = {{"ms", 1e-3}, {"us", 1e-6}, {"\xC2\xB5s", 1e-6}, {"ns", 1e-9},
                              {"d", 86400}, {"h", 3600},  {"m", 60},           {"s", 1}};
    for (const auto& [name, seconds] : units) {
        if (text.starts_with(name)) {
            text.remove_prefix(name.size());
            return seconds;
        }
    }
    return std::nullopt;
}

std::optional<int> whole_number(std::string_view digits) noexcept {
    int number = 0;
    const auto [end, error] = std::from_chars(digits.data(), digits.data() + digits.size(), number);
    return error == std::errc() && end == digits.data() + digits.size() ? std::optional(number) : std::nullopt;
}

std::optional<int> month_of(std::string_view name) noexcept {
    constexpr std::string_view months[] = {"Jan", "Feb", "Mar", "Apr", "May", "Jun",
                                           "Jul", "Aug", "Sep", "Oct", "Nov", "Dec"};
    const auto* const found = std::ranges::find(months, name);
    return found == std::end(months) ? std::nullopt : std::optional(static_cast<int>(found - months) + 1);
}

std::optional<int> year_of(std::string_view digits, std::chrono::sys_seconds now) noexcept {
    const auto year = whole_number(digits);
    if (!year || digits.size() == 4) {
        return year;
    }
    if (digits.size() != 2) {
        return std::nullopt;
    }
    const int this_year = int{std::chrono::year_month_day(std::chrono::floor<std::chrono::days>(now)).year()};
    const int in_this_century = this_year - this_year % 100 + *year;
    return in_this_century > this_year + 50 ? in_this_century - 100 : in_this_century;
}

}  // namespace

std::string_view value_of(const Headers& headers, std::string_view name) {
    const auto found = headers.find(name);
    if (found == headers.end()) {
        return {};
    }
    const std::string_view value = found->value();
    const std::size_t begin = value.find_first_not_of(" \t");
    return begin == std::string_view::npos ? std::string_view()
                                           : value.substr(begin, value.find_last_not_of(" \t") - begin + 1);
}

std::optional<double> number_of(std::string_view text) noexcept {
    const auto number = take_number(text);
    return text.empty() ? number : std::nullopt;
}

nanoseconds time_of(double seconds) noexcept {
    const std::chrono::duration<double> most = longest_time;
    return std::chrono::round<nanoseconds>(std::min(std::chrono::duration<double>(seconds), most));
}

std::optional<nanoseconds> duration_of(std::string_view text) noexcept {
    double sum = 0;
    if (const auto seconds = number_of(text)) {
        sum = *seconds;
    } else {
        do {
            const auto number = take_number(text);
            const auto unit = number ? take_unit(text) : std::nullopt;
            if (!unit) {
                return std::nullopt;
            }
            sum += *number * *unit;
        } while (!text.empty());
    }
    return time_of(sum);
}

std::optional<std::chrono::sys_seconds> date_of(std::string_view text, std::chrono::sys_seconds now) noexcept {
    std::array<std::string_view, 8> words;
    std::size_t count = 0;
    while (true) {
        text.remove_prefix(std::min(text.find_first_not_of(" ,-:"), text.size()));
        if (text.empty()) {
            break;
        }
        if (count == words.size()) {
            return std::nullopt;
        }
        words[count] = text.substr(0, text.find_first_of(" ,-:"));
        text.remove_prefix(words[count++].size());
    }
    // The day's name, day, month, year, time, GMT; or the day's name, month, day, time, year.
    const bool with_zone = count == 8 && words[7] == "GMT";
    if (!with_zone && count != 7) {
        return std::nullopt;
    }
    const std::size_t time = with_zone ? 4 : 3;
    const auto day = whole_number(words[with_zone ? 1 : 2]);
    const auto month = month_of(words[with_zone ? 2 : 1]);
    const auto year = year_of(words[with_zone ? 3 : 6], now);
    const auto hour = whole_number(words[time]);
    const auto minute = whole_number(words[time + 1]);
    const auto second = whole_number(words[time + 2]);
    if (!day || !month || !year || !hour || !minute || !second || *day > 31 || *hour > 23 || *minute > 59 ||
        *second > 60) {
        return std::nullopt;
    }
    const std::chrono::year_month_day date(std::chrono::year{*year}, std::chrono::month(static_cast<unsigned>(*month)),
                                           std::chrono::day(static_cast<unsigned>(*day)));
    if (!date.ok()) {
        return std::nullopt;
    }
    return std::chrono::sys_days(date) + std::chrono::hours(*hour) + std::chrono::minutes(*minute) +
           std::chrono::seconds(*second);
}

}  // namespace openai
