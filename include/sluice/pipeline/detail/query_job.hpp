// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/query_source.hpp>
#include <sluice/query.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/sync/slot.hpp>

#include <concepts>
#include <ranges>
#include <type_traits>
#include <utility>

namespace sluice::detail {

// A query on its way through a window, from the input to its result, with its place.
template <class ResultType>
struct QueryJob : QueryPlace {
    using Result = ResultType;
    using Stored = Result;  // by a batch

    QueryJob() = default;
    QueryJob(Window* its_window, Slot its_place) : QueryPlace(its_window, std::move(its_place)) {}

    void take(Query&& query) { result.query = std::move(query); }
    void take(const Query& query) { result.query = query; }

    Result&& finished() noexcept { return std::move(result); }
    void cut_short() noexcept { result.unfinished = true; }  // by a drain

    Result result;
};

// Gives a job what an item of its input was turned into. Returns false if that is an empty optional.
template <class Job, class Item>
bool take(Job& job, Item&& item) {
    if constexpr (requires { job.take(std::forward<Item>(item)); }) {
        job.take(std::forward<Item>(item));
    } else {
        if (!item) {
            return false;
        }
        job.take(*std::forward<Item>(item));
    }
    return true;
}

// A range or an asynchronous source of what a job takes.
template <class Item, class Job>
concept TakenBy = requires(Job& job, Item&& item) { job.take(std::forward<Item>(item)); } ||
                  (is_optional<std::remove_cvref_t<Item>> &&
                   requires(Job& job, Item&& item) { job.take(*std::forward<Item>(item)); });

// A range that was passed as an rvalue, and is no view: its elements are moved out of it.
template <class Range>
inline constexpr bool is_owned_range =
    !std::is_lvalue_reference_v<Range> && !std::ranges::view<std::remove_cvref_t<Range>>;

template <class Range>
using range_item_t = std::conditional_t<is_owned_range<Range>, std::ranges::range_rvalue_reference_t<Range>,
                                        std::ranges::range_reference_t<Range>>;

template <class Range, class Projection, class Job>
concept ItemRange = std::ranges::input_range<Range> && std::ranges::viewable_range<Range> &&
                    std::invocable<Projection&, range_item_t<Range>> &&
                    TakenBy<std::invoke_result_t<Projection&, range_item_t<Range>>, Job>;

template <class Source, class Projection, class Job>
concept ItemsFrom = ItemSource<Source> && std::invocable<Projection&, typename next_value_t<Source>::value_type> &&
                    TakenBy<std::invoke_result_t<Projection&, typename next_value_t<Source>::value_type>, Job>;

}  // namespace sluice::detail
