// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/input.hpp>
#include <sluice/pipeline/detail/map_state.hpp>
#include <sluice/pipeline/detail/pipeline_operations.hpp>
#include <sluice/pipeline/query_source.hpp>
#include <sluice/pipeline/result_stream.hpp>
#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/require.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <cstddef>
#include <functional>
#include <memory>
#include <ranges>
#include <type_traits>
#include <utility>
#include <variant>
#include <vector>

namespace sluice {

namespace detail {

template <class Items>
struct MappedItem {};
template <class Items>
    requires std::ranges::input_range<Items> && std::ranges::viewable_range<Items> && (!ItemSource<Items>)
struct MappedItem<Items> {
    using Type = std::ranges::range_value_t<Items>;
};
template <class Items>
    requires ItemSource<Items>
struct MappedItem<Items> {
    using Type = typename next_value_t<Items>::value_type;
};

template <class Items>
concept Mappable = requires { typename MappedItem<Items>::Type; };

// Checks the arguments of map_batch() and map_stream().
template <class Items, class Function>
constexpr bool check_map() {
    static_assert(Mappable<Items>, "sluice::map_batch(), map_stream(): needs a range or an asynchronous source");
    if constexpr (Mappable<Items>) {
        static_assert(AwaitableFunction<Function, typename MappedItem<Items>::Type&>,
                      "sluice::map_batch(), map_stream(): the function must be callable with an item, an lvalue, and "
                      "return an asio::awaitable");
        return AwaitableFunction<Function, typename MappedItem<Items>::Type&>;
    } else {
        return false;
    }
}

template <class State>
struct MapBatch {
    using Value = typename State::Value;

    // The state is kept alive by this frame.
    template <class Batch>
    static boost::asio::awaitable<std::conditional_t<std::is_void_v<Value>, void, std::vector<typename State::Result>>,
                                  typename State::Executor>
    run(Pooled, Batch batch) {
        auto stored = co_await std::move(batch);
        if constexpr (!std::is_void_v<Value>) {
            std::vector<Value> values;
            values.reserve(stored.size());
            for (auto& value : stored) {
                values.push_back(*std::move(value));
            }
            co_return values;
        }
    }
};

}  // namespace detail

/// When awaited, calls `function(item)` for each item of a range or an asynchronous source, at most `window` at once,
/// and returns the values in the order of the items. There are no stages, no retries and no dead letters: for a
/// function that may fail for one item alone, return the failure as a value, or use a Pipeline.
///
/// @code
/// const auto fetch = [&](const std::string& url) { return client.get(url); };
/// const std::vector<Page> pages = co_await sluice::map_batch(urls, 8, fetch);
/// @endcode
///
/// An item is copied, or moved out of a container or source that was moved in. `function` is called with it as an
/// lvalue, which lives until the coroutine has ended. If `function` returns an `awaitable<void>`, so does this. Like a
/// model function of a Stage, its coroutine must leave the cancellation settings of `this_coro` as it has found them.
///
/// @param items A range, or a source as QuerySource describes it, of any type. An lvalue is stored by reference.
/// @param window At least 1.
/// @param function A function object, which is stored. Called with an item, it returns an `awaitable`, of a value or
/// `void`.
///
/// @par Failure
/// The first exception that leaves `function`, the range or the source cancels the other calls, waits for them, and is
/// thrown. The values so far are lost.
/// @throws std::invalid_argument if `window` is less than 1.
///
/// @par Cancellation
/// Terminal, partial and total, as far as the awaiting coroutine lets them through: no further call starts, those that
/// run are cancelled and waited for, and then `operation_aborted` is thrown.
template <class Items, class Function>
[[nodiscard]] auto map_batch(Items&& items, std::ptrdiff_t window, Function function) {
    if constexpr (detail::check_map<Items, Function>()) {
        using State = detail::MapState<typename detail::MappedItem<Items>::Type, Function>;
        detail::require(window >= 1, "map_batch", "window must be at least 1", window);
        return detail::MapBatch<State>::run(detail::Pooled(), detail::PipelineOperations<State>::run_batch(
                                                                  std::make_shared<State>(window, std::move(function)),
                                                                  std::forward<Items>(items), std::identity()));
    } else {
        return boost::asio::awaitable<std::vector<std::monostate>>();
    }
}

/// Returns a stream of the values as they complete, each with the index of its item; see ResultStream. Otherwise as
/// map_batch(). The value of an `awaitable<void>` is a `std::monostate`.
///
/// @code
/// auto pages = sluice::map_stream(urls, 8, fetch);
/// while (auto page = co_await pages.next()) {
///     use(page->index, page->result);
/// }
/// @endcode
///
/// An exception of `function` cancels the other calls. One of the range or source ends the input alone: the calls that
/// run go on to their end. next() throws the first exception, once, after all values that came.
template <class Items, class Function>
auto map_stream(Items&& items, std::ptrdiff_t window, Function function) {
    if constexpr (detail::check_map<Items, Function>()) {
        using State = detail::MapState<typename detail::MappedItem<Items>::Type, Function>;
        detail::require(window >= 1, "map_stream", "window must be at least 1", window);
        return detail::PipelineOperations<State>::make_stream(std::make_shared<State>(window, std::move(function)),
                                                              std::forward<Items>(items), std::identity());
    } else {
        return ResultStream<std::monostate, boost::asio::any_io_executor>(nullptr);
    }
}

}  // namespace sluice
