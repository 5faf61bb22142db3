// SPDX-License-Identifier: BSL-1.0
// A stub of a provider: answers each POST over HTTP/1.1 with the same chat completion after a fixed time, and keeps the
// connection. It reads of a request only where it ends, so that it takes less time than any client.
//
// Prints its port. `GET /counts` returns what it has counted since the last one. Ends when its standard input does.
#include "../../../examples/arguments.hpp"

#include <boost/asio/buffer.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/posix/stream_descriptor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/asio/write.hpp>

#include <unistd.h>

#include <algorithm>
#include <array>
#include <charconv>
#include <chrono>
#include <cstddef>
#include <deque>
#include <exception>
#include <iostream>
#include <memory>
#include <string>
#include <string_view>
#include <utility>

namespace {

namespace asio = boost::asio;
using Executor = asio::io_context::executor_type;
using Acceptor = asio::basic_socket_acceptor<asio::ip::tcp, Executor>;
using Socket = asio::basic_stream_socket<asio::ip::tcp, Executor>;
using Timer =
    asio::basic_waitable_timer<std::chrono::steady_clock, asio::wait_traits<std::chrono::steady_clock>, Executor>;
using boost::system::error_code;

std::string response(std::string_view body) {
    return "HTTP/1.1 200 OK\r\nServer: stub\r\nContent-Type: application/json\r\nContent-Length: " +
           std::to_string(body.size()) + "\r\n\r\n" + std::string(body);
}

const std::string completion = response(
    R"({"id":"chatcmpl-7Qyqpwdfhqwajicae","object":"chat.completion","created":1760000000,"model":"stub",)"
    R"("system_fingerprint":"fp_44709d6fcb","choices":[{"index":0,"message":{"role":"assistant","content":)"
    R"("A limit keeps the number of calls that run at once below what the provider allows.\nCalls beyond it wait )"
    R"(in a line, in the order in which they came, and each gets a slot as soon as one is returned. So the provider )"
    R"(is never asked for more than it can do, and no call is refused with \"429 Too Many Requests\"."},)"
    R"("logprobs":null,"finish_reason":"stop"}],"usage":{"prompt_tokens":41,"completion_tokens":68,)"
    R"("total_tokens":109}})");

/// The size of the first request in `received`, or 0 if it is not whole yet.
std::size_t request_size(std::string_view received) {
    const std::size_t head = received.find("\r\n\r\n");
    if (head == std::string_view::npos) {
        return 0;
    }
    std::size_t size = head + 4;
    for (const std::string_view name : {"\r\nContent-Length: ", "\r\ncontent-length: "}) {
        if (const std::size_t at = received.find(name); at < head) {
            std::size_t body = 0;
            std::from_chars(received.data() + at + name.size(), received.data() + head, body);
            size += body;
            break;
        }
    }
    return size <= received.size() ? size : 0;
}

struct Counts {
    std::size_t requests = 0;
    std::size_t most_at_once = 0;
    std::size_t connections = 0;
    std::size_t refused = 0;  // requests that are none for a completion
};

class Stub;

class Connection : public std::enable_shared_from_this<Connection> {
public:
    Connection(Stub& stub, Socket socket) : stub_(stub), socket_(std::move(socket)) {}

    void read();
    void answer(const std::string& response);

private:
    void take_request(std::size_t size);

    Stub& stub_;
    Socket socket_;
    std::array<char, 65536> buffer_;
    std::size_t received_ = 0;
    std::string counts_;
};

class Stub {
public:
    Stub(asio::io_context& context, std::chrono::nanoseconds delay)
        : acceptor_(context.get_executor(), {asio::ip::address_v4::loopback(), 0}),
          timer_(context.get_executor()),
          delay_(delay) {
        acceptor_.listen(1024);
        accept();
    }

    unsigned short port() const { return acceptor_.local_endpoint().port(); }

    // All wait for the same time, so the first that came is the first that is due.
    void answer_later(std::shared_ptr<Connection> connection) {
        ++counts.requests;
        waiting_.emplace_back(Timer::clock_type::now() + delay_, std::move(connection));
        counts.most_at_once = std::max(counts.most_at_once, waiting_.size());
        if (waiting_.size() == 1) {
            wait();
        }
    }

    Counts counts;

private:
    void accept() {
        acceptor_.async_accept([this](error_code error, Socket socket) {
            if (!error) {
                ++counts.connections;
                socket.set_option(asio::ip::tcp::no_delay(true));
                std::make_shared<Connection>(*this, std::move(socket))->read();
            }
            accept();
        });
    }

    void wait() {
        timer_.expires_at(waiting_.front().first);
        timer_.async_wait([this](error_code) {
            const auto now = Timer::clock_type::now();
            while (!waiting_.empty() && waiting_.front().first <= now) {
                waiting_.front().second->answer(completion);
                waiting_.pop_front();
            }
            if (!waiting_.empty()) {
                wait();
            }
        });
    }

    Acceptor acceptor_;
    Timer timer_;
    std::chrono::nanoseconds delay_;
    std::deque<std::pair<Timer::time_point, std::shared_ptr<Connection>>> waiting_;
};

void Connection::read() {
    socket_.async_read_some(asio::buffer(buffer_) + received_,
                            [self = shared_from_this()](error_code error, std::size_t count) {
                                if (error) {
                                    return;  // the client is done; a request that does not fit comes here, too
                                }
                                self->received_ += count;
                                const std::size_t size = request_size({self->buffer_.data(), self->received_});
                                if (size == 0) {
                                    self->read();
                                } else {
                                    self->take_request(size);
                                }
                            });
}

void Connection::take_request(std::size_t size) {
    const std::string_view request(buffer_.data(), size);
    if (request.starts_with("POST /v1/chat/completions ") && received_ == size) {
        stub_.answer_later(shared_from_this());
    } else if (request.starts_with("GET /counts ")) {
        const Counts counts = std::exchange(stub_.counts, Counts());
        counts_ = response("{\"requests\":" + std::to_string(counts.requests) +
                           ",\"most_at_once\":" + std::to_string(counts.most_at_once) + ",\"connections\":" +
                           std::to_string(counts.connections) + ",\"refused\":" + std::to_string(counts.refused) + "}");
        answer(counts_);
    } else {
        ++stub_.counts.refused;  // and the connection closes
    }
}

void Connection::answer(const std::string& response) {
    received_ = 0;
    asio::async_write(socket_, asio::buffer(response), [self = shared_from_this()](error_code error, std::size_t) {
        if (!error) {
            self->read();
        }
    });
}

std::chrono::microseconds parse_delay(int argc, char** argv) {
    std::chrono::microseconds delay(5000);
    for (support::Arguments arguments(argc, argv); arguments.next();) {
        if (arguments.option() == "--delay") {
            delay = std::chrono::microseconds(arguments.number(0, 10'000'000));
        } else {
            arguments.unknown();
        }
    }
    return delay;
}

}  // namespace

int main(int argc, char** argv) {
    try {
        asio::io_context context(1);
        const Stub stub(context, parse_delay(argc, argv));
        std::cout << stub.port() << std::endl;

        asio::posix::stream_descriptor input(context, dup(STDIN_FILENO));
        char byte = 0;
        input.async_read_some(asio::buffer(&byte, 1), [&](error_code, std::size_t) { context.stop(); });
        context.run();
    } catch (const std::exception& error) {
        std::cerr << "stub_server: " << error.what() << " (usage: stub_server [--delay MICROSECONDS])\n";
        return 2;
    }
}
