// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "scripted_server.hpp"

#include <algorithm>
#include <chrono>
#include <stdexcept>
#include <string>

namespace openai {

/// The key for a server: `key`, the value of OPENAI_API_KEY; empty if that is null.
/// @throws std::invalid_argument if it cannot be in a header. The message does not have it.
inline std::string key_from(const char* key) {
    const std::string text = key ? key : "";
    if (std::ranges::any_of(text, [](char c) { return c <= ' ' || c > '~'; })) {
        throw std::invalid_argument("OPENAI_API_KEY has a blank, or another character that no key has");
    }
    return text;
}

/// How the server behaves that is started without --model.
inline Behaviour demonstrate(const ScriptedRequest& request) {
    const auto asks_for = [&](const char* word) {
        return !request.texts.empty() && request.texts.back().find(word) != std::string::npos;
    };
    if (asks_for("refuse")) return Behaviour::error(400, "content_policy_violation", "the prompt is refused");
    if (asks_for("fail")) return Behaviour::error(500, "server_error", "the server failed");
    if (asks_for("slow")) return {.delay = std::chrono::hours(1)};
    return {.delay = std::chrono::milliseconds(20), .piece_delay = std::chrono::milliseconds(20)};
}

}  // namespace openai
