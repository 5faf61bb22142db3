// SPDX-License-Identifier: BSL-1.0
#include "embeddings.hpp"

#include "answer.hpp"
#include "text.hpp"

#include <boost/json/array.hpp>
#include <boost/json/object.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>

#include <cmath>
#include <limits>
#include <utility>

namespace json = boost::json;

namespace openai {

namespace {

// Returns a finite number.
std::optional<float> float_of(const json::value& value) noexcept {
    const double number = value.is_double()   ? value.get_double()
                          : value.is_int64()  ? static_cast<double>(value.get_int64())
                          : value.is_uint64() ? static_cast<double>(value.get_uint64())
                                              : std::numeric_limits<double>::quiet_NaN();
    if (!(std::abs(number) <= std::numeric_limits<float>::max())) {
        return std::nullopt;
    }
    return static_cast<float>(number);
}

}  // namespace

std::string embeddings_body(const std::string& model, std::span<const std::string> texts) {
    json::object body;
    if (!model.empty()) {
        require_utf8("the model's name", model);
        body["model"] = model;
    }
    json::array& input = body["input"].emplace_array();
    input.reserve(texts.size());
    for (std::size_t i = 0; i != texts.size(); ++i) {
        require_utf8("texts", i, "", texts[i]);
        input.emplace_back(texts[i]);
    }
    return json::serialize(body);
}

Embeddings parse_embeddings(std::string_view body, std::size_t texts) {
    const json::object answer = parse_answer(body);
    const json::value* data = member(answer, "data");
    if (!data || !data->is_array()) {
        throw malformed("the answer has no data", body);
    }
    const json::array& entries = data->get_array();
    if (entries.size() != texts) {
        throw malformed("the answer must have a vector for each of the " + std::to_string(texts) + " texts, got " +
                            std::to_string(entries.size()),
                        body);
    }
    Embeddings result{.vectors = std::vector<std::vector<float>>(texts), .usage = usage_of(answer)};
    std::size_t length = 0;
    for (std::size_t i = 0; i != entries.size(); ++i) {
        const std::string name = "data[" + std::to_string(i) + "]";
        const json::object* entry = entries[i].if_object();
        const auto index = entry ? integer_of(member(*entry, "index")) : std::nullopt;
        if (!index || *index < 0 || static_cast<std::size_t>(*index) >= texts) {
            throw malformed(name + " of the answer has no index of a text", body);
        }
        std::vector<float>& vector = result.vectors[static_cast<std::size_t>(*index)];
        if (!vector.empty()) {
            throw malformed(name + " of the answer repeats index " + std::to_string(*index), body);
        }
        const json::value* numbers = member(*entry, "embedding");
        if (!numbers || !numbers->is_array() || numbers->get_array().empty()) {
            throw malformed(name + " of the answer has no embedding", body);
        }
        const std::size_t size = numbers->get_array().size();
        if (std::exchange(length, size) != size && i != 0) {
            throw malformed(name + ".embedding of the answer must be as long as the others, got " +
                                std::to_string(size) + " numbers",
                            body);
        }
        vector.reserve(size);
        for (const json::value& value : numbers->get_array()) {
            const auto number = float_of(value);
            if (!number) {
                throw malformed(name + ".embedding[" + std::to_string(vector.size()) +
                                    "] of the answer is not a number that a float can hold",
                                body);
            }
            vector.push_back(*number);
        }
    }
    return result;
}

}  // namespace openai
