// SPDX-License-Identifier: BSL-1.0
#include "chat_stream.hpp"

#include "answer.hpp"
#include "failure.hpp"

#include <sluice/stage/verdict.hpp>

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/parse.hpp>
#include <boost/json/value.hpp>
#include <boost/system/error_code.hpp>

#include <optional>
#include <utility>

namespace json = boost::json;

namespace openai {

namespace {

constexpr std::string_view last_event = "[DONE]";

// Throws the error that the data of an event reports. It may be cut off.
void throw_reported(std::string_view data) {
    boost::system::error_code cut_off;
    const json::value value = json::parse(data, cut_off);
    if (auto reported = cut_off ? std::nullopt : error_in(value)) {
        throw *std::move(reported);
    }
}

// Returns the object, or null if there is none or it is `null`.
const json::object* object_of(const json::value* value, const char* problem, std::string_view data) {
    if (value && !value->is_null() && !value->is_object()) {
        throw malformed(problem, data);
    }
    return value ? value->if_object() : nullptr;
}

}  // namespace

void ChatStream::feed(std::string_view bytes, const OnPiece& on_piece) {
    if (done_) {
        return;
    }
    if (!any_event_) {
        constexpr std::size_t max_beginning = std::size_t{16} << 10;
        beginning_ += bytes.substr(0, max_beginning - beginning_.size());
    }
    parser_.feed(bytes, [&](std::string_view data) {
        take(data, on_piece);
        return !done_;
    });
}

void ChatStream::take(std::string_view data, const OnPiece& on_piece) {
    any_event_ = true;
    if (data.find_first_not_of(" \n\t") == std::string_view::npos) {
        return;
    }
    if (data == last_event) {
        done_ = true;
        return;
    }
    const json::object chunk = parse_answer(data);
    if (auto usage = usage_of(chunk)) {
        answer_.usage = usage;
    }
    const json::value* choices = member(chunk, "choices");
    if (choices && !choices->is_array()) {
        throw malformed("choices of an event is not an array", data);
    }
    if (!choices || choices->get_array().empty()) {
        return;  // such as the one that reports the usage
    }
    const json::object* choice = object_of(&choices->get_array().front(), "choices[0] of an event is no object", data);
    if (!choice) {
        return;
    }
    if (const std::string_view reason = text_of(member(*choice, "finish_reason")); !reason.empty()) {
        answer_.finish_reason = reason;
    }
    const json::object* delta = object_of(member(*choice, "delta"), "choices[0].delta of an event is no object", data);
    const json::value* content = delta ? member(*delta, "content") : nullptr;
    if (content && !content->is_string()) {
        throw malformed("choices[0].delta.content of an event is not a string", data);
    }
    const std::string_view piece = text_of(content);
    if (piece.empty()) {
        return;
    }
    if (piece.size() > max_text - answer_.text.size()) {
        throw sluice::ModelError("the answer has more than " + std::to_string(max_text) + " bytes of text",
                                 {.kind = sluice::Verdict::invalid}, 200);
    }
    answer_.text += piece;
    on_piece(piece);
}

ChatAnswer ChatStream::finish() && {
    if (!done_) {
        // Some servers do not end the last event.
        parser_.feed("\n\n", [this](std::string_view data) {
            any_event_ = true;
            done_ = data == last_event;
            throw_reported(data);
            return false;
        });
    }
    if (!any_event_) {
        parse_answer(beginning_);  // it may be an error, or is not even JSON
        throw malformed("the answer is not a stream of events", beginning_);
    }
    if (!done_) {
        throw sluice::ModelError(
            "the stream ended without [DONE], after " + std::to_string(delivered()) + " bytes of text",
            {.kind = sluice::Verdict::transient}, 200);
    }
    return std::move(answer_);
}

}  // namespace openai
