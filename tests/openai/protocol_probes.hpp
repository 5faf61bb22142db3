// SPDX-License-Identifier: BSL-1.0
// What the tests and the fuzzer of the protocol have in common.
#pragma once

#include "openai/protocol.hpp"

#include <sluice/result.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <functional>
#include <initializer_list>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace test {

/// Returns the ModelError that `call` throws.
/// @throws std::logic_error if it returns.
template <class Call>
sluice::ModelError model_error_of(Call call) {
    try {
        call();
    } catch (const sluice::ModelError& error) {
        return error;
    }
    throw std::logic_error("no error was thrown");
}

inline openai::Headers headers_of(std::initializer_list<std::pair<std::string_view, std::string_view>> list) {
    openai::Headers headers;
    for (const auto& [name, value] : list) {
        headers.insert(name, value);
    }
    return headers;
}

/// An attempt that notes for how long its endpoint is to be paused.
class RecordingAttempt : sluice::StageResult<>, public sluice::Attempt {
public:
    RecordingAttempt() : sluice::Attempt(static_cast<const sluice::StageResult<>&>(*this)) {}

    std::optional<std::chrono::nanoseconds> time_left() const override { return std::nullopt; }
    void used(const sluice::Cost& usage) override { usages.push_back(usage); }
    void pause(std::chrono::nanoseconds duration) noexcept override { pauses.push_back(duration); }

    std::vector<sluice::Cost> usages;
    std::vector<std::chrono::nanoseconds> pauses;
};

/// All that can be seen of a streamed answer.
struct StreamOutcome {
    std::string pieces;  ///< What `on_piece` was given, with a line end after each.
    std::size_t delivered = 0;
    bool done = false;
    std::optional<openai::ChatAnswer> answer = std::nullopt;
    std::string error;  ///< Message, verdict, status and code.

    bool operator==(const StreamOutcome& other) const {
        const auto parts = [](const StreamOutcome& it) {
            const bool answered = it.answer.has_value();
            return std::tuple(
                it.pieces, it.delivered, it.done, it.error, answered, answered ? it.answer->text : std::string(),
                answered ? it.answer->finish_reason : std::string(), answered ? it.answer->usage : std::nullopt);
        };
        return parts(*this) == parts(other);
    }
};

/// Feeds a body in pieces, whose sizes `next_size` returns; each is at least 1.
inline StreamOutcome stream_outcome(std::string_view body, const std::function<std::size_t()>& next_size) {
    StreamOutcome outcome;
    openai::ChatStream stream;
    try {
        while (!body.empty()) {
            const std::string part(body.substr(0, next_size()));  // a copy, so that a sanitizer sees its bounds
            stream.feed(part, [&](std::string_view piece) { outcome.pieces.append(piece) += '\n'; });
            body.remove_prefix(part.size());
        }
        outcome.delivered = stream.delivered();
        outcome.answer = std::move(stream).finish();
    } catch (const sluice::ModelError& error) {
        outcome.error = std::string(error.what()) + '|' + std::string(to_string(error.verdict().kind)) + '|' +
                        std::to_string(error.status()) + '|' + error.code().str();
        outcome.delivered = stream.delivered();
    }
    outcome.done = stream.done();
    return outcome;
}

inline StreamOutcome stream_outcome(std::string_view body) {
    return stream_outcome(body, [&] { return std::max<std::size_t>(body.size(), 1); });
}

/// Whether a text is printable and valid UTF-8, judged by other means than those of the client.
inline bool is_printable(std::string_view text) {
    for (std::size_t i = 0; i < text.size();) {
        const auto byte = [&](std::size_t k) -> std::uint32_t {
            return k < text.size() ? static_cast<unsigned char>(text[k]) : 0U;
        };
        const std::uint32_t first = byte(i);
        const std::size_t length = first < 0x80 ? 1 : (first >> 5) == 6 ? 2 : (first >> 4) == 14 ? 3 : 4;
        std::uint32_t point = length == 1 ? first : first & (0x7FU >> length);
        for (std::size_t k = 1; k != length; ++k) {
            if (byte(i + k) >> 6 != 2) {
                return false;
            }
            point = point << 6 | (byte(i + k) & 63U);
        }
        constexpr std::uint32_t least[] = {0x20, 0x80, 0x800, 0x10000};
        if (first >> 3 > 30 || point < least[length - 1] || (point >= 0x7F && point < 0xA0) || point > 0x10FFFF ||
            (point >= 0xD800 && point < 0xE000)) {
            return false;
        }
        i += length;
    }
    return true;
}

}  // namespace test
