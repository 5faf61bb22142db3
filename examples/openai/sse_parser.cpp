// SPDX-License-Identifier: BSL-1.0
#include "sse_parser.hpp"

#include <sluice/stage/verdict.hpp>

#include <utility>

namespace openai {

namespace {

void require_size(std::string_view what, std::size_t size) {
    if (size > SseParser::max_size) {
        throw sluice::ModelError(
            "the stream has " + std::string(what) + " of more than " + std::to_string(SseParser::max_size) + " bytes",
            {.kind = sluice::Verdict::transient}, 200);
    }
}

}  // namespace

void SseParser::feed(std::string_view bytes, const OnData& on_data) {
    while (!bytes.empty()) {
        if (std::exchange(after_cr_, false) && bytes.front() == '\n') {
            bytes.remove_prefix(1);
            continue;
        }
        const std::size_t end = bytes.find_first_of("\r\n");
        const std::string_view part = bytes.substr(0, end);
        require_size("a line", line_.size() + part.size());
        if (end == std::string_view::npos) {
            line_ += part;
            return;
        }
        after_cr_ = bytes[end] == '\r';
        bytes.remove_prefix(end + 1);
        if (line_.empty()) {
            if (!take_line(part, on_data)) {
                return;
            }
        } else {
            line_ += part;
            if (!take_line(line_, on_data)) {
                return;
            }
            line_.clear();
        }
    }
}

// Returns whether there may be more.
bool SseParser::take_line(std::string_view line, const OnData& on_data) {
    constexpr std::string_view byte_order_mark = "\xEF\xBB\xBF";
    if (std::exchange(at_start_, false) && line.starts_with(byte_order_mark)) {
        line.remove_prefix(byte_order_mark.size());
    }
    if (line.empty()) {
        const bool more = !std::exchange(has_data_, false) || on_data(data_);
        data_.clear();
        return more;
    }
    const std::size_t colon = line.find(':');
    if (line.substr(0, colon) != "data") {
        return true;
    }
    std::string_view value = colon == std::string_view::npos ? std::string_view() : line.substr(colon + 1);
    if (value.starts_with(' ')) {
        value.remove_prefix(1);
    }
    if (std::exchange(has_data_, true)) {
        data_ += '\n';
    }
    require_size("an event", data_.size() + value.size());
    data_ += value;
    return true;
}

}  // namespace openai
