// SPDX-License-Identifier: BSL-1.0
#include "pipelines.hpp"

#include <cstddef>
#include <vector>

namespace benchmark {

void verify(const std::vector<Result>& results, const Job& job) {
    const std::size_t count = job.queries->size();
    require(results.size() == count, "every query has a result");
    std::size_t attempts = 0;
    for (const Result& result : results) {
        require(result.completed && result.response == 3 && result.stage_results.size() == stages,
                "every query completes");
        for (const auto& stage : result.stage_results) {
            attempts += static_cast<std::size_t>(stage.attempts);
        }
    }
    std::size_t failures = 0;
    if (job.failures == Failures::a_tenth) {
        for (std::size_t stage = 0; stage < stages; ++stage) {
            failures += (count + 9 - 3 * stage) / 10;
        }
    }
    require(attempts == stages * count + failures, "there are as many retries as failures");
}

}  // namespace benchmark
