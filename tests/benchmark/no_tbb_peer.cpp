// SPDX-License-Identifier: BSL-1.0
// Built instead of tbb_peer.cpp where there is no oneTBB.
#include "peers.hpp"

#include <optional>

namespace benchmark {

std::optional<Variant> tbb_flow_graph(const Job&) { return std::nullopt; }

}  // namespace benchmark
