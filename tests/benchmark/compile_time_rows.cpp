// SPDX-License-Identifier: BSL-1.0
// The time that it takes to compile a file that includes all of sluice.
#include "child_process.hpp"
#include "rows.hpp"

#include <stdlib.h>

#include <filesystem>
#include <fstream>
#include <memory>
#include <set>
#include <stdexcept>
#include <string>
#include <vector>

namespace benchmark {

namespace {

namespace fs = std::filesystem;

/// A folder that is removed with this object.
class TemporaryFolder {
public:
    TemporaryFolder() {
        std::string name = (fs::temp_directory_path() / "sluice_benchmark.XXXXXX").string();
        if (!mkdtemp(name.data())) {
            throw std::runtime_error("cannot create a folder for temporary files");
        }
        path_ = name;
    }

    ~TemporaryFolder() {
        std::error_code ignored;
        fs::remove_all(path_, ignored);
    }

    TemporaryFolder(const TemporaryFolder&) = delete;
    TemporaryFolder& operator=(const TemporaryFolder&) = delete;

    const fs::path& path() const { return path_; }

private:
    fs::path path_;
};

/// The lines that include Asio in the headers of sluice.hpp, which are all except those of testing/.
std::set<std::string> asio_includes() {
    std::set<std::string> includes;
    for (const auto& entry : fs::recursive_directory_iterator(fs::path(SLUICE_BENCHMARK_INCLUDE) / "sluice")) {
        if (!entry.is_regular_file() || entry.path().parent_path().filename() == "testing") {
            continue;
        }
        std::ifstream header(entry.path());
        for (std::string line; std::getline(header, line);) {
            if (line.starts_with("#include <boost/asio/")) {
                includes.insert(line);
            }
        }
    }
    return includes;
}

double compile_milliseconds(const fs::path& source) {
    std::vector<std::string> command{SLUICE_BENCHMARK_COMPILER, "-std=c++20", "-O2", "-I" SLUICE_BENCHMARK_INCLUDE};
    if (const std::string boost = SLUICE_BENCHMARK_BOOST_INCLUDE; !boost.empty()) {
        command.push_back("-I" + boost);
    }
    command.insert(command.end(), {"-c", source.string(), "-o", "/dev/null"});
    return run_child(command).cpu_time / 1e6;
}

}  // namespace

std::vector<Row> compile_time_rows(const Settings& settings) {
    setenv("CCACHE_DISABLE", "1", 1);  // in case the compiler is ccache under another name
    const auto folder = std::make_shared<const TemporaryFolder>();
    std::ofstream(folder->path() / "sluice.cpp") << "#include <sluice/sluice.hpp>\n";
    std::ofstream asio(folder->path() / "asio.cpp");
    for (const std::string& include : asio_includes()) {
        asio << include << '\n';
    }
    return {{"compile time of a file that includes sluice.hpp",
             "ms",
             {"sluice", [=] { return compile_milliseconds(folder->path() / "sluice.cpp"); }},
             {{"the same Asio headers alone", [=] { return compile_milliseconds(folder->path() / "asio.cpp"); },
               at_most(1.3)}},
             {},
             Row::Kind::time,
             true,
             settings.quick ? 1 : 5}};
}

}  // namespace benchmark
