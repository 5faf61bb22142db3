// SPDX-License-Identifier: BSL-1.0
// A client that does nothing on its own: it sends what a test says, and reads what comes.
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/write.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/system/error_code.hpp>

#include <cstddef>
#include <string>
#include <string_view>

namespace test {

namespace http = boost::beast::http;
using HttpAnswer = http::response<http::string_body>;

/// A request as it goes over the wire.
inline std::string http_request(std::string_view method, std::string_view target, std::string_view body = {},
                                std::string_view headers = {}) {
    std::string text(method);
    text.append(" ").append(target).append(" HTTP/1.1\r\nHost: 127.0.0.1\r\n").append(headers);
    text.append("Content-Length: ").append(std::to_string(body.size())).append("\r\n\r\n").append(body);
    return text;
}

inline std::string chat_request(std::string_view text, std::string_view more = {}) {
    std::string body = R"({"model":"m","messages":[{"role":"user","content":")";
    body.append(text).append("\"}]").append(more).append("}");
    return http_request("POST", "/v1/chat/completions", body);
}

class RawClient {
public:
    RawClient(const boost::asio::any_io_executor& executor, unsigned short port) : socket_(executor) {
        socket_.connect({boost::asio::ip::address_v4::loopback(), port});
    }

    boost::asio::awaitable<void> send(std::string bytes) {
        co_await boost::asio::async_write(socket_, boost::asio::buffer(bytes), boost::asio::deferred);
    }

    /// Sends a request and reads the answer to its end.
    boost::asio::awaitable<HttpAnswer> ask(std::string request) {
        co_await send(std::move(request));
        HttpAnswer answer;
        co_await http::async_read(socket_, buffer_, answer, boost::asio::deferred);
        co_return answer;
    }

    /// Reads until the server closes the connection, or `most` bytes.
    boost::asio::awaitable<std::string> read(std::size_t most = std::size_t{1} << 30) {
        std::string bytes;
        boost::system::error_code end;
        co_await boost::asio::async_read(socket_, boost::asio::dynamic_buffer(bytes, most),
                                         boost::asio::redirect_error(boost::asio::deferred, end));
        co_return bytes;
    }

    void close() { socket_.close(); }

private:
    boost::asio::ip::tcp::socket socket_;
    boost::beast::flat_buffer buffer_;
};

}  // namespace test
