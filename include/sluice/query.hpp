// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/shared_string.hpp>

#include <chrono>
#include <concepts>
#include <functional>
#include <optional>
#include <ranges>
#include <string>
#include <type_traits>
#include <utility>

namespace sluice {

/// The input of a pipeline.
struct Query {
    SharedString id;
    std::string text;
    std::chrono::system_clock::time_point timestamp;  ///< When the query came in. The pipeline only carries it.

    /// How long the query may take, from when its pipeline takes it in, the wait for a place in the window included.
    /// Then it is late: an attempt that runs is cancelled, as by the timeout of its stage; no wait for a slot, a rate,
    /// a pause, a breaker, a backoff or a place lasts longer; and no further attempt begins. The stage run fails with
    /// Reason::deadline. It fails before that if it is certain to wait until then: in a backoff, a pause, or the open
    /// time of a breaker that would end too late. (How long a slot or a rate takes depends on the calls that run.) What
    /// else a route awaits is not cut short, and dead letters are delivered.
    ///
    /// Zero and less: it is late at once. One of more than a century is a century. Default: no timeout. A query that
    /// goes through a pipeline again, such as a redriven dead letter, begins with the whole timeout.
    std::optional<std::chrono::nanoseconds> timeout = std::nullopt;

    Query() = default;
    Query(SharedString query_id, std::string query_text,
          std::chrono::system_clock::time_point when = std::chrono::system_clock::now())
        : id(std::move(query_id)), text(std::move(query_text)), timestamp(when) {}
};

namespace detail {

// Turns an item into a query, or into nothing.
template <class Projection, class Item>
concept QueryProjection = std::invocable<Projection&, Item> &&
                          std::convertible_to<std::invoke_result_t<Projection&, Item>, std::optional<Query>>;

}  // namespace detail

/// A range that process_batch() and process_stream() can take queries from: an input range, such as a container, a view
/// or a generator, whose elements `projection` turns into queries. An lvalue is stored by reference; an rvalue
/// container is moved in. (A Pipeline also takes the same with Checkpoints instead of queries, although this concept
/// does not hold for it.)
template <class Range, class Projection = std::identity>
concept QueryRange = std::ranges::input_range<Range> && std::ranges::viewable_range<Range> &&
                     detail::QueryProjection<Projection, std::ranges::range_reference_t<Range>>;

}  // namespace sluice
