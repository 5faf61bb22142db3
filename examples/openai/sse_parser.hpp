// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <functional>
#include <string>
#include <string_view>

namespace openai {

/// Splits a stream of server-sent events into the data of its events, as the HTML standard says. Comments and the
/// fields `event`, `id` and `retry` are ignored, and so are fields that the standard does not know.
class SseParser {
public:
    /// Takes the data of one event: its `data` lines, joined by `\n`. The view is valid during the call. Returns
    /// whether there may be more: after the last event the rest of the bytes is ignored.
    using OnData = std::function<bool(std::string_view)>;

    /// The longest line, and the longest data of an event, in bytes.
    static constexpr std::size_t max_size = std::size_t{1} << 20;

    /// Takes the next bytes of the stream, wherever they were split, and calls `on_data` for each event that they end.
    /// O(bytes). The parser must not be fed again after the last event, nor after an exception, also one of `on_data`.
    /// @throws sluice::ModelError, transient, if a line or the data of an event is longer than `max_size`.
    void feed(std::string_view bytes, const OnData& on_data);

private:
    bool take_line(std::string_view line, const OnData& on_data);

    std::string line_;  // its beginning, while its end has not come
    std::string data_;  // of the event that has not ended
    bool has_data_ = false;
    bool at_start_ = true;   // of the stream, where a byte order mark may be
    bool after_cr_ = false;  // a line feed belongs to the carriage return before it
};

}  // namespace openai
