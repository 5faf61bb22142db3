// SPDX-License-Identifier: BSL-1.0
#include "answer.hpp"

#include "failure.hpp"
#include "text.hpp"

#include <boost/json/parse.hpp>
#include <boost/system/error_code.hpp>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <utility>

namespace json = boost::json;

namespace openai {

namespace {

// Returns whether there may be more than `max_values`: commas and the like in strings are counted, too.
bool has_many_values(std::string_view text) noexcept {
    constexpr auto before_value = [](char c) { return c == ',' || c == ':' || c == '[' || c == '{'; };
    return std::ssize(text) > max_values && std::ranges::count_if(text, before_value) > max_values;
}

}  // namespace

sluice::ModelError malformed(const std::string& problem, std::string_view answer) {
    constexpr std::size_t excerpt = 200;
    const std::string beginning = answer.empty() ? "it is empty" : "it begins with " + printable(answer, excerpt);
    return sluice::ModelError(problem + "; " + beginning, {.kind = sluice::Verdict::transient}, 200);
}

json::object parse_answer(std::string_view text, json::storage_ptr memory) {
    if (has_many_values(text)) {  // one that takes two bytes here takes 24 in memory
        throw malformed("the answer has more than " + std::to_string(max_values) + " values", text);
    }
    boost::system::error_code error;
    json::value answer = json::parse(text, error, std::move(memory));  // refuses what is nested more than 32 deep
    if (error) {
        throw malformed("the answer is not JSON (" + error.message() + ")", text);
    }
    if (auto reported = error_in(answer)) {
        throw *std::move(reported);
    }
    if (!answer.is_object()) {
        throw malformed("the answer is not a JSON object", text);
    }
    return std::move(answer.get_object());
}

const json::value* member(const json::object& object, std::string_view name) noexcept {
    const json::value* found = object.if_contains(name);
    return found && !found->is_null() ? found : nullptr;
}

std::string_view text_of(const json::value* value) noexcept {
    const json::string* text = value ? value->if_string() : nullptr;
    return text ? std::string_view(text->data(), text->size()) : std::string_view();
}

std::optional<std::int64_t> integer_of(const json::value* value) noexcept {
    if (!value) {
        return std::nullopt;
    }
    if (const std::int64_t* integer = value->if_int64()) {
        return *integer;
    }
    constexpr double exact = 9007199254740992;  // 2^53
    const double* number = value->if_double();
    if (number && std::abs(*number) <= exact && std::trunc(*number) == *number) {
        return static_cast<std::int64_t>(*number);
    }
    return std::nullopt;
}

std::optional<sluice::Cost> usage_of(const json::object& answer) noexcept {
    const json::value* usage = member(answer, "usage");
    if (!usage || !usage->is_object()) {
        return std::nullopt;
    }
    constexpr std::int64_t most = 1'000'000'000'000'000;                           // of Attempt::used()
    const json::value* output = member(usage->get_object(), "completion_tokens");  // embeddings have none
    const auto input_tokens = integer_of(member(usage->get_object(), "prompt_tokens"));
    const auto output_tokens = output ? integer_of(output) : 0;
    const auto sensible = [](const auto& tokens) { return tokens && *tokens >= 0 && *tokens <= most; };
    if (!sensible(input_tokens) || !sensible(output_tokens)) {
        return std::nullopt;
    }
    return sluice::Cost{.requests = 1, .input_tokens = *input_tokens, .output_tokens = *output_tokens};
}

}  // namespace openai
