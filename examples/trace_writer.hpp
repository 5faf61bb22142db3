// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "timeline.hpp"

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <ostream>
#include <string>
#include <string_view>

namespace support {

namespace detail {

// A string of JSON; UTF-8 goes through as it is.
inline std::string json(std::string_view text) {
    std::string result = "\"";
    for (const char c : text) {
        if (c == '"' || c == '\\') {
            (result += '\\') += c;
        } else if (static_cast<unsigned char>(c) < 0x20) {
            char escaped[8];
            std::snprintf(escaped, sizeof escaped, "\\u%04x", static_cast<unsigned>(c));
            result += escaped;
        } else {
            result += c;
        }
    }
    return result + '"';
}

// Microseconds, to the nanosecond.
inline std::string microseconds(std::chrono::nanoseconds time) {
    std::string digits = std::to_string(time.count());
    if (digits.size() < 4) {
        digits.insert(0, 4 - digits.size(), '0');
    }
    return digits.insert(digits.size() - 3, 1, '.');
}

}  // namespace detail

/// Writes a timeline in the Trace Event Format, which Perfetto (https://ui.perfetto.dev) and chrome://tracing open: a
/// process for each stage, in it a thread for each slot and a counter of those who wait.
inline void write_trace(std::ostream& out, const Timeline& timeline) {
    using detail::json;
    using detail::microseconds;
    out << "{\"displayTimeUnit\":\"ms\",\"traceEvents\":[";
    const char* separator = "\n";
    // Begins an event; what is written after it belongs to the event.
    const auto event = [&](const char* phase, std::size_t stage, const std::string& name) -> std::ostream& {
        out << separator << "{\"ph\":\"" << phase << "\",\"pid\":" << stage + 1 << ",\"name\":" << name;
        separator = "},\n";
        return out;
    };

    const auto& stages = timeline.stages();
    for (std::size_t i = 0; i != stages.size(); ++i) {
        const std::string title = json(stages[i].name + " (" + std::to_string(stages[i].slots) + " slots)");
        event("M", i, "\"process_name\"") << ",\"args\":{\"name\":" << title << '}';
        event("M", i, "\"process_sort_index\"") << ",\"args\":{\"sort_index\":" << i << '}';
        for (std::size_t slot = 1; slot <= stages[i].slots; ++slot) {
            event("M", i, "\"thread_name\"") << ",\"tid\":" << slot << ",\"args\":{\"name\":\"slot " << slot << "\"}";
            event("M", i, "\"thread_sort_index\"")
                << ",\"tid\":" << slot << ",\"args\":{\"sort_index\":" << slot << '}';
        }
        for (const auto& [at, waiting] : stages[i].queue) {
            event("C", i, "\"waiting\"") << ",\"ts\":" << microseconds(at) << ",\"args\":{\"queries\":" << waiting
                                         << '}';
        }
    }
    for (const Timeline::Attempt& attempt : timeline.attempts()) {
        constexpr std::string_view colours[] = {"good", "bad", "terrible", "grey"};  // of chrome://tracing
        const std::string ending(name(attempt.ending));
        const std::string args = ",\"args\":{\"query\":" + json(attempt.query.str()) +
                                 ",\"attempt\":" + std::to_string(attempt.number) + ",\"ending\":" + json(ending) +
                                 (attempt.error.empty() ? "" : ",\"error\":" + json(attempt.error)) + '}';
        const bool succeeded = attempt.ending == Timeline::Ending::succeeded;
        event("X", attempt.stage, json(attempt.query.str() + (succeeded ? "" : " (" + ending + ')')))
            << ",\"cat\":\"attempt\",\"tid\":" << attempt.slot + 1 << ",\"ts\":" << microseconds(attempt.begin)
            << ",\"dur\":" << microseconds(attempt.end - attempt.begin) << ",\"cname\":\""
            << colours[static_cast<int>(attempt.ending)] << '"' << args;
        if (!succeeded) {
            event("i", attempt.stage, json(ending)) << ",\"cat\":\"attempt\",\"s\":\"t\",\"tid\":" << attempt.slot + 1
                                                    << ",\"ts\":" << microseconds(attempt.end) << args;
        }
    }
    for (const Timeline::DeadLetter& letter : timeline.dead_letters()) {
        event("i", letter.stage, json("dead letter " + letter.query.str()))
            << ",\"cat\":\"dead letter\",\"s\":\"p\",\"tid\":0,\"ts\":" << microseconds(letter.at)
            << ",\"args\":{\"query\":" << json(letter.query.str()) << ",\"error\":" << json(letter.error) << '}';
    }
    out << (*separator == '}' ? "}\n]}\n" : "]}\n");
}

}  // namespace support
