// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <boost/system/error_code.hpp>

#include <cstddef>
#include <filesystem>
#include <fstream>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <unordered_map>
#include <utility>
#include <vector>

namespace openai {

struct Prompt {
    std::string id;
    std::string text;
};

/// The error for a line of a file of JSON lines.
[[noreturn]] inline void refuse_line(const std::string& file, std::size_t line, const std::string& why) {
    throw std::runtime_error("line " + std::to_string(line) + " of '" + file + "' " + why);
}

/// Parses a line of a file of prompts. `number` is its id if it has none.
/// @throws std::runtime_error naming the file and the line if it is no prompt.
inline Prompt parse_prompt(const std::string& file, std::size_t number, const std::string& line) {
    boost::system::error_code error;
    const auto value = boost::json::parse(line, error);
    if (error) refuse_line(file, number, "is not JSON: " + error.message());
    Prompt prompt{std::to_string(number), {}};
    const auto* text = &value;
    if (const auto* const object = value.if_object()) {
        text = object->if_contains("prompt");
        if (!text) refuse_line(file, number, "has no \"prompt\"");
        if (const auto* const id = object->if_contains("id")) {
            if (!id->is_string()) refuse_line(file, number, "has an \"id\" that is not a string");
            prompt.id = id->get_string();
        }
    }
    if (!text->is_string()) refuse_line(file, number, "has a prompt that is not a string");
    if (text->get_string().empty()) refuse_line(file, number, "has an empty prompt");
    prompt.text = text->get_string();
    return prompt;
}

/// The prompts of a file of JSON lines. All are in memory, until they are taken: beside their texts, that is about 250
/// bytes each.
class Prompts {
public:
    /// @throws std::runtime_error if the file cannot be read; or naming the line that is no prompt, or has the id of
    /// another.
    explicit Prompts(const std::string& file) {
        std::ifstream in(file);
        for (std::string line; std::getline(in, line);) {
            prompts_.push_back(parse_prompt(file, prompts_.size() + 1, line));
        }
        // libc++ reads a folder as an empty file.
        if (!in.eof() || std::filesystem::is_directory(file)) throw std::runtime_error("cannot read '" + file + "'");
        positions_.reserve(prompts_.size());
        for (std::size_t i = 0; i != prompts_.size(); ++i) {
            const auto [found, is_new] = positions_.emplace(prompts_[i].id, i);
            if (!is_new) {
                const std::string id = boost::json::serialize(prompts_[i].id);
                refuse_line(file, i + 1, "has the id " + id + ", as line " + std::to_string(found->second + 1));
            }
        }
    }

    Prompts(const Prompts&) = delete;
    Prompts& operator=(const Prompts&) = delete;

    std::size_t size() const noexcept { return prompts_.size(); }
    const std::string& id(std::size_t position) const { return prompts_.at(position).id; }

    /// The position of the prompt with this id, from 0, if there is one.
    std::optional<std::size_t> find(std::string_view id) const {
        const auto found = positions_.find(id);
        return found == positions_.end() ? std::nullopt : std::optional(found->second);
    }

    /// Moves the text out.
    std::string take(std::size_t position) { return std::exchange(prompts_.at(position).text, {}); }

private:
    std::vector<Prompt> prompts_;
    std::unordered_map<std::string_view, std::size_t> positions_;  // of the ids in `prompts_`
};

}  // namespace openai
