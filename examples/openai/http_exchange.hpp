// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "http_connection.hpp"
#include "http_pool.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/system/error_code.hpp>

#include <chrono>
#include <memory>
#include <optional>
#include <string>
#include <string_view>

namespace openai {

/// One request and its answer. The connection goes back to the pool as soon as the answer has been read to its end, and
/// is closed after an error, or if it cannot be used again.
class HttpExchange {
public:
    HttpExchange(std::shared_ptr<HttpPool> pool, std::unique_ptr<HttpConnection> connection);

    /// Sends the request and reads the header of its answer. Completes with false if the connection was lost before
    /// one byte of the answer had come.
    boost::asio::awaitable<bool> begin(std::string_view request);

    /// See HttpResponse::read_some().
    boost::asio::awaitable<std::string_view> read_some();

    /// See HttpResponse::finish().
    boost::asio::awaitable<void> finish();

    const auto& header() const noexcept { return parser_->get().base(); }

    /// Why begin() completed with false.
    const boost::system::error_code& lost() const noexcept { return lost_; }
    [[noreturn]] void fail_lost() const;

private:
    using Parser = boost::beast::http::response_parser<boost::beast::http::string_body>;

    [[noreturn]] void fail_too_long() const;
    void expect_answer();
    void parse_header();
    void parse_body();
    bool parse();
    void parse_end();
    void settle();
    boost::asio::awaitable<bool> read_header();
    boost::asio::awaitable<void> read_body(std::chrono::nanoseconds timeout);

    std::shared_ptr<HttpPool> pool_;
    const HttpTarget& target_;
    std::unique_ptr<HttpConnection> connection_;
    std::optional<Parser> parser_;
    boost::system::error_code lost_;  // Why the request could not be sent, or else why no answer came.
    int interim_ = 0;                 // The number of answers that only said that another one would follow.
    bool sent_ = false;
    bool too_long_ = false;
    bool given_ = false;  // Whether read_some() has returned what the parser has of the body.
};

}  // namespace openai
