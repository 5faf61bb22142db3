// SPDX-License-Identifier: BSL-1.0
// Peers that do not run on Asio.
#pragma once

#include "harness.hpp"
#include "models.hpp"
#include "pipelines.hpp"

#include <optional>

namespace benchmark {

/// A flow graph of oneTBB, its functions being plain ones; nothing where there was no oneTBB to build with.
std::optional<Variant> tbb_flow_graph(const Job& job);

/// A child process that runs the asyncio pipeline; nothing where there is no python3. Its size is its own, and smaller,
/// which is to its advantage.
std::optional<Variant> asyncio(Suspends suspends, const Settings& settings, Bound bound);

}  // namespace benchmark
