// SPDX-License-Identifier: BSL-1.0
#include "http_connection.hpp"

#include "seconds.hpp"

#include <sluice/stage/verdict.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <boost/asio/ip/address_v6.hpp>
#include <boost/asio/ip/resolver_base.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <cstdint>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

namespace asio = boost::asio;
namespace beast = boost::beast;

namespace openai {
namespace {

using asio::ip::tcp;
using boost::system::error_code;

constexpr auto token = asio::as_tuple(asio::deferred);

void require_timeout(std::string_view name, std::chrono::nanoseconds timeout) {
    if (timeout.count() < 1 || timeout > std::chrono::hours(24)) {
        throw std::invalid_argument("HttpOptions: " + std::string(name) + " must be from 1 ns to 24 h, got " +
                                    std::to_string(timeout.count()) + " ns");
    }
}

void throw_if_aborted(const error_code& error) {
    if (error == asio::error::operation_aborted) {
        throw boost::system::system_error(error);
    }
}

// `localhost` is this computer, whatever a name server may say (RFC 6761, section 6.3), and also on a system without a
// hosts file. The key policy and the rule for proxies rely on that.
std::vector<tcp::endpoint> endpoints_without_lookup(const Url& url) {
    std::uint16_t port = 0;
    std::from_chars(url.port.data(), url.port.data() + url.port.size(), port);
    if (url.host == "localhost") {
        return {{asio::ip::address_v6::loopback(), port}, {asio::ip::address_v4::loopback(), port}};
    }
    error_code error;
    const auto address = asio::ip::make_address(url.host, error);
    return error ? std::vector<tcp::endpoint>() : std::vector{tcp::endpoint(address, port)};
}

// The look-up of a name, which the system does not let us cancel: who no longer waits for it leaves it alone.
struct Lookup {
    Lookup(const asio::any_io_executor& executor, HttpConnection::Clock::time_point deadline)
        : resolver(executor), done(executor, deadline) {}

