// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/experimental/channel_error.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>

#include <optional>
#include <utility>

namespace sluice {

/// A QuerySource of the messages that are sent to an Asio channel, `asio::experimental::channel<void(error_code, T)>`
/// or `concurrent_channel`.
///
/// @code
/// asio::experimental::channel<void(boost::system::error_code, sluice::Query)> queries(executor, 16);
/// auto results = pipeline.process_stream(sluice::ChannelSource(queries));
/// @endcode
///
/// It ends when the channel has been closed and its remaining messages have been received. The channel must outlive the
/// source.
template <class Channel>
class ChannelSource;

template <template <class, class, class...> class Channel, class ChannelExecutor, class Traits, class Item>
class ChannelSource<Channel<ChannelExecutor, Traits, void(boost::system::error_code, Item)>> {
    using ChannelType = Channel<ChannelExecutor, Traits, void(boost::system::error_code, Item)>;

public:
    using Executor = ChannelExecutor;

    explicit ChannelSource(ChannelType& channel) noexcept : channel_(&channel) {}

    /// When awaited, receives the next message; an empty optional if the channel is closed.
    ///
    /// @throws boost::system::system_error with the error code of a message that has one, or with `channel_cancelled`
    /// if the wait was cancelled.
    ///
    /// @par Cancellation
    /// That of the channel's `async_receive`: this wait loses no message. (A batch or stream that is cancelled drops
    /// the query that it has just received.)
    [[nodiscard]] boost::asio::awaitable<std::optional<Item>, Executor> next() { return receive(*channel_); }

private:
    static boost::asio::awaitable<std::optional<Item>, Executor> receive(ChannelType& channel) {
        constexpr auto token = boost::asio::as_tuple(boost::asio::deferred);
        auto [error, item] = co_await channel.async_receive(token);
        if (error == boost::asio::experimental::error::channel_closed) {
            co_return std::nullopt;
        }
        if (error) {
            throw boost::system::system_error(error, "ChannelSource");
        }
        co_return std::move(item);
    }

    ChannelType* channel_;
};

template <class Channel>
ChannelSource(Channel&) -> ChannelSource<Channel>;

}  // namespace sluice
