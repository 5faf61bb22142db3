// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/query.hpp>
#include <sluice/sync/awaitable_function.hpp>

#include <concepts>
#include <functional>
#include <optional>
#include <type_traits>
#include <utility>

namespace sluice {

namespace detail {

template <class T>
inline constexpr bool is_optional = false;
template <class T>
inline constexpr bool is_optional<std::optional<T>> = true;

template <class Source>
using next_t = decltype(std::declval<std::remove_reference_t<Source>&>().next());
template <class Source>
using next_value_t = typename next_t<Source>::value_type;

template <class Source>
concept ItemSource = requires(std::remove_reference_t<Source>& source) {
    requires Awaitable<decltype(source.next())>;
    requires is_optional<next_value_t<Source>>;
};

}  // namespace detail

/// An asynchronous source that process_batch() and process_stream() can take queries from: an object whose `next()`
/// returns an `asio::awaitable` of a `std::optional`, with an item that `projection` turns into a Query, or empty at
/// the end. A ResultStream is one, so that one pipeline can feed another, and so is a ChannelSource. (A Pipeline also
/// takes the same with Checkpoints instead of queries, although this concept does not hold for it.)
///
/// next() is awaited on the pipeline's executor, only while there is room for another query, and never again before it
/// has completed. It is not called after the end. If it throws, it must not have consumed an item, and the input ends
/// as if a range had thrown.
///
/// next() is cancelled together with the batch or stream, and alone when a drain begins. It may still return then, and
/// an item ends as cancelled or unfinished. If it throws, that must be a `system_error` with `operation_aborted`, or
/// with `channel_cancelled` as a channel has: any other error counts as a failure of the source.
///
/// An lvalue is stored by reference, and must outlive the operation; an rvalue is moved in. If an rvalue has a
/// `close()` that returns an `asio::awaitable`, as a ResultStream has, the batch or stream awaits it before it ends,
/// however it ends; no cancellation reaches it. So a pipeline that is fed by another ends after it. Pipeline::drain()
/// says what becomes of a source then. (A stream that is destroyed before its first next() destroys the source.)
template <class Source, class Projection = std::identity>
concept QuerySource = detail::ItemSource<Source> &&
                      detail::QueryProjection<Projection, typename detail::next_value_t<Source>::value_type>;

}  // namespace sluice
