// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/pipeline/detail/drain_state.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/window.hpp>
#include <sluice/sync/detail/awaitable_traits.hpp>
#include <sluice/sync/detail/callee.hpp>
#include <sluice/sync/detail/frame_pool.hpp>

#include <boost/asio/awaitable.hpp>

#include <concepts>
#include <cstddef>
#include <exception>
#include <optional>
#include <type_traits>
#include <utility>
#include <variant>

namespace sluice::detail {

// An item on its way through a window, with what the function made of it.
template <class Item, class ResultType>
struct MapJob : QueryPlace {
    using Result = ResultType;
    using Stored = std::optional<Result>;  // which has a default

    MapJob() = default;
    MapJob(Window* its_window, Slot its_place) noexcept : QueryPlace(its_window, std::move(its_place)) {}

    template <class Taken>
        requires std::constructible_from<Item, Taken>
    void take(Taken&& taken) {
        item.emplace(std::forward<Taken>(taken));
    }

    Result&& finished() noexcept { return *std::move(result); }
    static void cut_short() noexcept {}

    std::optional<Item> item;
    Stored result;
};

// Runs map_batch() and map_stream() in a window: one call of a function for each item.
template <class Item, class Function>
class MapState {
public:
    using Value = awaited_value_t<Function&, Item&>;
    using Executor = awaitable_executor_t<Function&, Item&>;
    using Result = std::conditional_t<std::is_void_v<Value>, std::monostate, Value>;
    using Job = MapJob<Item, Result>;
    using Drain = NoDrain;
    static constexpr bool drains = false;
    static constexpr std::ptrdiff_t max_in_backoff = 0;

    MapState(std::ptrdiff_t window, Function function) : function_(std::move(function)), window_(window) {}

    boost::asio::awaitable<void, Executor> process(Job& job) { return run(Pooled(), *this, job); }

    static bool has_ended(Job&, const std::exception_ptr& error) noexcept { return !error; }
    static boost::asio::awaitable<void, Executor> end_otherwise(Job&, const std::exception_ptr& error) {
        std::rethrow_exception(error);
    }

    std::ptrdiff_t window() const noexcept { return window_; }
    static void add_window(Window&) noexcept {}
    static void begin_query(NoDrain&) noexcept {}
    static void end_query(NoDrain&, const auto&) noexcept {}
    static void end_cancelled(NoDrain&) noexcept {}
    static void check_context(const Executor&) noexcept {}

    NoDrain drain;

private:
    static boost::asio::awaitable<void, Executor> run(Pooled, MapState& state, Job& job) {
        if constexpr (std::is_void_v<Value>) {
            co_await callee(state.function_)(*job.item);
            job.result.emplace();
        } else {
            job.result.emplace(co_await callee(state.function_)(*job.item));
        }
    }

    Function function_;
    std::ptrdiff_t window_;
};

}  // namespace sluice::detail
