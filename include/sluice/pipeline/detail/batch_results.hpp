// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <utility>
#include <vector>

namespace sluice::detail {

// The results of a batch, in the order of its queries.
template <class Result>
class BatchResults {
public:
    explicit BatchResults(std::size_t size_hint) {
        constexpr std::size_t most = 1 << 20;  // a huge range may be endless
        results_.reserve(std::min(size_hint, most));
    }

    void begin() { results_.emplace_back(); }

    void end(std::size_t index, auto& job) { results_[index] = std::move(job.result); }

    [[noreturn]] static void fail(const std::exception_ptr& error) { std::rethrow_exception(error); }

    std::vector<Result> take() { return std::move(results_); }

private:
    std::vector<Result> results_;
};

}  // namespace sluice::detail
