// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>
#include <sluice/result.hpp>

#include <cstddef>
#include <utility>
#include <vector>

namespace support {

/// A dead-letter sink that stores each failed query with the reason. Like the pipeline, it belongs to one thread or
/// strand.
class DeadLetterQueue {
public:
    using Item = std::pair<sluice::Query, sluice::StageResult<>>;

    void put(const sluice::Query& query, const sluice::StageResult<>& stage_result) {
        items_.emplace_back(query, stage_result);
    }

    /// Removes and returns all items.
    std::vector<Item> drain() { return std::exchange(items_, {}); }

    std::size_t size() const noexcept { return items_.size(); }

private:
    std::vector<Item> items_;
};

}  // namespace support