    tcp::resolver resolver;
    asio::steady_timer done;  // It is cancelled when the name is known, and expires when the time is up.
    bool finished = false;
    error_code error;
    tcp::resolver::results_type endpoints;
};

asio::awaitable<std::shared_ptr<Lookup>> look_up(asio::any_io_executor executor, const Url& url,
                                                 HttpConnection::Clock::time_point deadline) {
    const auto lookup = std::make_shared<Lookup>(executor, deadline);
    lookup->resolver.async_resolve(url.host, url.port, tcp::resolver::numeric_service,
                                   [lookup](const error_code& error, const tcp::resolver::results_type& endpoints) {
                                       lookup->finished = true;
                                       lookup->error = error;
                                       lookup->endpoints = endpoints;
                                       lookup->done.cancel();
                                   });
    const auto [ended] = co_await lookup->done.async_wait(token);
    if (!lookup->finished) {
        lookup->resolver.cancel();
        throw_if_aborted(ended);
        lookup->error = beast::error::timeout;
    }
    co_return lookup;
}

}  // namespace

HttpTarget::HttpTarget(Url where, HttpOptions how)
    : url(std::move(where)), options(std::move(how)), name(authority(url)) {
    require_timeout("connect_timeout", options.connect_timeout);
    require_timeout("first_byte_timeout", options.first_byte_timeout);
    require_timeout("idle_timeout", options.idle_timeout);
    endpoints = endpoints_without_lookup(url);
    if (url.tls) {
#if OPENAI_HAS_TLS
        tls.emplace(make_tls_context(options.ca_file));
#else
        throw std::invalid_argument("https://" + name +
                                    ": this program was built without OpenSSL, and can use http only");
#endif
    }
}

void HttpTarget::fail(const std::string& why) const { throw sluice::ModelError(name + ": " + why); }

void HttpTarget::fail(const std::string& why, const error_code& error) const {
    fail(why + ": " + (error == asio::error::eof ? "the connection was closed" : error.message()));
}

bool is_closed(const error_code& error) noexcept {
#if OPENAI_HAS_TLS
    if (error == asio::ssl::error::stream_truncated) {
        return true;
    }
#endif
    return error == asio::error::eof || error == asio::error::connection_reset || error == asio::error::broken_pipe;
}

HttpConnection::HttpConnection(const asio::any_io_executor& executor, const HttpTarget& target)
    : target_(target), tcp_(executor) {}

asio::awaitable<error_code> HttpConnection::connect_socket(Clock::time_point deadline) {
    error_code error;
    std::vector<tcp::endpoint> endpoints = target_.endpoints;
    if (endpoints.empty()) {
        const auto executor = tcp_.get_executor();
        const auto lookup = co_await look_up(executor, target_.url, deadline);
        error = lookup->error;
        endpoints.assign(lookup->endpoints.begin(), lookup->endpoints.end());
    }
    for (std::size_t i = 0; i != endpoints.size(); ++i) {
        tcp_.close();  // after the endpoint before
        const auto now = Clock::now();
        if (now >= deadline) {
            error = beast::error::timeout;
            break;
        }
        const auto share = (deadline - now) / static_cast<std::ptrdiff_t>(endpoints.size() - i);
        tcp_.expires_at(std::min(deadline, now + std::max<Clock::duration>(share, std::chrono::seconds(1))));
        std::tie(error) = co_await tcp_.async_connect(endpoints[i], token);
        if (!error || error == asio::error::operation_aborted) {
            break;
        }
    }
    tcp_.expires_at(deadline);
    co_return error;
}

asio::awaitable<void> HttpConnection::connect() {
    error_code error = co_await connect_socket(Clock::now() + target_.options.connect_timeout);
    if (!error) {
        error = tcp_.socket().set_option(tcp::no_delay(true), error);
    }
    if (!error) {
        error = tcp_.socket().non_blocking(true, error);  // for quiet()
    }
#if OPENAI_HAS_TLS
    if (!error && target_.tls) {
        tls_.emplace(tcp_, *target_.tls);
        require_host(*tls_, target_.url.host);
        std::tie(error) = co_await tls_->async_handshake(TlsStream::client, token);
        if (const std::string why = refusal(*tls_); error && !why.empty()) {
            // Every attempt would end like this one, until somebody mends the certificate, the URL or `ca_file`.
            throw sluice::ModelError(target_.name + ": the server's certificate was refused: " + why,
                                     {.kind = sluice::Verdict::exhausted});
        }
    }
#endif
    throw_if_aborted(error);
    if (error == beast::error::timeout) {
        target_.fail("not connected within " + in_seconds(target_.options.connect_timeout) + " (connect timeout)");
    }
    if (error) {
        target_.fail("could not connect", error);
    }
}

asio::awaitable<error_code> HttpConnection::send(std::string_view bytes) {
    error_code error;
    std::size_t sent = 0;
#if OPENAI_HAS_TLS
    if (tls_) {
        std::tie(error, sent) = co_await asio::async_write(*tls_, asio::buffer(bytes), token);
    } else
#endif
    {
        std::tie(error, sent) = co_await asio::async_write(tcp_, asio::buffer(bytes), token);
    }
    throw_if_aborted(error);
    co_return error;
}

asio::awaitable<error_code> HttpConnection::receive() {
    constexpr std::size_t most = std::size_t{16} << 10;
    const auto room = buffer_.prepare(std::min(most, max_buffered - buffer_.size()));
    error_code error;
    std::size_t received = 0;
#if OPENAI_HAS_TLS
    if (tls_) {
        std::tie(error, received) = co_await tls_->async_read_some(room, token);
    } else
#endif
    {
        std::tie(error, received) = co_await tcp_.async_read_some(room, token);
    }
    throw_if_aborted(error);
    buffer_.commit(received);
    co_return error;
}

bool HttpConnection::quiet() {
#if OPENAI_HAS_TLS
    if (tls_ && has_unread(*tls_)) {
        return false;  // it came together with the end of the last answer
    }
#endif
    char byte = 0;
    error_code error;
    tcp_.socket().receive(asio::buffer(&byte, 1), tcp::socket::message_peek, error);
    return error == asio::error::would_block;
}

}  // namespace openai
