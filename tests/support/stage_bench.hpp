// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "models.hpp"
#include "task.hpp"

#include <sluice/result.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/testing/run.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/system/system_error.hpp>
#include <catch2/catch_test_macros.hpp>

#include <chrono>
#include <cstddef>
#include <string>
#include <utility>

namespace test {

using StageRun = Task<sluice::StageResult<std::string>>;

/// One model behind one stage, in virtual time.
struct StageBench {
    Model model{"answer", std::chrono::milliseconds(10)};
    asio::io_context context{1};
    sluice::Stage<Endpoint, VirtualTimer> stage;

    explicit StageBench(std::ptrdiff_t limit, const StageOptions& options = {})
        : stage(timed(context.get_executor()), "answer", limit, Endpoint{&model}, options) {}

    StageRun start(std::string text) {
        return StageRun(context.get_executor(),
                        [this, text = std::move(text)] { return stage.run("id-" + text, std::string(text)); });
    }
    std::chrono::nanoseconds run() { return sluice::testing::run(context); }
    bool idle() const { return stage.endpoint().active() == 0 && stage.endpoint().waiting() == 0; }
};

/// Runs one query through `stage` and returns its result.
template <class StageType, class... Args>
auto run_one(asio::io_context& context, StageType& stage, Args&... args) {
    using Result = typename decltype(stage.run("q", args...))::value_type;
    Task<Result> task(context.get_executor(), [&] { return stage.run("q", args...); });
    sluice::testing::run(context);
    REQUIRE(task.succeeded());
    return std::move(task.value());
}

/// Model functions.
inline asio::awaitable<int> increment(int value) { co_return value + 1; }

inline asio::awaitable<int> throw_operation_aborted(int) {
    co_await yield();
    throw boost::system::system_error(asio::error::operation_aborted);
}

}  // namespace test
