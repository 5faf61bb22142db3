// SPDX-License-Identifier: BSL-1.0
#include "chat.hpp"

#include "answer.hpp"
#include "text.hpp"

#include <sluice/stage/verdict.hpp>

#include <boost/json/array.hpp>
#include <boost/json/monotonic_resource.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>

#include <array>
#include <cmath>
#include <cstddef>

namespace json = boost::json;

namespace openai {

namespace {

// Of the memory on the stack, which is enough for most; what is longer takes more from the heap.
constexpr std::size_t memory_size = 4096;

}  // namespace

std::string chat_body(const ChatRequest& request, bool stream) {
    std::array<unsigned char, memory_size> buffer;
    json::monotonic_resource memory(buffer.data(), buffer.size());
    json::object body(&memory);
    if (!request.model.empty()) {
        require_utf8("the model's name", request.model);
        body["model"] = request.model;
    }
    json::array& messages = body["messages"].emplace_array();
    messages.reserve(request.messages.size());
    for (std::size_t i = 0; i != request.messages.size(); ++i) {
        const Message& message = request.messages[i];
        require_utf8("messages", i, ".role", message.role);
        require_utf8("messages", i, ".content", message.content);
        messages.push_back(json::object({{"role", message.role}, {"content", message.content}}, &memory));
    }
    if (request.max_tokens) {
        body["max_tokens"] = *request.max_tokens;
    }
    if (request.temperature) {
        if (!std::isfinite(*request.temperature)) {
            throw sluice::ModelError("temperature must be finite, got " + std::to_string(*request.temperature),
                                     {.kind = sluice::Verdict::invalid});
        }
        body["temperature"] = *request.temperature;
    }
    if (stream) {
        body["stream"] = true;
        body["stream_options"] = {{"include_usage", true}};
    }
    return json::serialize(body);
}

ChatAnswer parse_chat(std::string_view body) {
    std::array<unsigned char, memory_size> buffer;
    json::monotonic_resource memory(buffer.data(), buffer.size());
    const json::object answer = parse_answer(body, &memory);
    const json::value* choices = member(answer, "choices");
    if (!choices || !choices->is_array() || choices->get_array().empty()) {
        throw malformed("the answer has no choices", body);
    }
    const json::object* choice = choices->get_array().front().if_object();
    const json::value* message = choice ? member(*choice, "message") : nullptr;
    if (!message || !message->is_object()) {
        throw malformed("the answer has no choices[0].message", body);
    }
    const json::value* content = member(message->get_object(), "content");
    if (content && !content->is_string()) {
        throw malformed("choices[0].message.content of the answer is not a string", body);
    }
    return {.text = std::string(text_of(content)),
            .finish_reason = std::string(text_of(member(*choice, "finish_reason"))),
            .usage = usage_of(answer)};
}

}  // namespace openai
