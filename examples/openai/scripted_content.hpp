// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "scripted_server.hpp"

#include <string>
#include <string_view>
#include <utility>
#include <vector>

// What a ScriptedServer understands and says, in JSON.
namespace openai {

inline constexpr std::string_view scripted_chat_path = "/v1/chat/completions";
inline constexpr std::string_view scripted_embeddings_path = "/v1/embeddings";

/// Fills in what the message of `request` asks for, or its problem.
void read_scripted(ScriptedRequest& request);

/// The status and the body of the correct answer, which is not streamed.
std::pair<int, std::string> scripted_content(const ScriptedRequest& request);

/// The events of a streamed answer, those at its end together.
std::vector<std::string> scripted_stream(const ScriptedRequest& request, const Behaviour& behaviour);

/// An error in the shape of OpenAI's.
std::string scripted_error(int status, std::string_view code, std::string_view message);

}  // namespace openai
