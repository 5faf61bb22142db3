// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>

#include <concepts>
#include <cstddef>
#include <functional>
#include <iterator>
#include <optional>
#include <ranges>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// Takes queries out of a range one at a time. Never reads ahead: advances the iterator only when the next query is
// wanted, since that may be expensive, or a wait, for a lazy range.
//
// Moves the elements out of a container that was passed as an rvalue, and copies others.
template <class Range, class Projection>
class QueryReader {
public:
    static constexpr bool is_asynchronous = false;
    static constexpr bool must_be_closed = false;

    QueryReader(Range&& range, Projection projection)
        : view_(std::views::all(std::forward<Range>(range))), projection_(std::move(projection)) {}

    // Stores the next query, or returns false at the end of the range. Throws what the range throws. Not to be called
    // again after either.
    bool pull(Query& query) {
        for (bool found = false; !found;) {
            if (at_) {
                ++*at_;
            } else {
                at_.emplace(std::ranges::begin(view_));
            }
            if (*at_ == std::ranges::end(view_)) {
                return false;
            }
            if constexpr (owned) {
                found = project(std::ranges::iter_move(*at_), query);
            } else {
                found = project(**at_, query);
            }
        }
        return true;
    }

    // The number of queries, or 0 if it is unknown.
    std::size_t size_hint() {
        if constexpr (std::ranges::sized_range<View>) {
            return static_cast<std::size_t>(std::ranges::size(view_));
        } else {
            return 0;
        }
    }

private:
    // Returns whether the element has become a query.
    template <class Element>
    bool project(Element&& element, Query& query) {
        using Projected = std::invoke_result_t<Projection&, Element>;
        if constexpr (std::convertible_to<Projected, Query>) {
            query = std::invoke(projection_, std::forward<Element>(element));
            return true;
        } else {
            std::optional<Query> projected = std::invoke(projection_, std::forward<Element>(element));
            const bool found = projected.has_value();
            if (found) {
                query = *std::move(projected);
            }
            return found;
        }
    }

    using View = std::views::all_t<Range>;
    static constexpr bool owned = !std::is_lvalue_reference_v<Range> && !std::ranges::view<std::remove_cvref_t<Range>>;

    View view_;
    Projection projection_;
    std::optional<std::ranges::iterator_t<View>> at_;  // the query that was taken last
};

}  // namespace sluice::detail
