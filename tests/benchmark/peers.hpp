// SPDX-License-Identifier: BSL-1.0
// Peers that do not run on Asio: separate programs, which report their cost per query.
#pragma once

#include "harness.hpp"
#include "models.hpp"

#include <cstddef>
#include <optional>

namespace benchmark {

/// A flow graph of oneTBB with plain functions. Empty if oneTBB was not found.
std::optional<Variant> tbb_flow_graph(std::size_t queries);

/// The obvious solution in asyncio. Empty if python3 was not found.
std::optional<Variant> asyncio(Suspends suspends, std::size_t queries, Bound bound);

}  // namespace benchmark
