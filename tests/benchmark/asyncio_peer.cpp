// SPDX-License-Identifier: BSL-1.0
#include "child_process.hpp"
#include "peers.hpp"

#include <boost/json.hpp>

#include <optional>
#include <string>
#include <vector>

namespace benchmark {

std::optional<Variant> asyncio(Suspends suspends, const Settings& settings, Bound bound) {
    const std::string python = SLUICE_BENCHMARK_PYTHON;
    if (python.empty()) {
        return std::nullopt;
    }
    const std::string queries = std::to_string(settings.size(20'000));
    std::vector<std::string> command{python, SLUICE_BENCHMARK_ASYNCIO, "--queries", queries};
    if (suspends == Suspends::once) {
        command.emplace_back("--yields");
    }
    const auto measure = [command] {
        return boost::json::parse(run_child(command).output).at("ns_per_query").to_number<double>();
    };
    return Variant{"asyncio, " + queries + " queries", measure, bound};
}

}  // namespace benchmark
