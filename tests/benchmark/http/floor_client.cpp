// SPDX-License-Identifier: BSL-1.0
// The floor of the benchmark over HTTP: a coroutine for each slot that writes a request which was made before, and
// reads until as many bytes have come as each answer has. No HTTP, no JSON, no limits, no timeouts.
#include "load.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/use_awaitable.hpp>
#include <boost/asio/write.hpp>

#include <array>
#include <charconv>
#include <cstddef>
#include <exception>
#include <iostream>
#include <stdexcept>
#include <string>
#include <string_view>

namespace {

namespace asio = boost::asio;
using Executor = asio::io_context::executor_type;
using Token = asio::use_awaitable_t<Executor>;
using Socket = Token::as_default_on_t<asio::basic_stream_socket<asio::ip::tcp, Executor>>;

unsigned short port_of(std::string_view url) {
    constexpr std::string_view prefix = "http://127.0.0.1:";
    unsigned short port = 0;
    if (url.starts_with(prefix)) {
        std::from_chars(url.data() + prefix.size(), url.data() + url.size(), port);
    }
    if (port == 0) {
        throw std::invalid_argument("--url takes http://127.0.0.1:PORT/..., got '" + std::string(url) + "'");
    }
    return port;
}

std::string request() {
    const std::string body = R"({"model":"stub","messages":[{"role":"system","content":")" +
                             std::string(benchmark::system_message) + R"("},{"role":"user","content":")" +
                             benchmark::question(12345) + R"("}],"max_tokens":128})";
    return "POST /v1/chat/completions HTTP/1.1\r\nHost: 127.0.0.1\r\nAuthorization: Bearer benchmark\r\n"
           "Content-Type: application/json\r\nContent-Length: " +
           std::to_string(body.size()) + "\r\n\r\n" + body;
}

class Floor {
public:
    explicit Floor(const benchmark::LoadOptions& options)
        : left_(options.queries), port_(port_of(options.url)), measurement_(options.queries) {}

    asio::awaitable<void, Executor> run(Executor executor) {
        Socket socket(executor);
        co_await socket.async_connect({asio::ip::address_v4::loopback(), port_});
        socket.set_option(asio::ip::tcp::no_delay(true));
        std::array<char, 4096> buffer;
        while (left_ != 0) {
            --left_;
            const auto begun = benchmark::Measurement::Clock::now();
            co_await asio::async_write(socket, asio::buffer(request_), Token());
            std::size_t size = co_await socket.async_read_some(asio::buffer(buffer));
            for (const std::size_t whole = answer_size({buffer.data(), size}); size < whole;) {
                size += co_await socket.async_read_some(asio::buffer(buffer) + size);
            }
            measurement_.count(begun, 0);
        }
    }

    const benchmark::Measurement& measurement() const noexcept { return measurement_; }

private:
    // The first answer tells.
    std::size_t answer_size(std::string_view answer) {
        if (answer_size_ == 0) {
            constexpr std::string_view name = "Content-Length: ";
            std::size_t body = 0;
            std::from_chars(answer.data() + answer.find(name) + name.size(), answer.data() + answer.size(), body);
            answer_size_ = answer.find("\r\n\r\n") + 4 + body;
        }
        return answer_size_;
    }

    std::size_t left_;
    unsigned short port_;
    std::string request_ = request();
    std::size_t answer_size_ = 0;
    benchmark::Measurement measurement_;
};

}  // namespace

int main(int argc, char** argv) {
    try {
        const benchmark::LoadOptions options = benchmark::parse_load(argc, argv);
        asio::io_context context(1);
        Floor floor(options);
        for (std::size_t slot = 0; slot < options.slots; ++slot) {
            asio::co_spawn(context.get_executor(), floor.run(context.get_executor()),
                           [](const std::exception_ptr& error) {
                               if (error) {
                                   std::rethrow_exception(error);
                               }
                           });
        }
        context.run();
        floor.measurement().print();
    } catch (const std::exception& error) {
        std::cerr << "http_floor_client: " << error.what() << '\n';
        return 2;
    }
}
