// SPDX-License-Identifier: BSL-1.0
#include "http_response.hpp"

#include "http_exchange.hpp"

#include <boost/asio/awaitable.hpp>

#include <cstddef>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace asio = boost::asio;

namespace openai {

HttpResponse::HttpResponse(std::unique_ptr<HttpExchange> exchange) noexcept : exchange_(std::move(exchange)) {}
HttpResponse::HttpResponse(HttpResponse&&) noexcept = default;
HttpResponse& HttpResponse::operator=(HttpResponse&&) noexcept = default;
HttpResponse::~HttpResponse() = default;

int HttpResponse::status() const noexcept { return static_cast<int>(exchange_->header().result_int()); }

const boost::beast::http::fields& HttpResponse::headers() const noexcept { return exchange_->header(); }

asio::awaitable<std::string_view> HttpResponse::read_some() { return exchange_->read_some(); }

asio::awaitable<void> HttpResponse::finish() { return exchange_->finish(); }

asio::awaitable<std::string> HttpResponse::read(std::size_t at_most) {
    std::string bytes;
    while (bytes.size() < at_most) {
        const std::string_view piece = co_await exchange_->read_some();
        if (piece.empty()) {
            break;
        }
        bytes += piece.substr(0, at_most - bytes.size());
    }
    co_return bytes;
}

}  // namespace openai
