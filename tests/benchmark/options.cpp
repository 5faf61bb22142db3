// SPDX-License-Identifier: BSL-1.0
#include "options.hpp"

#include <charconv>
#include <stdexcept>
#include <system_error>

namespace benchmark {

namespace {

int parse_rounds(const std::string& text) {
    int rounds = 0;
    const char* end = text.data() + text.size();
    const auto [stop, error] = std::from_chars(text.data(), end, rounds);
    if (error != std::errc() || stop != end || rounds < 1 || rounds > 10'000) {
        throw std::invalid_argument("--rounds takes a whole number from 1 to 10000, got '" + text + "'");
    }
    return rounds;
}

}  // namespace

Options parse(int argc, char** argv) {
    Options options;
    std::optional<int> rounds;
    for (int i = 1; i < argc; ++i) {
        const std::string option = argv[i];
        const auto value = [&](const char* what) -> std::string {
            if (++i == argc) {
                throw std::invalid_argument(option + " takes " + what);
            }
            return argv[i];
        };
        if (option == "--rounds") {
            rounds = parse_rounds(value("a number"));
        } else if (option == "--filter") {
            options.filter = value("a text");
        } else if (option == "--json") {
            options.json = value("a file name");
        } else if (option == "--quick") {
            options.settings.quick = true;
        } else if (option == "--check") {
            options.check = true;
        } else if (option == "--help") {
            options.help = true;
        } else {
            throw std::invalid_argument("unknown option '" + option + "' (--help lists them)");
        }
    }
    options.settings.rounds = rounds.value_or(options.settings.quick ? 2 : 9);
    return options;
}

}  // namespace benchmark
