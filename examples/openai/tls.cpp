// SPDX-License-Identifier: BSL-1.0
#include "tls.hpp"

#if OPENAI_HAS_TLS

#include <boost/asio/error.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ssl/error.hpp>
#include <boost/asio/ssl/verify_mode.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>

#include <openssl/bio.h>
#include <openssl/err.h>
#include <openssl/ssl.h>
#include <openssl/x509v3.h>

#include <stdexcept>
#include <string>

namespace asio = boost::asio;

namespace openai {
namespace {

void require_success(long result) {
    if (result != 1) {
        throw boost::system::system_error(
            boost::system::error_code(static_cast<int>(::ERR_get_error()), asio::error::get_ssl_category()));
    }
}

}  // namespace

TlsContext make_tls_context(const std::string& ca_file) {
    TlsContext context(TlsContext::tls_client);
    require_success(SSL_CTX_set_min_proto_version(context.native_handle(), TLS1_2_VERSION));
    context.set_verify_mode(asio::ssl::verify_peer);
    context.set_default_verify_paths();
    if (!ca_file.empty()) {
        boost::system::error_code error;
        if (context.load_verify_file(ca_file, error)) {
            throw std::invalid_argument("'" + ca_file + "': no certificates could be read: " + error.message());
        }
    }
    return context;
}

// OpenSSL checks the name rather than a callback, since then its reason for a refusal is there to be read.
void require_host(TlsStream& stream, const std::string& host) {
    SSL* const ssl = stream.native_handle();
    boost::system::error_code no_address;
    asio::ip::make_address(host, no_address);
    if (no_address) {
        // A macro with a cast of its own: SSL_set_tlsext_host_name().
        require_success(::SSL_ctrl(ssl, SSL_CTRL_SET_TLSEXT_HOSTNAME, TLSEXT_NAMETYPE_host_name,
                                   const_cast<char*>(host.c_str())));  // NOLINT(cppcoreguidelines-pro-type-const-cast)
        ::SSL_set_hostflags(ssl, X509_CHECK_FLAG_NO_PARTIAL_WILDCARDS);
        require_success(::SSL_set1_host(ssl, host.c_str()));
    } else {
        require_success(::X509_VERIFY_PARAM_set1_ip_asc(::SSL_get0_param(ssl), host.c_str()));
    }
}

bool has_unread(TlsStream& stream) {
    SSL* const ssl = stream.native_handle();
    return ::SSL_has_pending(ssl) == 1 || ::BIO_ctrl_pending(::SSL_get_rbio(ssl)) != 0;
}

std::string refusal(TlsStream& stream) {
    const long result = ::SSL_get_verify_result(stream.native_handle());
    return result == X509_V_OK ? "" : ::X509_verify_cert_error_string(result);
}

}  // namespace openai

#endif
