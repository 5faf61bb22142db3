// SPDX-License-Identifier: BSL-1.0
// Peers that do not run on Asio: programs of their own, which say themselves what a query has cost them.
#pragma once

#include "harness.hpp"
#include "models.hpp"

#include <cstddef>
#include <optional>

namespace benchmark {

/// A flow graph of oneTBB, its functions being plain ones; nothing where there was no oneTBB to build it with.
std::optional<Variant> tbb_flow_graph(std::size_t queries);

/// The obvious solution in asyncio; nothing where there is no python3.
std::optional<Variant> asyncio(Suspends suspends, std::size_t queries, Bound bound);

}  // namespace benchmark
