// SPDX-License-Identifier: BSL-1.0
#include "handwritten.hpp"
#include "peers.hpp"

#include <oneapi/tbb/flow_graph.h>

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <vector>

namespace benchmark {

namespace {

using Clock = std::chrono::steady_clock;

/// A node per stage with the stage's limit; what flows is the index of a query. Fills the results that sluice fills.
class FlowGraph {
public:
    explicit FlowGraph(const Job& job) : job_(job) {
        oneapi::tbb::flow::make_edge(classify_, extract_);
        oneapi::tbb::flow::make_edge(extract_, generate_);
    }

    std::vector<Result> run() {
        results_.resize(job_.queries->size());
        for (std::size_t i = 0; i < results_.size(); ++i) {
            classify_.try_put(i);
        }
        graph_.wait_for_all();
        return std::move(results_);
    }

private:
    using Node = oneapi::tbb::flow::function_node<std::size_t, std::size_t>;

    Node node(std::size_t stage, void (*model)(Result&)) {
        return Node(graph_, static_cast<std::size_t>(limits[stage]), [=, this](std::size_t index) {
            Result& result = results_[index];
            if (stage == 0) {
                result.query = (*job_.queries)[index];
                result.stage_results.reserve(stages);
            }
            sluice::StageResult<>& record = result.stage_results.emplace_back(result.query.id, names_[stage]);
            const auto started = Clock::now();
            model(result);
            record.latency = Clock::now() - started;
            record.attempts = 1;
            record.success = true;
            result.completed = stage + 1 == stages;
            return index;
        });
    }

    const Job& job_;
    const StageNames names_;
    std::vector<Result> results_;
    oneapi::tbb::flow::graph graph_;
    Node classify_ = node(0, [](Result& result) { result.intent = 1; });
    Node extract_ = node(1, [](Result& result) { result.entities = 2; });
    Node generate_ = node(2, [](Result& result) { result.response = *result.intent + *result.entities; });
};

// The time that goes by, since the threads share the work.
double time_per_query(const Job& job) {
    const auto started = Clock::now();
    FlowGraph graph(job);
    const std::vector<Result> results = graph.run();
    const std::chrono::duration<double, std::nano> elapsed = Clock::now() - started;
    verify(results, job);
    return elapsed.count() / static_cast<double>(results.size());
}

}  // namespace

std::optional<Variant> tbb_flow_graph(const Job& job) {
    return Variant{"oneTBB flow graph, all threads", [=] { return time_per_query(job); }};
}

}  // namespace benchmark
