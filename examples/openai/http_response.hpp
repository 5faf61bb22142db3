// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/awaitable.hpp>
#include <boost/beast/http/fields.hpp>

#include <cstddef>
#include <limits>
#include <memory>
#include <string>
#include <string_view>

namespace openai {

class HttpExchange;
class HttpPool;

/// The answer to a request. Its body is read piece by piece, or as a whole. Destroying it before its end closes the
/// connection, and so tells the server to stop.
///
/// @par Thread safety
/// Unsafe.
class HttpResponse {
public:
    explicit HttpResponse(std::unique_ptr<HttpExchange> exchange) noexcept;
    HttpResponse(HttpResponse&&) noexcept;
    HttpResponse& operator=(HttpResponse&&) noexcept;
    ~HttpResponse();

    int status() const noexcept;
    const boost::beast::http::fields& headers() const noexcept;

    /// Completes with the next piece of the body when it has come; it is valid until the next call. An empty piece is
    /// the end.
    /// @throws sluice::ModelError, transient, if the body breaks off or is malformed, or if nothing has come for
    ///     `idle_timeout`; invalid if it is longer than `max_body`.
    ///
    /// @par Cancellation
    /// The connection is closed, and `operation_aborted` is thrown.
    boost::asio::awaitable<std::string_view> read_some();

    /// Completes with the rest of the body when its end has come, or with its first `at_most` bytes. Otherwise as
    /// read_some().
    boost::asio::awaitable<std::string> read(std::size_t at_most = std::numeric_limits<std::size_t>::max());

    /// For a caller who has all of the body that matters: waits for its end, for at most 1 s, so that the connection
    /// can be kept, and closes it if there is more. Neither an error nor cancellation matters any more.
    boost::asio::awaitable<void> finish();

private:
    std::unique_ptr<HttpExchange> exchange_;
};

}  // namespace openai
