// SPDX-License-Identifier: BSL-1.0
#include "scripted_answer.hpp"

#include "scripted_content.hpp"

#include <boost/beast/core/string.hpp>
#include <boost/beast/http/status.hpp>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace http = boost::beast::http;

namespace openai {
namespace {

std::string in_chunk(std::string_view bytes) {
    if (bytes.empty()) {
        return {};  // as a chunk it would be the last
    }
    std::array<char, 16> size{};
    const auto end = std::to_chars(size.begin(), size.end(), bytes.size(), 16).ptr;
    return std::string(size.begin(), end) + "\r\n" + std::string(bytes) + "\r\n";
}

class Head {
public:
    Head(int status, const Behaviour& behaviour) : behaviour_(behaviour) {
        const std::string_view reason = http::obsolete_reason(http::int_to_status(static_cast<unsigned>(status)));
        text_ = "HTTP/1.1 " + std::to_string(status) + ' ' + std::string(reason) + "\r\n";
    }

    void add(std::string_view name, std::string_view value) {
        const auto replaced = [&](const auto& header) { return boost::beast::iequals(header.first, name); };
        if (std::ranges::none_of(behaviour_.headers, replaced)) {
            append(name, value);
        }
    }

    std::string finish() && {
        for (const auto& [name, value] : behaviour_.headers) {
            append(name, value);
        }
        return std::move(text_) + "\r\n";
    }

private:
    void append(std::string_view name, std::string_view value) {
        text_.append(name).append(": ").append(value).append("\r\n");
    }

    const Behaviour& behaviour_;
    std::string text_;
};

}  // namespace

ScriptedAnswer scripted_answer(const ScriptedRequest& request, const Behaviour& behaviour) {
    if (behaviour.raw) {
        return {behaviour.status.value_or(0), {*behaviour.raw}};
    }
    const bool streamed = !behaviour.body && request.stream && behaviour.status.value_or(200) == 200;
    auto [status, body] = streamed ? std::pair(200, std::string()) : scripted_content(request);
    status = behaviour.status.value_or(status);
    Head head(status, behaviour);
    head.add("Server", "sluice-scripted");
    head.add("Content-Type", streamed ? "text/event-stream" : "application/json");
    if (!request.message.keep_alive()) {
        head.add("Connection", "close");
    }
    if (!streamed && !behaviour.endless) {
        const std::string& sent = behaviour.body ? *behaviour.body : body;
        head.add("Content-Length", std::to_string(sent.size()));
        return {status, {std::move(head).finish() + sent}};
    }
    head.add("Transfer-Encoding", "chunked");
    ScriptedAnswer answer{status, {std::move(head).finish()}};
    for (const auto& piece :
         streamed ? scripted_stream(request, behaviour) : std::vector{behaviour.body.value_or(body)}) {
        answer.pieces.push_back(in_chunk(piece));
    }
    if (behaviour.endless) {
        if (answer.pieces.back().empty()) {
            throw std::invalid_argument("Behaviour: an endless body must not be empty");
        }
    } else {
        answer.pieces.back() += "0\r\n\r\n";
    }
    return answer;
}

Behaviour Behaviour::error(int status, std::string_view code, std::string_view message) {
    return {.status = status, .body = scripted_error(status, code, message)};
}

Behaviour Behaviour::throttled(std::chrono::milliseconds retry_after) {
    Behaviour behaviour = error(429, "rate_limit_exceeded", "too many requests");
    behaviour.headers.emplace_back("retry-after-ms", std::to_string(retry_after.count()));
    return behaviour;
}

}  // namespace openai
