// SPDX-License-Identifier: BSL-1.0
// The pipeline of the benchmark as a flow graph of oneTBB: a node per stage with the stage's limit. It fills in the
// same results as sluice, and prints the wall-clock time per query, in nanoseconds, as JSON.
//
// It is a separate program, since shared pointers count with atomics once a process has had a second thread.
#include "models.hpp"

#include <oneapi/tbb/flow_graph.h>

#include <chrono>
#include <cstddef>
#include <iostream>
#include <string>
#include <utility>
#include <vector>

namespace {

using namespace benchmark;
using Clock = std::chrono::steady_clock;

// The index of a query flows through the graph.
class FlowGraph {
public:
    explicit FlowGraph(const std::vector<sluice::Query>& queries) : queries_(queries) {
        oneapi::tbb::flow::make_edge(classify_, extract_);
        oneapi::tbb::flow::make_edge(extract_, generate_);
    }

    std::vector<Result> run() {
        results_.resize(queries_.size());
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
                result.query = queries_[index];
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

    const std::vector<sluice::Query>& queries_;
    const StageNames names_;
    std::vector<Result> results_;
    oneapi::tbb::flow::graph graph_;
    Node classify_ = node(0, [](Result& result) { result.intent = 1; });
    Node extract_ = node(1, [](Result& result) { result.entities = 2; });
    Node generate_ = node(2, [](Result& result) { result.response = *result.intent + *result.entities; });
};

}  // namespace

int main(int argc, char** argv) {
    if (argc != 3 || std::string(argv[1]) != "--queries") {
        std::cerr << "usage: tbb_pipeline --queries N\n";
        return 2;
    }
    const std::vector<sluice::Query> queries = make_queries(std::stoul(argv[2]));
    const auto started = Clock::now();
    FlowGraph graph(queries);
    const std::vector<Result> results = graph.run();
    const std::chrono::duration<double, std::nano> elapsed = Clock::now() - started;
    for (const Result& result : results) {
        if (!result.completed || result.response != 3) {
            std::cerr << "tbb_pipeline: a query did not complete\n";
            return 1;
        }
    }
    std::cout << "{\"ns_per_query\": " << elapsed.count() / static_cast<double>(results.size()) << "}\n";
}
