// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "http_options.hpp"
#include "tls.hpp"
#include "url.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/system/error_code.hpp>

#include <chrono>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

namespace openai {

/// A server, and how to reach it.
struct HttpTarget {
    /// @throws std::invalid_argument if an option is out of range, or if `url` needs TLS and this build has none.
    HttpTarget(Url where, HttpOptions how);

    /// Throws a ModelError, transient, whose message begins with the name.
    [[noreturn]] void fail(const std::string& why) const;
    [[noreturn]] void fail(const std::string& why, const boost::system::error_code& error) const;

    Url url;
    HttpOptions options;
    std::string name;                                       ///< `host:port`, for messages.
    std::vector<boost::asio::ip::tcp::endpoint> endpoints;  ///< If the host is an address or `localhost`, else empty.
#if OPENAI_HAS_TLS
    mutable std::optional<TlsContext> tls;
#endif
};

/// Whether an error of a connection says that the server has closed it.
bool is_closed(const boost::system::error_code& error) noexcept;

/// A connection to a server, with TLS if its URL says so. Destroying it closes the socket.
///
/// @par Cancellation
/// Each operation throws `operation_aborted`. The connection is of no more use after that.
class HttpConnection {
public:
    using Clock = std::chrono::steady_clock;

    HttpConnection(const boost::asio::any_io_executor& executor, const HttpTarget& target);

    /// Connects to the server.
    /// @throws sluice::ModelError if that fails or takes longer than `connect_timeout`; of kind `exhausted` if the
    ///     certificate is not valid for the host.
    boost::asio::awaitable<void> connect();

    /// Limits what follows, until it is called again. The time between the operations counts, too.
    void expires_after(std::chrono::nanoseconds timeout) { tcp_.expires_after(timeout); }

    /// Sends `bytes`, and returns the error if that failed: `beast::error::timeout` if the time was up.
    boost::asio::awaitable<boost::system::error_code> send(std::string_view bytes);

    /// Receives some bytes into the buffer, which must not be full.
    boost::asio::awaitable<boost::system::error_code> receive();

    /// Whether the server has neither sent anything nor closed the connection.
    bool quiet();

    /// What was received and not used yet; at most `max_buffered` bytes.
    boost::beast::flat_buffer& buffer() noexcept { return buffer_; }

    static constexpr std::size_t max_buffered = std::size_t{64} << 10;

private:
    boost::asio::awaitable<boost::system::error_code> connect_socket(Clock::time_point deadline);

    const HttpTarget& target_;
    boost::beast::tcp_stream tcp_;
#if OPENAI_HAS_TLS
    std::optional<TlsStream> tls_;
#endif
    boost::beast::flat_buffer buffer_{max_buffered};
};

}  // namespace openai
