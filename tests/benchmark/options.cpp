// SPDX-License-Identifier: BSL-1.0
#include "options.hpp"

#include "../../examples/arguments.hpp"

#include <optional>
#include <string>

namespace benchmark {

Options parse(int argc, char** argv) {
    Options options;
    std::optional<int> rounds;
    for (support::Arguments arguments(argc, argv); arguments.next();) {
        const std::string& option = arguments.option();
        if (option == "--rounds") {
            rounds = arguments.number(1, 10'000);
        } else if (option == "--filter") {
            options.filter = arguments.value("a text");
        } else if (option == "--json") {
            options.json = arguments.value("a file name");
        } else if (option == "--quick") {
            options.settings.quick = true;
        } else if (option == "--check") {
            options.check = true;
        } else if (option == "--help") {
            options.help = true;
        } else {
            arguments.unknown();
        }
    }
    options.settings.rounds = rounds.value_or(options.settings.quick ? 2 : 9);
    return options;
}

}  // namespace benchmark
