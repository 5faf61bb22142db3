// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "http_connection.hpp"
#include "http_options.hpp"
#include "url.hpp"

#include <boost/asio/any_io_executor.hpp>

#include <chrono>
#include <cstddef>
#include <deque>
#include <memory>

namespace openai {

/// The connections of an HttpClient that are kept for later requests.
///
/// @par Lifetime
/// It lives as long as its client, and as any connection that was taken from it.
class HttpPool {
public:
    HttpPool(boost::asio::any_io_executor executor, Url url, HttpOptions options);

    /// Returns the connection that was given back last and may still be open, or null.
    std::unique_ptr<HttpConnection> take();

    /// Returns a new connection, which is not connected yet.
    std::unique_ptr<HttpConnection> make() const;

    /// Keeps a connection, to be taken in less than `time`, and closes those whose time is up, as take() does. Above
    /// `max_idle`, the one that was not used for longest is closed.
    void give_back(std::unique_ptr<HttpConnection> connection, std::chrono::nanoseconds time);

    /// Closes the connections that are kept, and keeps none from now on.
    void close() noexcept;

    std::size_t size() const noexcept { return kept_.size(); }
    const HttpTarget& target() const noexcept { return target_; }

private:
    using Clock = HttpConnection::Clock;

    struct Kept {
        std::unique_ptr<HttpConnection> connection;
        Clock::time_point until;
    };

    void close_old();

    boost::asio::any_io_executor executor_;
    HttpTarget target_;
    std::deque<Kept> kept_;  // In the order in which they were given back.
    bool closed_ = false;
};

}  // namespace openai
