// SPDX-License-Identifier: BSL-1.0
// README.md and the documents that it links to: their code is compiled, and their links lead somewhere.
#include <catch2/catch_test_macros.hpp>

#include <array>
#include <cctype>
#include <cstddef>
#include <filesystem>
#include <fstream>
#include <set>
#include <sstream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace {

namespace fs = std::filesystem;

const fs::path root(SLUICE_SOURCE_DIR);

constexpr std::array<std::string_view, 6> documents{
    "README.md",           "examples/README.md",   ".github/CONTRIBUTING.md",
    ".github/SECURITY.md", ".github/CHANGELOG.md", "tests/benchmark/README.md"};

std::vector<std::string> lines_of(const fs::path& file) {
    std::ifstream in(file);
    REQUIRE(in);
    std::vector<std::string> lines;
    for (std::string line; std::getline(in, line);) {
        lines.push_back(line);
    }
    return lines;
}

// The line and its end, without its indentation.
std::string unindented(const std::string& line) {
    const auto begin = line.find_first_not_of(' ');
    return (begin == std::string::npos ? "" : line.substr(begin)) + '\n';
}

// A document, taken apart.
struct Document {
    std::vector<std::string> code;  // the blocks that are fenced as C++, unindented
    std::string prose;              // what is neither fenced nor in backticks
    std::set<std::string> anchors;  // of the headings

    explicit Document(const fs::path& file) {
        std::string fence;
        for (const std::string& line : lines_of(file)) {
            if (line.starts_with("```")) {
                fence = fence.empty() ? line : "";
                if (fence == "```cpp") {
                    code.emplace_back();
                }
            } else if (fence == "```cpp") {
                code.back() += unindented(line);
            } else if (fence.empty()) {
                if (line.starts_with('#')) {
                    anchors.insert(anchor(line.substr(line.find(' ') + 1)));
                }
                add_prose(line);
            }
        }
    }

    // The destinations of its links that are not addresses.
    std::vector<std::string> links() const {
        std::vector<std::string> found;
        for (std::size_t at = 0; (at = prose.find("](", at)) != std::string::npos;) {
            at += 2;
            const std::string link = prose.substr(at, prose.find(')', at) - at);
            if (link.find("://") == std::string::npos) {
                found.push_back(link);
            }
        }
        return found;
    }

private:
    void add_prose(const std::string& line) {
        bool in_code = false;
        for (const char c : line) {
            in_code ^= c == '`';
            if (!in_code) {
                prose += c;
            }
        }
        prose += '\n';
    }

    // The anchor that is made of a heading.
    static std::string anchor(const std::string& heading) {
        std::string name;
        for (const char each : heading) {
            const auto c = static_cast<unsigned char>(each);
            if (std::isalnum(c) || c == '-' || c == '_') {
                name += static_cast<char>(std::tolower(c));
            } else if (c == ' ') {
                name += '-';
            }
        }
        return name;
    }
};

// The examples in the comments of a header, unindented.
std::vector<std::string> examples_in(const fs::path& header) {
    std::vector<std::string> code;
    bool inside = false;
    for (const std::string& line : lines_of(header)) {
        if (line.find("@endcode") != std::string::npos) {
            inside = false;
        } else if (line.find("@code") != std::string::npos) {
            inside = true;
            code.emplace_back();
        } else if (inside) {
            code.back() += unindented(line.substr(line.find("///") + 3));
        }
    }
    return code;
}

TEST_CASE("documents: every block of code, and every example in a header, is part of a program that is compiled",
          "[readme]") {
    std::string compiled;
    const auto add = [&](const fs::path& file) {
        for (const std::string& line : lines_of(file)) {
            compiled += unindented(line);
        }
    };
    add(root / "tests" / "readme_snippets.cpp");
    for (const auto& entry : fs::recursive_directory_iterator(root / "examples")) {
        if (entry.path().extension() == ".cpp" || entry.path().extension() == ".hpp") {
            add(entry.path());
        }
    }
    std::size_t blocks = 0;
    const auto check = [&](const std::vector<std::string>& code) {
        for (const std::string& block : code) {
            INFO(block);
            CHECK(compiled.find(block) != std::string::npos);
            ++blocks;
        }
    };
    for (const std::string_view name : documents) {
        check(Document(root / name).code);
    }
    CHECK(blocks >= 30);
    blocks = 0;
    for (const auto& entry : fs::recursive_directory_iterator(root / "include")) {
        if (entry.is_regular_file()) {
            check(examples_in(entry.path()));
        }
    }
    CHECK(blocks >= 7);
}

TEST_CASE("documents: every link leads to a file, and to a heading in it", "[readme]") {
    std::size_t links = 0;
    for (const std::string_view name : documents) {
        const fs::path file = root / name;
        for (const std::string& link : Document(file).links()) {
            INFO(name << " links to " << link);
            const auto hash = link.find('#');
            const fs::path target = hash == 0 ? file : file.parent_path() / link.substr(0, hash);
            const bool exists = fs::exists(target);
            CHECK(exists);
            if (exists && hash != std::string::npos) {
                CHECK(Document(target).anchors.contains(link.substr(hash + 1)));
            }
            ++links;
        }
    }
    CHECK(links >= 50);
}

TEST_CASE("readme: every public header is linked to", "[readme]") {
    const std::vector<std::string> found = Document(root / "README.md").links();
    const std::set<std::string> links(found.begin(), found.end());
    std::size_t headers = 0;
    for (const auto& entry : fs::recursive_directory_iterator(root / "include")) {
        const std::string header = entry.path().lexically_relative(root).generic_string();
        if (entry.path().extension() == ".hpp" && header.find("/detail/") == std::string::npos) {
            INFO(header);
            CHECK(links.contains(header));
            ++headers;
        }
    }
    CHECK(headers >= 20);
}

}  // namespace
