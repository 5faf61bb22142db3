// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <string>

#if OPENAI_HAS_TLS

#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/stream.hpp>
#include <boost/beast/core/tcp_stream.hpp>

namespace openai {

using TlsContext = boost::asio::ssl::context;
using TlsStream = boost::asio::ssl::stream<boost::beast::tcp_stream&>;

/// Returns a context for clients, with TLS 1.2 or newer, which trusts the certificates of the system and those in
/// `ca_file`, if it is not empty.
/// @throws std::invalid_argument naming the file if it has no certificates.
TlsContext make_tls_context(const std::string& ca_file);

/// Makes `stream` tell the server `host`, a name or an address, and insist on a certificate for it.
/// @throws boost::system::system_error if OpenSSL cannot.
void require_host(TlsStream& stream, const std::string& host);

/// Whether bytes have been received that no read has returned yet.
bool has_unread(TlsStream& stream);

/// Returns why the certificate of the server was refused, or nothing if it was not.
std::string refusal(TlsStream& stream);

}  // namespace openai

#endif
