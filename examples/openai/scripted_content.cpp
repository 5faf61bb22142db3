// SPDX-License-Identifier: BSL-1.0
#include "scripted_content.hpp"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include <algorithm>
#include <array>
#include <cmath>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace json = boost::json;

namespace openai {
namespace {

// The text in words, each with the spaces before it.
std::vector<std::string_view> words_of(std::string_view text) {
    std::vector<std::string_view> words;
    while (!text.empty()) {
        const auto begin = std::min(text.find_first_not_of(' '), text.size());
        const auto end = std::min(text.find(' ', begin), text.size());
        words.push_back(text.substr(0, end));
        text.remove_prefix(end);
    }
    return words;
}

std::string answer_to(const ScriptedRequest& request) {
    return "You said: \"" + request.texts.back() + "\" This is a scripted answer; no model has read it.";
}

std::size_t tokens_of(const std::vector<std::string>& texts) {
    std::size_t tokens = 0;
    for (const auto& text : texts) {
        tokens += words_of(text).size();
    }
    return tokens;
}

json::object usage_of(const ScriptedRequest& request, std::size_t completion_tokens) {
    const std::size_t prompt_tokens = tokens_of(request.texts);
    return {{"prompt_tokens", prompt_tokens},
            {"completion_tokens", completion_tokens},
            {"total_tokens", prompt_tokens + completion_tokens}};
}

// The letters of the text, in eight numbers of which the squares add up to one.
json::array embedding_of(std::string_view text) {
    std::array<double, 8> vector = {1};
    for (std::size_t i = 0; i < text.size(); ++i) {
        vector[(static_cast<unsigned char>(text[i]) + i) % vector.size()] += 1;
    }
    double squares = 0;
    for (const double number : vector) {
        squares += number * number;
    }
    json::array numbers;
    for (const double number : vector) {
        numbers.emplace_back(number / std::sqrt(squares));
    }
    return numbers;
}

json::array array_of(json::object element) {
    json::array array;
    array.push_back(std::move(element));
    return array;
}

std::string chat_answer(const ScriptedRequest& request) {
    const std::string text = answer_to(request);
    return json::serialize(json::object{
        {"id", "chatcmpl-" + std::to_string(request.number)},
        {"object", "chat.completion"},
        {"created", 0},
        {"model", request.model},
        {"choices",
         array_of({{"index", 0}, {"message", {{"role", "assistant"}, {"content", text}}}, {"finish_reason", "stop"}})},
        {"usage", usage_of(request, words_of(text).size())}});
}

std::string embeddings_answer(const ScriptedRequest& request) {
    json::array data;
    for (const auto& text : request.texts) {
        data.push_back(
            json::object{{"object", "embedding"}, {"index", data.size()}, {"embedding", embedding_of(text)}});
    }
    const std::size_t tokens = tokens_of(request.texts);
    return json::serialize(json::object{{"object", "list"},
                                        {"model", request.model},
                                        {"data", std::move(data)},
                                        {"usage", {{"prompt_tokens", tokens}, {"total_tokens", tokens}}}});
}

std::string event(std::string_view data) { return "data: " + std::string(data) + "\n\n"; }

std::string chunk_event(const ScriptedRequest& request, json::array choices, std::optional<json::object> usage = {}) {
    json::object chunk{{"id", "chatcmpl-" + std::to_string(request.number)},
                       {"object", "chat.completion.chunk"},
                       {"created", 0},
                       {"model", request.model},
                       {"choices", std::move(choices)}};
    if (usage) {
        chunk["usage"] = std::move(*usage);
    }
    return event(json::serialize(chunk));
}

std::string delta_event(const ScriptedRequest& request, json::object delta, json::value finish_reason = nullptr) {
    return chunk_event(
        request, array_of({{"index", 0}, {"delta", std::move(delta)}, {"finish_reason", std::move(finish_reason)}}));
}

}  // namespace

std::string scripted_error(int status, std::string_view code, std::string_view message) {
    const std::string_view type = status == 429  ? "rate_limit_error"
                                  : status < 500 ? "invalid_request_error"
                                                 : "server_error";
    return json::serialize(
        json::object{{"error", {{"message", message}, {"type", type}, {"param", nullptr}, {"code", code}}}});
}

std::pair<int, std::string> scripted_content(const ScriptedRequest& request) {
    const std::string_view target = request.message.target();
    if (!request.problem.empty()) {
        return {400, scripted_error(400, "invalid_request", request.problem)};
    }
    if (target == scripted_chat_path) {
        return {200, chat_answer(request)};
    }
    if (target == scripted_embeddings_path) {
        return {200, embeddings_answer(request)};
    }
    if (target == "/v1/models") {
        return {200,
                R"({"object":"list","data":[{"id":"scripted","object":"model","created":0,"owned_by":"sluice"}]})"};
    }
    if (target == "/health") {
        return {200, R"({"status":"ok"})"};
    }
    return {404, scripted_error(404, "not_found", "there is nothing at this path")};
}

std::vector<std::string> scripted_stream(const ScriptedRequest& request, const Behaviour& behaviour) {
    const std::string text = answer_to(request);
    auto words = words_of(text);
    const std::size_t all = words.size();
    words.resize(std::min(behaviour.words.value_or(all), all));
    std::vector<std::string> events{delta_event(request, {{"role", "assistant"}, {"content", nullptr}})};
    for (const auto word : words) {
        events.push_back(delta_event(request, {{"content", word}}));
    }
    if (behaviour.endless) {
        return events;
    }
    std::string end;
    if (words.size() == all) {
        end = delta_event(request, {}, "stop");
        if (request.stream_usage) {
            end += chunk_event(request, {}, usage_of(request, all));
        }
    }
    if (!behaviour.last_event.empty()) {
        end += event(behaviour.last_event);
    }
    events.push_back(std::move(end));
    return events;
}

}  // namespace openai
