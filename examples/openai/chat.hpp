// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/rate.hpp>

#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace openai {

struct Message {
    std::string role;  ///< `system`, `user` or `assistant`.
    std::string content;
};

struct ChatRequest {
    std::string model;  ///< May be empty for a server that has a single one.
    std::vector<Message> messages;
    std::optional<int> max_tokens = std::nullopt;
    std::optional<double> temperature = std::nullopt;
};

struct ChatAnswer {
    std::string text;           ///< Empty if the server sends none, such as with a call of a tool.
    std::string finish_reason;  ///< Such as `stop` or `length`; empty if the server does not say.
    std::optional<sluice::Cost> usage = std::nullopt;
};

/// Returns the body of a request. A streamed answer is asked to report the usage.
/// @throws sluice::ModelError, invalid, if a string is not UTF-8, or the temperature is not finite.
std::string chat_body(const ChatRequest& request, bool stream);

/// Reads the whole body of an answer with status 200.
/// @throws sluice::ModelError that is transient if it is none, and as error_in() says if it reports an error.
ChatAnswer parse_chat(std::string_view body);

}  // namespace openai
