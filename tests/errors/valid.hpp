// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/inference_pipeline.hpp>
#include <sluice/pipeline/pipeline.hpp>
#include <sluice/pipeline/run.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/stage.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/io_context.hpp>

#include <optional>
#include <string>

// The valid parts of the pipelines in these programs.
namespace valid {

inline boost::asio::awaitable<int> model(const std::string&) { co_return 1; }
inline boost::asio::awaitable<int> generate(int, int, const std::string&) { co_return 1; }

struct Sink {
    void put(const sluice::Query&, const sluice::StageResult<>&) {}
};

inline constexpr sluice::StageLimits limits{1, 1, 1};

struct Record {
    std::optional<int> answer;
};

using Run = sluice::Run<Record>;

inline boost::asio::awaitable<void> route(Run&) { co_return; }

using Function = boost::asio::awaitable<int> (*)(const std::string&);

inline sluice::Stage<Function> stage(boost::asio::io_context& context) {
    return sluice::Stage<Function>(context.get_executor(), "judge", 1, &model);
}

}  // namespace valid
