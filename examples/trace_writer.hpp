// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "counted.hpp"
#include "timeline.hpp"

#include <chrono>
#include <cstddef>
#include <cstdio>
#include <ostream>
#include <string>
#include <string_view>

namespace support {

namespace detail {

// A JSON string. UTF-8 is left as it is.
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

// Microseconds with three decimals.
inline std::string microseconds(std::chrono::nanoseconds time) {
    std::string digits = std::to_string(time.count());
    if (digits.size() < 4) {
        digits.insert(0, 4 - digits.size(), '0');
    }
    return digits.insert(digits.size() - 3, 1, '.');
}

}  // namespace detail

/// Writes a timeline in the Trace Event Format, which Perfetto (https://ui.perfetto.dev) and chrome://tracing open.
/// Each stage is a process, with a thread for each slot and a counter of the queries that wait.
inline void write_trace(std::ostream& out, const Timeline& timeline) {
    using detail::json;
    using detail::microseconds;
    const auto& stages = timeline.stages();
    // Different for all slots, and from the id of any process, whose thread a viewer may take for the main thread.
    const auto thread = [&](std::size_t stage, std::size_t slot) {
        std::size_t id = stages.size() + 1 + slot;
        for (std::size_t i = 0; i != stage; ++i) {
            id += stages[i].slots;
        }
        return id;
    };
    // Begins an event; what is written next belongs to it.
    const char* separator = "\n";
    const auto event = [&](const char* phase, std::size_t stage, std::size_t slot,
                           const std::string& name) -> std::ostream& {
        out << separator << R"({"ph":")" << phase << R"(","pid":)" << stage + 1 << R"(,"tid":)" << thread(stage, slot)
            << R"(,"name":)" << json(name);
        separator = "},\n";
        return out;
    };

    out << R"({"displayTimeUnit":"ms","traceEvents":[)";
    for (std::size_t i = 0; i != stages.size(); ++i) {
        const std::string title = stages[i].name + " (" + counted(stages[i].slots, "slot") + ')';
        event("M", i, 0, "process_name") << R"(,"args":{"name":)" << json(title) << '}';
        event("M", i, 0, "process_sort_index") << R"(,"args":{"sort_index":)" << i << '}';
        for (std::size_t slot = 0; slot != stages[i].slots; ++slot) {
            event("M", i, slot, "thread_name") << R"(,"args":{"name":"slot )" << slot + 1 << R"("})";
            event("M", i, slot, "thread_sort_index") << R"(,"args":{"sort_index":)" << slot << '}';
        }
        for (const auto& [at, waiting] : stages[i].queue) {
            event("C", i, 0, "waiting") << R"(,"ts":)" << microseconds(at) << R"(,"args":{"queries":)" << waiting
                                        << '}';
        }
    }
    for (const Timeline::Attempt& attempt : timeline.attempts()) {
        constexpr std::string_view colours[] = {"good", "bad", "terrible", "grey"};  // named by chrome://tracing
        const std::string ending(name(attempt.ending));
        const bool succeeded = attempt.ending == Timeline::Ending::succeeded;
        const std::string args = R"(,"args":{"query":)" + json(attempt.query.str()) + R"(,"attempt":)" +
                                 std::to_string(attempt.number) + R"(,"ending":)" + json(ending) +
                                 (attempt.error.empty() ? "" : R"(,"error":)" + json(attempt.error)) + '}';
        event("X", attempt.stage, attempt.slot, attempt.query.str() + (succeeded ? "" : " (" + ending + ')'))
            << R"(,"cat":"attempt","ts":)" << microseconds(attempt.begin) << R"(,"dur":)"
            << microseconds(attempt.end - attempt.begin) << R"(,"cname":")" << colours[static_cast<int>(attempt.ending)]
            << '"' << args;
        if (!succeeded) {
            event("i", attempt.stage, attempt.slot, ending)
                << R"(,"cat":"attempt","s":"t","ts":)" << microseconds(attempt.end) << args;
        }
    }
    for (const Timeline::DeadLetter& letter : timeline.dead_letters()) {
        event("i", letter.stage, 0, "dead letter " + letter.query.str())
            << R"(,"cat":"dead letter","s":"p","ts":)" << microseconds(letter.at) << R"(,"args":{"query":)"
            << json(letter.query.str()) << R"(,"error":)" << json(letter.error) << '}';
    }
    out << (*separator == '}' ? "}\n]}\n" : "]}\n");
}

}  // namespace support
