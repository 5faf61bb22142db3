// SPDX-License-Identifier: BSL-1.0
#include "scripted_server.hpp"

#include "scripted_answer.hpp"
#include "scripted_content.hpp"
#include "scripted_limits.hpp"
#include "scripted_send.hpp"

#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/experimental/awaitable_operators.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/redirect_error.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/beast/core/flat_buffer.hpp>
#include <boost/beast/core/tcp_stream.hpp>
#include <boost/beast/http/error.hpp>
#include <boost/beast/http/parser.hpp>
#include <boost/beast/http/read.hpp>
#include <boost/beast/http/string_body.hpp>
#include <boost/system/error_code.hpp>
#include <boost/system/system_error.hpp>
#if OPENAI_HAS_TLS
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#endif

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <exception>
#include <list>
#include <memory>
#include <string>
#include <utility>

namespace asio = boost::asio;
namespace beast = boost::beast;
namespace http = boost::beast::http;
using asio::ip::tcp;

namespace openai {
namespace {

constexpr std::size_t max_request = std::size_t{4} << 20;

bool is_about_http(const boost::system::error_code& error) {
    return error.category() == make_error_code(http::error::end_of_stream).category();
}

}  // namespace

class ScriptedServer::State {
public:
    State(const asio::any_io_executor& executor, ScriptedServerOptions options)
        : options_(std::move(options)),
          limits_(options_),
          acceptor_(executor, {asio::ip::address_v4::loopback(), 0}),
          pause_(executor) {
        if (!options_.script) {
            options_.script = [](const ScriptedRequest&) {
                return Behaviour{.delay = std::chrono::milliseconds(20), .piece_delay = std::chrono::milliseconds(20)};
            };
        }
    }

    void close() noexcept {
        boost::system::error_code ignored;
        ignored = acceptor_.close(ignored);
        pause_.cancel();
        for (auto& connection : connections_) {
            connection.close();
        }
    }

    const ScriptedCounts& counts() const noexcept { return counts_; }
    unsigned short port() const { return port_; }
    bool secure() const { return options_.tls != nullptr; }

    static asio::awaitable<void> accept(std::shared_ptr<State> self) {
        while (self->acceptor_.is_open()) {
            boost::system::error_code error;
            tcp::socket socket = co_await self->acceptor_.async_accept(asio::redirect_error(asio::deferred, error));
            if (!self->acceptor_.is_open()) {
                co_return;
            }
            if (!error) {
                start(self, serve(self, std::move(socket)));
                continue;
            }
            // The client has left, or there is no descriptor until another connection closes.
            self->pause_.expires_after(std::chrono::milliseconds(10));
            co_await self->pause_.async_wait(asio::redirect_error(asio::deferred, error));
        }
    }

    // Whatever leaves the coroutine leaves the run() of the context.
    static void start(const std::shared_ptr<State>& self, asio::awaitable<void> coroutine) {
        asio::co_spawn(self->acceptor_.get_executor(), std::move(coroutine), [](const std::exception_ptr& error) {
            if (error) {
                std::rethrow_exception(error);
            }
        });
    }

private:
    // One of the connections, as long as its coroutine lives.
    class Connection {
    public:
        Connection(State& state, tcp::socket socket)
            : state_(state), place_(state.connections_.emplace(state.connections_.end(), std::move(socket))) {
            ++state.counts_.connections;
            state.counts_.open_connections = state.connections_.size();
        }
        ~Connection() {
            state_.connections_.erase(place_);
            state_.counts_.open_connections = state_.connections_.size();
        }
        Connection(const Connection&) = delete;
        Connection& operator=(const Connection&) = delete;

        beast::tcp_stream& stream() { return *place_; }

    private:
        State& state_;
        std::list<beast::tcp_stream>::iterator place_;
    };

