// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/window.hpp>
#include <sluice/sync/detail/intrusive_list.hpp>

#include <cstddef>
#include <memory>

namespace sluice::detail {

// Numbers of queries, by their ends.
struct QueryEnds {
    std::size_t completed = 0;
    std::size_t dead = 0;
    std::size_t cancelled = 0;
    std::size_t unfinished = 0;
};

// All queries that a pipeline has taken in, and how they ended. Those that are in neither number of ends are in work,
// or were destroyed with their context.
struct QueryCounts : QueryEnds {
    std::size_t taken = 0;

    std::size_t in_work() const noexcept { return taken - completed - dead - cancelled - unfinished; }
};

// What can be asked of a pipeline of any type.
class PipelineNumbers {
public:
    explicit PipelineNumbers(std::ptrdiff_t window) : window_(window) {}

    PipelineNumbers(const PipelineNumbers&) = delete;
    PipelineNumbers& operator=(const PipelineNumbers&) = delete;

    std::ptrdiff_t window() const noexcept { return window_; }
    void set_window(std::ptrdiff_t size) {
        window_ = size;
        windows_.for_each([size](Window& window) { window.resize(size); });
    }

    void add_window(Window& window) noexcept { windows_.push_back(window); }

    // Calls `visit` with each window of a batch or stream that runs.
    template <class Visit>
    void for_each_window(Visit visit) {
        windows_.for_each(visit);
    }

    // Whoever reads them may outlive the pipeline.
    std::shared_ptr<const QueryCounts> counts() const noexcept { return counts_; }

protected:
    ~PipelineNumbers() = default;

    QueryCounts& counted() noexcept { return *counts_; }

private:
    std::ptrdiff_t window_;
    IntrusiveList<Window> windows_;
    const std::shared_ptr<QueryCounts> counts_ = std::make_shared<QueryCounts>();
};

}  // namespace sluice::detail
