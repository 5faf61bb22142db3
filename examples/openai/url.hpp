// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <string>
#include <string_view>

namespace openai {

/// The base URL of a server, in parts that are safe to put into a request.
struct Url {
    bool tls = false;
    std::string host;  ///< In lower case; an IPv6 address without its brackets.
    std::string port;  ///< From "1" to "65535".
    std::string path;  ///< Empty, or begins with a slash and does not end with one.
};

/// Reads a base URL such as "https://api.example.com/v1" or "http://[::1]:8080/v1". The port is 80 or 443 by default.
/// @throws std::invalid_argument naming the URL, without what may be a secret in it, if it is none, is neither http nor
///     https, or has user information, a query, a fragment, spaces, control characters or bytes above 0x7E.
Url parse_url(std::string_view text);

/// Returns `host:port`, with brackets around an IPv6 address.
std::string authority(const Url& url);

/// Whether the host is this computer, by its address or the name `localhost`.
bool is_loopback(const std::string& host);

/// Refuses to go around a proxy: the client connects to servers directly.
/// @throws std::runtime_error naming the variable if the environment names a proxy for `url` (`http_proxy` or
///     `https_proxy`, or `all_proxy`; in lower or upper case), `no_proxy` does not exempt the host, and that is not
///     this computer. The value is not in the message: it may have a password.
void refuse_proxy(const Url& url);

}  // namespace openai
