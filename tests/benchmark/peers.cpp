// SPDX-License-Identifier: BSL-1.0
#include "peers.hpp"

#include "child_process.hpp"

#include <boost/json.hpp>

#include <cstddef>
#include <optional>
#include <string>
#include <utility>
#include <vector>

namespace benchmark {

namespace {

Variant program(std::string name, std::vector<std::string> command, std::size_t queries,
                std::optional<Bound> bound = {}) {
    command.insert(command.end(), {"--queries", std::to_string(queries)});
    return {std::move(name),
            [command = std::move(command)] {
                return boost::json::parse(run_child(command).output).at("ns_per_query").to_number<double>();
            },
            bound};
}

}  // namespace

std::optional<Variant> tbb_flow_graph(std::size_t queries) {
    const std::string path = SLUICE_BENCHMARK_TBB;
    if (path.empty()) {
        return std::nullopt;
    }
    return program("oneTBB flow graph, all threads", {path}, queries);
}

std::optional<Variant> asyncio(Suspends suspends, std::size_t queries, Bound bound) {
    const std::string python = SLUICE_BENCHMARK_PYTHON;
    if (python.empty()) {
        return std::nullopt;
    }
    std::vector<std::string> command{python, SLUICE_BENCHMARK_ASYNCIO};
    if (suspends == Suspends::once) {
        command.emplace_back("--yields");
    }
    return program("asyncio", std::move(command), queries, bound);
}

}  // namespace benchmark