    static asio::awaitable<void> serve(std::shared_ptr<State> self, tcp::socket socket) {
        Connection connection(*self, std::move(socket));
        beast::tcp_stream& tcp_stream = connection.stream();
        boost::system::error_code error;
        error = tcp_stream.socket().set_option(tcp::no_delay(true), error);
#if OPENAI_HAS_TLS
        if (self->options_.tls != nullptr) {
            asio::ssl::stream<beast::tcp_stream&> stream(tcp_stream, *self->options_.tls);
            tcp_stream.expires_after(self->options_.keep_alive);
            co_await stream.async_handshake(asio::ssl::stream_base::server,
                                            asio::redirect_error(asio::deferred, error));
            if (!error) {
                co_await self->answer_all(tcp_stream, stream);
            }
            co_return;
        }
#endif
        co_await self->answer_all(tcp_stream, tcp_stream);
    }

    template <class Stream>
    asio::awaitable<void> answer_all(beast::tcp_stream& tcp_stream, Stream& stream) {
        beast::flat_buffer buffer;
        bool open = true;
        for (std::size_t number = 1; open; ++number) {
            http::request_parser<http::string_body> parser;
            parser.body_limit(max_request);
            boost::system::error_code error;
            tcp_stream.expires_after(options_.keep_alive);
            co_await http::async_read(stream, buffer, parser, asio::redirect_error(asio::deferred, error));
            tcp_stream.expires_never();
            if (error && (!is_about_http(error) || error == http::error::end_of_stream ||
                          error == http::error::partial_message)) {
                co_return;
            }
            ScriptedRequest request;
            request.number = ++counts_.requests;
            request.on_connection = number;
            request.message = parser.release();
            if (error) {
                request.problem = error.message();
                request.message.keep_alive(false);
            } else {
                read_scripted(request);
            }
            open = co_await answer_one(tcp_stream.socket(), stream, request);
        }
    }

    // Returns whether the connection can be used for another request.
    template <class Stream>
    asio::awaitable<bool> answer_one(tcp::socket& socket, Stream& stream, const ScriptedRequest& request) {
        using namespace asio::experimental::awaitable_operators;
        ScriptedWork work(counts_);
        auto refusal = limits_.refuse(counts_.working);
        const Behaviour behaviour = refusal ? *std::move(refusal) : options_.script(request);
        const ScriptedAnswer answer = scripted_answer(request, behaviour);
        bool whole = false;
        try {
            if (takes_time(answer, behaviour)) {
                auto either = send_scripted(stream, answer, behaviour, work) || until_gone(socket, work);
                const auto first = co_await std::move(either);
                whole = first.index() == 0 && std::get<0>(first);
            } else {
                whole = co_await send_scripted(stream, answer, behaviour, work);
            }
        } catch (const boost::system::system_error&) {
            work.client_gone();  // its connection is lost
        }
        if (whole) {
            ++counts_.answers[answer.status];
        }
        co_return whole && !behaviour.close && request.message.keep_alive();
    }

    ScriptedServerOptions options_;
    ScriptedLimits limits_;
    ScriptedCounts counts_;
    tcp::acceptor acceptor_;
    asio::steady_timer pause_;
    unsigned short port_ = acceptor_.local_endpoint().port();
    std::list<beast::tcp_stream> connections_;
};

ScriptedServer::ScriptedServer(const asio::any_io_executor& executor, ScriptedServerOptions options)
    : state_(std::make_shared<State>(executor, std::move(options))) {
    State::start(state_, State::accept(state_));
}

ScriptedServer::~ScriptedServer() { close(); }

void ScriptedServer::close() noexcept { state_->close(); }

unsigned short ScriptedServer::port() const noexcept { return state_->port(); }

std::string ScriptedServer::url() const {
    return (state_->secure() ? "https://127.0.0.1:" : "http://127.0.0.1:") + std::to_string(port()) + "/v1";
}

const ScriptedCounts& ScriptedServer::counts() const noexcept { return state_->counts(); }

}  // namespace openai
