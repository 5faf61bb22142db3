// SPDX-License-Identifier: BSL-1.0
#include <catch2/catch_test_macros.hpp>

#include <filesystem>
#include <fstream>
#include <sstream>
#include <string>
#include <vector>

namespace {

std::string without_indentation(std::istream& in) {
    std::string text;
    for (std::string line; std::getline(in, line);) {
        const auto begin = line.find_first_not_of(' ');
        text += begin == std::string::npos ? "" : line.substr(begin);
        text += '\n';
    }
    return text;
}

std::string read(const std::filesystem::path& file) {
    std::ifstream in(file);
    REQUIRE(in);
    return without_indentation(in);
}

// The blocks of README.md that are fenced as C++.
std::vector<std::string> code_blocks(const std::string& readme) {
    const std::string fence = "```";
    std::vector<std::string> blocks;
    for (std::size_t at = 0; (at = readme.find(fence + "cpp\n", at)) != std::string::npos;) {
        at += fence.size() + 4;
        const auto end = readme.find(fence + '\n', at);
        blocks.push_back(readme.substr(at, end - at));
        at = end;
    }
    return blocks;
}

TEST_CASE("readme: every block of code stands in a program that is compiled", "[readme]") {
    const std::filesystem::path root(SLUICE_SOURCE_DIR);
    std::string compiled = read(root / "tests" / "readme_snippets.cpp");
    for (const auto& entry : std::filesystem::directory_iterator(root / "examples")) {
        if (entry.path().extension() == ".cpp") {
            compiled += read(entry.path());
        }
    }
    const auto blocks = code_blocks(read(root / "README.md"));
    CHECK(blocks.size() >= 5);
    for (const auto& block : blocks) {
        INFO(block);
        CHECK(compiled.find(block) != std::string::npos);
    }
}

}  // namespace
