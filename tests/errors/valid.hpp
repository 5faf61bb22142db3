// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/inference_pipeline.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include <string>

// The valid parts of the pipelines in these programs.
namespace valid {

inline boost::asio::awaitable<int> model(const std::string&) { co_return 1; }
inline boost::asio::awaitable<int> generate(int, int, const std::string&) { co_return 1; }

struct Sink {
    void put(const sluice::Query&, const sluice::StageResult<>&) {}
};

inline constexpr sluice::StageLimits limits{1, 1, 1};

}  // namespace valid
