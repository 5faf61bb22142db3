// SPDX-License-Identifier: BSL-1.0
#include "http_client.hpp"

#include "http_connection.hpp"
#include "http_exchange.hpp"
#include "http_pool.hpp"

#include <boost/asio/awaitable.hpp>

#include <algorithm>
#include <cassert>
#include <memory>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace asio = boost::asio;

namespace openai {
namespace {

bool visible(char c) { return c > ' ' && c <= '~'; }

// The fields that every request has. The default port is left out, as all clients do.
std::string common_fields(const Url& url, const std::string& bearer_token) {
    if (!std::ranges::all_of(bearer_token, visible)) {
        throw std::invalid_argument("HttpOptions: bearer_token has a space, a control character or one beyond ASCII");
    }
    if (!bearer_token.empty() && !url.tls && !is_loopback(url.host)) {
        throw std::invalid_argument("the key is not sent to '" + url.host + "' over http: use https, or no key");
    }
    const std::string host = authority(url);
    const std::string default_port = url.tls ? ":443" : ":80";
    std::string fields = "Host: " + (host.ends_with(default_port) ? host.substr(0, host.rfind(':')) : host) +
                         "\r\nUser-Agent: sluice/0.2.0\r\nContent-Type: application/json\r\n";
    if (!bearer_token.empty()) {
        fields += "Authorization: Bearer " + bearer_token + "\r\n";
    }
    return fields;
}

asio::awaitable<HttpResponse> exchange(std::shared_ptr<HttpPool> pool, std::string request) {
    if (auto kept = pool->take()) {
        auto first = std::make_unique<HttpExchange>(pool, std::move(kept));
        if (co_await first->begin(request)) {
            co_return HttpResponse(std::move(first));
        }
        if (!is_closed(first->lost())) {
            first->fail_lost();
        }
    }
    auto connection = pool->make();
    co_await connection->connect();
    auto exchange = std::make_unique<HttpExchange>(pool, std::move(connection));
    if (!co_await exchange->begin(request)) {
        exchange->fail_lost();
    }
    co_return HttpResponse(std::move(exchange));
}

}  // namespace

HttpClient::HttpClient(const asio::any_io_executor& executor, Url url, HttpOptions options)
    : fields_(common_fields(url, options.bearer_token)),
      pool_(std::make_shared<HttpPool>(executor, std::move(url), std::move(options))) {}

HttpClient::~HttpClient() { pool_->close(); }

asio::awaitable<HttpResponse> HttpClient::post(std::string_view path, const std::string& body,
                                               std::string_view accept) {
    assert(std::ranges::all_of(path, visible));
    const std::string length = std::to_string(body.size());
    std::string request;
    request.reserve(fields_.size() + path.size() + accept.size() + body.size() + 256);
    request.append("POST ").append(pool_->target().url.path).append(path).append(" HTTP/1.1\r\n");
    request.append(fields_).append("Accept: ").append(accept).append("\r\nContent-Length: ").append(length);
    request.append("\r\n\r\n").append(body);
    return exchange(pool_, std::move(request));
}

std::size_t HttpClient::idle() const noexcept { return pool_->size(); }

}  // namespace openai
