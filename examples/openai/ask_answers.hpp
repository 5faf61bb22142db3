// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "../json_lines.hpp"
#include "ask_prompts.hpp"

#include <boost/json/parse.hpp>
#include <boost/json/serialize.hpp>
#include <boost/json/value.hpp>
#include <boost/system/error_code.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <fstream>
#include <ios>
#include <iostream>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace openai {

/// The answers of a batch in a file of JSON lines, each an object with the `id` of its prompt. It is appended to while
/// prompts are answered, and so may be out of order when a run that was resumed adds what an earlier one has left out;
/// sort() puts it into the order of the prompts.
class Answers {
public:
    /// @param name The file; standard output if it is empty.
    /// @param resume Whether the file may have answers already, which are kept. If a program was killed while it wrote
    /// the last line, that is cut off; it must be the beginning of an answer.
    /// @throws std::runtime_error if the file cannot be read or written, or has something without `resume`; or naming
    /// the line that is no answer to one of the prompts, or a second one. Then nothing was changed.
    Answers(std::string name, const Prompts& prompts, bool resume)
        : name_(std::move(name)), answered_(prompts.size()), out_(read(prompts, resume), std::ios::app, std::cout) {}

    bool has(std::size_t position) const { return answered_.at(position); }

    /// The number of answers.
    std::size_t size() const noexcept { return lines_.size(); }

    /// Appends the answer to the prompt at `position`.
    void write(std::size_t position, std::string_view line) {
        out_.write(line);
        add(position, line.size());
    }

    /// Puts the lines into the order of the prompts, if they are not. A program that is killed meanwhile leaves the
    /// file as it was.
    /// @pre Nothing is written afterwards.
    void sort() {
        if (std::ranges::is_sorted(lines_, {}, &Line::position)) return;
        std::ranges::sort(lines_, {}, &Line::position);
        const auto file = std::filesystem::canonical(name_);  // a link stays one
        const std::string beside = file.string() + ".sorted";
        {
            std::ifstream in(file, std::ios::binary);
            support::LineWriter sorted(beside, std::ios::trunc | std::ios::binary, std::cout);
            for (const Line& line : lines_) {
                std::string text(line.size, '\0');
                if (!in.seekg(line.begin) || !in.read(text.data(), static_cast<std::streamsize>(text.size()))) {
                    throw std::runtime_error("cannot read '" + name_ + "'");
                }
                sorted.write(text);
            }
        }
        std::filesystem::permissions(beside, std::filesystem::status(file).permissions());
        std::filesystem::rename(beside, file);
    }

private:
    // An answer in the file, without the end of its line.
    struct Line {
        std::size_t position;  // of its prompt
        std::streamoff begin;
        std::size_t size;
    };

    // Reads the answers that the file has; returns its name.
    const std::string& read(const Prompts& prompts, bool resume) {
        const auto status = std::filesystem::status(name_);
        const bool is_file = std::filesystem::is_regular_file(status);
        if (!resume) {
            if (is_file && std::filesystem::file_size(name_) != 0) {
                throw std::runtime_error("'" + name_ + "' has something already: add --resume to go on, or remove it");
            }
            return name_;
        }
        if (!std::filesystem::exists(status)) return name_;
        if (!is_file) throw std::runtime_error("cannot resume '" + name_ + "', which is no file");
        std::ifstream in(name_, std::ios::binary);
        bool is_torn = false;
        for (std::string line; std::getline(in, line);) {
            is_torn = in.eof();
            if (!is_torn) {
                add(position_of(line, prompts), line.size());
            } else if (constexpr std::string_view begin = R"({"id":")";
                       !begin.starts_with(line.substr(0, begin.size()))) {
                refuse_line(name_, lines_.size() + 1, "is no answer");
            }
        }
        if (!in.eof()) throw std::runtime_error("cannot read '" + name_ + "'");
        if (is_torn) std::filesystem::resize_file(name_, static_cast<std::uintmax_t>(end_));
        return name_;
    }

    std::size_t position_of(const std::string& line, const Prompts& prompts) const {
        const std::size_t number = lines_.size() + 1;
        boost::system::error_code error;
        const auto value = boost::json::parse(line, error);
        const auto* const object = value.if_object();
        const auto* const id = object ? object->if_contains("id") : nullptr;
        if (error || !id || !id->is_string()) refuse_line(name_, number, "is no answer");
        const auto position = prompts.find(id->get_string());
        if (!position) refuse_line(name_, number, "answers " + boost::json::serialize(*id) + ", which is no prompt");
        if (has(*position)) refuse_line(name_, number, "answers " + boost::json::serialize(*id) + " again");
        return *position;
    }

    void add(std::size_t position, std::size_t size) {
        answered_.at(position) = true;
        lines_.push_back({position, end_, size});
        end_ += static_cast<std::streamoff>(size) + 1;
    }

    std::string name_;
    std::vector<bool> answered_;  // by position
    std::vector<Line> lines_;     // in the order of the file
    std::streamoff end_ = 0;      // of the last of them
    support::LineWriter out_;     // opened when the rest was read
};

}  // namespace openai
