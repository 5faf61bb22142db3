// SPDX-License-Identifier: BSL-1.0
#include "http_exchange.hpp"

#include "seconds.hpp"

#include <sluice/stage/verdict.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/error.hpp>
#include <boost/beast/core/error.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/fields.hpp>
#include <boost/beast/http/status.hpp>
#include <boost/system/error_code.hpp>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdint>
#include <exception>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;

namespace openai {
namespace {

using boost::system::error_code;

constexpr std::uint32_t max_header = 32 << 10;
constexpr int max_interim = 100;

// Routers forget quiet connections without a word, and a server may mean its `Keep-Alive: timeout` to the second.
constexpr std::chrono::seconds longest_idle(60);
constexpr std::chrono::seconds idle_margin(1);

constexpr std::chrono::seconds longest_finish(1);

// How long an idle connection may be used again after this answer.
std::chrono::seconds usable_for(const http::fields& header) {
    const auto field = header[http::field::keep_alive];
    constexpr std::string_view name = "timeout=";
    const auto found = std::ranges::search(field, name, [](char a, char b) { return (a | 0x20) == (b | 0x20); });
    std::uint32_t seconds = 0;
    const auto [end, error] = std::from_chars(found.end(), field.data() + field.size(), seconds);
    return error == std::errc() && !found.empty() ? std::min(longest_idle, std::chrono::seconds(seconds) - idle_margin)
                                                  : longest_idle;
}

}  // namespace

HttpExchange::HttpExchange(std::shared_ptr<HttpPool> pool, std::unique_ptr<HttpConnection> connection)
    : pool_(std::move(pool)), target_(pool_->target()), connection_(std::move(connection)) {
    expect_answer();
}

asio::awaitable<bool> HttpExchange::begin(std::string_view request) {
    const auto timeout = target_.options.first_byte_timeout;
    connection_->expires_after(timeout);
    lost_ = co_await connection_->send(request);
    if (lost_ == beast::error::timeout) {
        target_.fail("the request could not be sent within " + in_seconds(timeout) + " (first-byte timeout)");
    }
    sent_ = !lost_;
    // A server may refuse a request before it has read all of it, so that an answer is there even if sending failed.
    const bool answered = co_await read_header();
    co_return answered;
}

asio::awaitable<bool> HttpExchange::read_header() {
    for (bool heard = false; !parser_->is_header_done() && !too_long_; heard = true) {
        const error_code error = co_await connection_->receive();
        if (error == beast::error::timeout) {
            target_.fail("no answer within " + in_seconds(target_.options.first_byte_timeout) +
                         " (first-byte timeout)");
        }
        if (error && heard) {
            target_.fail("the answer broke off in its header", error);
        }
        if (error) {
            lost_ = sent_ ? error : lost_;
            co_return false;
        }
        parse_header();
    }
    settle();
    co_return true;
}

void HttpExchange::fail_lost() const {
    target_.fail(sent_ ? "no answer came" : "the request could not be sent", lost_);
}

void HttpExchange::fail_too_long() const {
    // The next one would be as long.
    throw sluice::ModelError(
        target_.name + ": the answer is longer than " + std::to_string(target_.options.max_body) + " bytes (max_body)",
        {.kind = sluice::Verdict::invalid});
}

asio::awaitable<std::string_view> HttpExchange::read_some() {
    std::string& body = parser_->get().body();
    if (given_) {
        body.clear();
    }
    if (body.empty() && !parser_->is_done()) {
        if (!connection_) {
            target_.fail("the answer broke off before");
        }
        try {
            co_await read_body(target_.options.idle_timeout);
        } catch (...) {
            connection_.reset();
            throw;
        }
    }
    given_ = true;
    co_return body;
}

asio::awaitable<void> HttpExchange::finish() {
    parser_->get().body().clear();
    if (connection_) {
        try {
            co_await read_body(longest_finish);
            connection_.reset();  // there is more
        } catch (const std::exception&) {
            connection_.reset();  // it is not worth more of anybody's time
        }
    }
}

// Reads until there is a piece of the body, or its end.
asio::awaitable<void> HttpExchange::read_body(std::chrono::nanoseconds timeout) {
    if (too_long_) {
        fail_too_long();
    }
    connection_->expires_after(timeout);
    parser_->eager(true);
    parse_body();
    while (parser_->get().body().empty() && !parser_->is_done()) {
        if (connection_->buffer().size() == HttpConnection::max_buffered) {
            target_.fail("the answer has a chunk header or a trailer that is too long");
        }
        const error_code error = co_await connection_->receive();
        if (error == beast::error::timeout) {
            target_.fail("nothing more of the answer within " + in_seconds(timeout) + " (idle timeout)");
        }
        if (error && error != asio::error::eof) {
            target_.fail("the answer broke off", error);
        }
        if (error) {
            parse_end();
        } else {
            parse_body();
        }
    }
    settle();
}

void HttpExchange::expect_answer() {
    parser_.emplace();
    parser_->header_limit(max_header);
    parser_->body_limit(target_.options.max_body);
}

// Answers with a status of 1xx only say that another one will follow.
void HttpExchange::parse_header() {
    for (bool more = true; more && !parser_->is_header_done();) {
        more = parse();
        const bool interim = parser_->is_header_done() && header().result_int() / 100 == 1;
        if (interim && header().result() != http::status::switching_protocols) {
            if (++interim_ > max_interim) {
                target_.fail("more than " + std::to_string(max_interim) + " interim answers");
            }
            expect_answer();
        }
    }
}

void HttpExchange::parse_body() {
    while (!parser_->is_done() && parse()) {
    }
}

// Gives the parser what is in the buffer. Returns whether there is more of it to be given.
bool HttpExchange::parse() {
    auto& buffer = connection_->buffer();
    const bool in_header = !parser_->is_header_done();
    error_code error;
    buffer.consume(buffer.size() == 0 ? 0 : parser_->put(buffer.data(), error));
    if (error == http::error::body_limit) {
        too_long_ = true;
        if (in_header) {
            return false;  // the status is worth knowing
        }
        fail_too_long();
    }
    if (error == http::error::header_limit) {
        target_.fail("the header of the answer is longer than " + std::to_string(max_header) + " bytes");
    }
    if (error && error != http::error::need_more) {
        target_.fail("the answer is not valid HTTP", error);
    }
    return !error && buffer.size() != 0;
}

// Some bodies end with the connection.
void HttpExchange::parse_end() {
    error_code error;
    parser_->put_eof(error);
    if (error) {
        target_.fail("the answer broke off", asio::error::eof);
    }
}

// Lets the connection go once the answer is there as a whole.
void HttpExchange::settle() {
    if (!parser_->is_done()) {
        return;
    }
    auto connection = std::move(connection_);
    const bool as_agreed =
        sent_ && connection->buffer().size() == 0 && header().result() != http::status::switching_protocols;
    if (as_agreed && parser_->keep_alive()) {
        pool_->give_back(std::move(connection), usable_for(header()));
    }
}

}  // namespace openai
