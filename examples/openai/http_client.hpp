// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "http_options.hpp"
#include "http_response.hpp"
#include "url.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>

namespace openai {

/// Sends POST requests to one server, over connections that are kept open.
///
/// A connection whose answer was read to its end may be used again for 60 s, or less if the server says so, and the one
/// that was used last is taken first. Those that are too old are closed when the client is used next. If a kept
/// connection turns out to be closed before one byte of the answer has come, the request is sent again, once, over a
/// new connection: servers close idle connections at any time. Nothing else is repeated, since the server may have
/// done, and charged, what was asked. The addresses of a name are tried one after the other, and those that remain
/// share what remains of the connect timeout, but each has a second if that remains. Redirects are not followed: a
/// status is an answer.
///
/// @par Lifetime
/// Requests and responses may outlive the client. It must be destroyed before its execution context. Destroying it
/// closes the connections that are idle; the others close when their responses are done with.
///
/// @par Thread safety
/// Unsafe: the client and its responses belong to one thread or strand, which `executor` runs them on.
class HttpClient {
public:
    /// @throws std::invalid_argument naming the option that is out of range, and its value (not that of
    ///     `bearer_token`), if `url` needs TLS and this build has none, or if `bearer_token` would go to another
    ///     computer without TLS.
    HttpClient(const boost::asio::any_io_executor& executor, Url url, HttpOptions options = {});
    HttpClient(const HttpClient&) = delete;
    HttpClient& operator=(const HttpClient&) = delete;
    ~HttpClient();

    /// Returns an operation that sends `body`, which is JSON, to `path` below that of the URL, and completes with the
    /// response when its header has come. It needs neither the arguments nor the client any more.
    /// @throws sluice::ModelError when awaited, transient, naming the server, if no answer comes: the connection
    ///     failed, a timeout was up (which, and how long it was), or the answer is not HTTP or exceeds a limit. Kind
    ///     `exhausted` if the certificate is not valid for the host, since that does not pass by itself.
    ///
    /// @par Cancellation
    /// The connection is closed, and `operation_aborted` is thrown.
    boost::asio::awaitable<HttpResponse> post(std::string_view path, const std::string& body,
                                              std::string_view accept = "application/json");

    /// The number of connections that are kept, and not in use.
    std::size_t idle() const noexcept;

private:
    std::string fields_;  // The header fields that all requests have in common.
    std::shared_ptr<HttpPool> pool_;
};

}  // namespace openai
