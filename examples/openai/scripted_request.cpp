// SPDX-License-Identifier: BSL-1.0
#include "scripted_content.hpp"

#include <boost/beast/http/verb.hpp>
#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>

#include <exception>
#include <string>
#include <string_view>

namespace json = boost::json;

namespace openai {
namespace {

void read_messages(ScriptedRequest& request, const json::object& body) {
    for (const auto& message : body.at("messages").as_array()) {
        const auto* content = message.as_object().if_contains("content");
        const bool is_text = content != nullptr && content->is_string();
        request.texts.emplace_back(is_text ? std::string_view(content->get_string()) : std::string_view());
    }
    if (request.texts.empty()) {
        request.problem = "there are no messages";
    }
    if (const auto* stream = body.if_contains("stream")) {
        request.stream = stream->is_bool() && stream->get_bool();
    }
    if (const auto* options = body.if_contains("stream_options"); options != nullptr && options->is_object()) {
        const auto* usage = options->get_object().if_contains("include_usage");
        request.stream_usage = usage != nullptr && usage->is_bool() && usage->get_bool();
    }
}

void read_input(ScriptedRequest& request, const json::object& body) {
    const auto& input = body.at("input");
    if (input.is_string()) {
        request.texts.emplace_back(input.get_string());
        return;
    }
    for (const auto& text : input.as_array()) {
        request.texts.emplace_back(text.as_string());
    }
}

}  // namespace

void read_scripted(ScriptedRequest& request) {
    const std::string_view target = request.message.target();
    const bool chat = target == scripted_chat_path;
    if (!chat && target != scripted_embeddings_path) {
        return;
    }
    if (request.message.method() != boost::beast::http::verb::post) {
        request.problem = "the method must be POST";
        return;
    }
    try {
        const json::value body = json::parse(request.message.body());
        if (const auto* model = body.as_object().if_contains("model"); model != nullptr && model->is_string()) {
            request.model = model->get_string();
        }
        chat ? read_messages(request, body.as_object()) : read_input(request, body.as_object());
    } catch (const std::exception& error) {
        request.problem = std::string("the body is malformed: ") + error.what();
    }
}

}  // namespace openai
