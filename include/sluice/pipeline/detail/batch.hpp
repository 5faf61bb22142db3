// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/query_reader.hpp>
#include <sluice/query.hpp>
#include <sluice/sync/task_group.hpp>

#include <boost/asio/awaitable.hpp>

#include <algorithm>
#include <cstddef>
#include <optional>
#include <utility>
#include <vector>

namespace sluice::detail {

// The state that the workers of one batch share. A worker takes the next query when it has finished its last one.
template <class State, class Range>
class Batch {
public:
    using Result = typename State::Result;
    using Executor = typename State::Executor;

    Batch(State& state, QueryReader<Range> queries) : state_(state), queries_(std::move(queries)) {
        constexpr std::size_t most = 1 << 20;  // a huge range may be endless
        results_.reserve(std::min(queries_.size_hint(), most));
    }

    // The body of the group that the batch runs in.
    boost::asio::awaitable<void, Executor> begin(TaskGroup& group) {
        add_worker(group);
        co_return;
    }

    std::vector<Result> take_results() { return std::move(results_); }

private:
    void add_worker(TaskGroup& group) {
        ++workers_;
        group.spawn([this, &group] { return work(group); });
    }

    boost::asio::awaitable<void, Executor> work(TaskGroup& group) {
        while (!group.cancelled()) {
            std::optional<Query> query = queries_.pull();
            if (!query) {
                co_return;
            }
            const std::size_t index = results_.size();
            results_.emplace_back();
            if (workers_ < state_.window) {
                add_worker(group);
            }
            Result result(std::move(*query));
            co_await state_.process(result);
            results_[index] = std::move(result);
        }
    }

    State& state_;
    QueryReader<Range> queries_;
    std::vector<Result> results_;
    std::ptrdiff_t workers_ = 0;
};

}  // namespace sluice::detail
