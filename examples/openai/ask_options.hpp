// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "../arguments.hpp"
#include "../output.hpp"

#include <chrono>
#include <cstddef>
#include <filesystem>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <system_error>
#include <utility>

namespace openai {

constexpr std::string_view ask_usage = R"(usage: ask [options] QUESTION
       ask [options] --batch FILE

The answer to QUESTION is printed as it comes. If it is - or missing, it is read from standard input.

  --model URL        the base URL of an OpenAI-compatible server, such as http://127.0.0.1:8080/v1; the key, if it needs
                     one, is taken from the environment variable OPENAI_API_KEY
  --name MODEL       the name of the model in requests (default: default)
  --retries N        how many more calls may follow one that failed (default 2)
  -h, --help         print this text

  --batch FILE       ask for each line of FILE: {"id": "...", "prompt": "..."}, or just "..."; without an id, that is the
                     number of the line. Other fields are ignored
  --output FILE      write the answers to FILE (default: standard output), as JSON lines in the order of the prompts
  --failed FILE      write the prompts that failed to FILE, as JSON lines with the reason (default: answers.failed.jsonl
                     for --output answers.jsonl; standard error without --output, or if that is a pipe or device)
  --resume           skip the prompts whose answers are in the output file, and add the others; the file of prompts
                     that failed begins anew
  --at-once N        how many calls may run at once (default 4)
  --rate N           how many calls may begin in a minute (default: any number)
  --timeout SECONDS  the time that a call may take (default 60)
  --grace SECONDS    the time that calls have to end after the first Ctrl-C; a second one ends it (default 10)

Without --model, a scripted server repeats what it is asked. It refuses a prompt with the word "refuse", fails for one
with the word "fail", and takes an hour for one with the word "slow".
Progress is shown on standard error, if that is a terminal.
The status is 0 if every prompt was answered, 1 if not, 2 after an error, and 130 (Ctrl-C) or 143 (SIGTERM) if a
question is interrupted.
)";

struct AskOptions {
    std::optional<std::string> question;  ///< Empty if it comes from standard input, or with a batch.
    std::string model;
    std::string name = "default";
    int retries = 2;
    std::string batch;
    std::string output;
    std::string failed;
    bool resume = false;
    std::ptrdiff_t at_once = 4;
    std::optional<int> rate = std::nullopt;  ///< Calls a minute.
    std::chrono::seconds timeout = std::chrono::seconds(60);
    std::chrono::seconds grace = std::chrono::seconds(10);
    bool help = false;
};

/// Where the prompts that failed go if --failed does not say it: beside the answers.
inline std::string failed_beside(std::string_view output) {
    constexpr std::string_view extension = ".jsonl";
    if (output.ends_with(extension)) output.remove_suffix(extension.size());
    return std::string(output) + ".failed.jsonl";
}

/// @throws std::invalid_argument naming the option, and its value, that is wrong.
inline AskOptions parse_ask(int argc, char** argv) {
    AskOptions options;
    std::string for_batches;  // an option that means nothing without --batch
    const auto use_question = [&](const std::string& text) {
        if (options.question) {
            throw std::invalid_argument("there is more than one question: '" + *options.question + "' and '" + text +
                                        "'; put it in quotes");
        }
        options.question = text;
    };
    for (support::Arguments arguments(argc, argv); arguments.next();) {
        const std::string& option = arguments.option();
        if (option == "--model") {
            options.model = arguments.value("a URL");
        } else if (option == "--name") {
            options.name = arguments.value("the name of a model");
        } else if (option == "--retries") {
            options.retries = arguments.number(0, 1000);
        } else if (option == "--batch") {
            options.batch = arguments.value("a file name");
        } else if (option == "--help") {
            options.help = true;
        } else if (option == "-" || !option.starts_with('-')) {
            use_question(option);
        } else {
            if (option == "--output") {
                options.output = arguments.value("a file name");
            } else if (option == "--failed") {
                options.failed = arguments.value("a file name");
            } else if (option == "--resume") {
                options.resume = true;
            } else if (option == "--at-once") {
                options.at_once = arguments.number<std::ptrdiff_t>(1, 1000);
            } else if (option == "--rate") {
                options.rate = arguments.number(1, 1'000'000);
            } else if (option == "--timeout") {
                options.timeout = std::chrono::seconds(arguments.number(1, 86'400));
            } else if (option == "--grace") {
                options.grace = std::chrono::seconds(arguments.number(0, 86'400));
            } else {
                arguments.unknown();
            }
            for_batches = option;
        }
    }
    if (options.help) return options;
    if (options.batch.empty() && !for_batches.empty()) throw std::invalid_argument(for_batches + " needs --batch");
    if (!options.batch.empty() && options.question) {
        throw std::invalid_argument("there are --batch and a question, '" + *options.question + "'; one is possible");
    }
    if (options.resume && options.output.empty()) throw std::invalid_argument("--resume needs --output");
    std::error_code unknown;
    if (!options.output.empty() && options.failed.empty() && !std::filesystem::is_other(options.output, unknown)) {
        options.failed = failed_beside(options.output);
    }
    support::require_two_files("--output", options.output, "--failed", options.failed);
    for (const auto& [option, file] : {std::pair("--output", options.output), std::pair("--failed", options.failed)}) {
        if (!file.empty() && support::same_file(options.batch, file)) {
            throw std::invalid_argument("the prompts in '" + options.batch + "' would be overwritten: " + option +
                                        " is the same file");
        }
    }
    return options;
}

}  // namespace openai
