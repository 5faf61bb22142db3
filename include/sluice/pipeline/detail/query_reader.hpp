// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/query_job.hpp>

#include <cstddef>
#include <functional>
#include <iterator>
#include <optional>
#include <ranges>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// Whether a view adapts a container that it owns.
template <class View>
inline constexpr bool is_view_of_owned = false;
template <class Container>
inline constexpr bool is_view_of_owned<std::ranges::owning_view<Container>> = true;
template <class View>
    requires requires(View view) { std::move(view).base(); }
inline constexpr bool is_view_of_owned<View> = is_view_of_owned<decltype(std::declval<View>().base())>;

// Takes queries out of a range one at a time. Never reads ahead: advances the iterator only when the next query is
// wanted, since that may be expensive, or a wait, for a lazy range.
//
// Moves the elements out of a container that was passed as an rvalue, and copies others.
template <class Range, class Projection>
class QueryReader {
    static constexpr bool owned = is_owned_range<Range>;

public:
    static constexpr bool is_asynchronous = false;
    static constexpr bool must_be_closed = false;
    static constexpr bool owns_stream = false;
    static constexpr bool has_rest =  // that nobody else has, and that is known to end
        std::ranges::sized_range<Range> && (owned || is_view_of_owned<std::remove_cvref_t<Range>>);

    QueryReader(Range&& range, Projection projection)
        : view_(std::views::all(std::forward<Range>(range))), projection_(std::move(projection)) {}

    // Gives `job` the next query, or returns false once the range has ended or thrown. Throws what the range throws.
    template <class Job>
    bool pull(Job& job) {
        if (ended_) {
            return false;
        }
        ended_ = true;  // unless everything below succeeds
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
                found = take(job, std::invoke(projection_, std::ranges::iter_move(*at_)));
            } else {
                found = take(job, std::invoke(projection_, **at_));
            }
        }
        ended_ = false;
        return true;
    }

    // Leaves nothing to be pulled.
    void end() noexcept { ended_ = true; }

    // The number of queries, or 0 if it is unknown.
    std::size_t size_hint() {
        if constexpr (std::ranges::sized_range<View>) {
            return static_cast<std::size_t>(std::ranges::size(view_));
        } else {
            return 0;
        }
    }

private:
    using View = std::views::all_t<Range>;

    View view_;
    Projection projection_;
    std::optional<std::ranges::iterator_t<View>> at_;  // the query that was taken last
    bool ended_ = false;
};

}  // namespace sluice::detail
