// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/as_tuple.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/buffer.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>
#include <boost/asio/detached.hpp>
#include <boost/asio/io_context.hpp>
#include <boost/asio/ip/address.hpp>
#include <boost/asio/ip/address_v4.hpp>
#include <boost/asio/ip/tcp.hpp>
#include <boost/asio/post.hpp>
#include <boost/asio/read.hpp>
#include <boost/asio/read_until.hpp>
#include <boost/asio/socket_base.hpp>
#include <boost/asio/this_coro.hpp>
#include <boost/asio/write.hpp>
#include <boost/system/error_code.hpp>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <limits>
#include <memory>
#include <string>
#include <string_view>
#include <tuple>
#include <utility>
#include <vector>

#if OPENAI_HAS_TLS
#include <boost/asio/ssl/context.hpp>
#include <boost/asio/ssl/stream.hpp>
#endif

namespace test {

#if OPENAI_HAS_TLS
using RawTls = boost::asio::ssl::context;
#else
struct RawTls;
#endif

namespace asio = boost::asio;

/// Completes when `condition()` is true. It lets everything else run in the meantime.
template <class Condition>
asio::awaitable<void> until(Condition condition) {
    const auto executor = co_await asio::this_coro::executor;
    while (!condition()) {
        co_await asio::post(executor, asio::deferred);
    }
}

/// What happens on one connection: a request is read and answered with the next bytes, and so on; then the ending.
struct RawScene {
    enum class Ending {
        close,             ///< The connection is closed.
        shut_down,         ///< It is closed after TLS has been told so.
        reset,             ///< The connection is closed with a reset.
        close_on_request,  ///< It is closed after a further request.
        reset_on_request,  ///< It is closed with a reset after a further request.
        silence,           ///< Nothing more is sent.
    };
    std::vector<std::string> answers = {};
    Ending ending = Ending::silence;
    std::size_t unasked = std::numeric_limits<std::size_t>::max();  ///< The answer that is sent without a request.
    std::size_t piece = 0;  ///< How many bytes are sent at once; all if it is zero.
};

/// An HTTP server on loopback that sends given bytes. The last scene is that of all later connections, too.
class RawServer {
public:
    RawServer(asio::io_context& context, std::vector<RawScene> scenes, RawTls* tls = nullptr,
              const asio::ip::address& address = asio::ip::address_v4::loopback())
        : state_(std::make_shared<State>(context, std::move(scenes), tls, address)) {
        asio::co_spawn(context, accept(state_), asio::detached);
    }
    RawServer(const RawServer&) = delete;
    RawServer& operator=(const RawServer&) = delete;
    ~RawServer() { close(); }

    void close() {
        boost::system::error_code ignored;
        state_->acceptor.close(ignored);
        for (const auto& weak : state_->sockets) {
            if (const auto socket = weak.lock()) {
                socket->close(ignored);
            }
        }
    }

    std::string port() const { return std::to_string(state_->port); }
    std::string url(const std::string& host = "127.0.0.1") const {
        return (state_->tls ? "https://" : "http://") + host + ":" + port() + "/v1";
    }
    std::size_t accepted() const noexcept { return state_->sockets.size(); }
    std::size_t open() const noexcept {
        return static_cast<std::size_t>(
            std::ranges::count_if(state_->sockets, [](const auto& weak) { return !weak.expired(); }));
    }
    void speak_unasked() noexcept { state_->told = true; }      ///< Not needed for a first answer.
    std::size_t sent() const noexcept { return state_->sent; }  ///< The number of answers.
    const std::vector<std::string>& names() const noexcept { return state_->names; }  ///< As TLS connections asked for.
    const std::vector<std::string>& requests() const noexcept { return state_->requests; }

private:
    using Socket = asio::ip::tcp::socket;

    struct State {
        State(asio::io_context& context, std::vector<RawScene> what, RawTls* tls_context,
              const asio::ip::address& address)
            : acceptor(context, {address, 0}), scenes(std::move(what)), tls(tls_context) {}

        asio::ip::tcp::acceptor acceptor;
        unsigned port = acceptor.local_endpoint().port();
        std::vector<RawScene> scenes;
        RawTls* tls;
        std::vector<std::weak_ptr<Socket>> sockets;
        std::vector<std::string> requests;
        std::vector<std::string> names;
        std::size_t sent = 0;
        bool told = false;
    };

    static asio::awaitable<void> accept(std::shared_ptr<State> state) {
        for (;;) {
            auto [error, socket] = co_await state->acceptor.async_accept(asio::as_tuple(asio::deferred));
            if (error) {
                co_return;
            }
            socket.set_option(asio::ip::tcp::no_delay(true));
            const auto shared = std::make_shared<Socket>(std::move(socket));
            const RawScene& scene = state->scenes[std::min(state->sockets.size(), state->scenes.size() - 1)];
            state->sockets.emplace_back(shared);
            asio::co_spawn(state->acceptor.get_executor(), serve(state, shared, scene), asio::detached);
        }
    }

    static asio::awaitable<void> serve(std::shared_ptr<State> state, std::shared_ptr<Socket> socket, RawScene scene) {
        if (state->tls == nullptr) {
            co_await play(*state, *socket, *socket, scene);
            co_return;
        }
#if OPENAI_HAS_TLS
        asio::ssl::stream<Socket&> stream(*socket, *state->tls);
        const auto [error] =
            co_await stream.async_handshake(asio::ssl::stream_base::server, asio::as_tuple(asio::deferred));
        if (error) {
            co_return;
        }
        const char* const name = ::SSL_get_servername(stream.native_handle(), TLSEXT_NAMETYPE_host_name);
        state->names.emplace_back(name == nullptr ? "" : name);
        co_await play(*state, stream, *socket, scene);
        if (scene.ending == RawScene::Ending::shut_down) {
            co_await stream.async_shutdown(asio::as_tuple(asio::deferred));
        }
#endif
    }

    template <class Stream>
    static asio::awaitable<void> play(State& state, Stream& stream, Socket& socket, const RawScene& scene) {
        std::string buffer;
        for (std::size_t i = 0; i < scene.answers.size(); ++i) {
            if (i == scene.unasked && i != 0) {
                co_await until([&] { return state.told; });
            }
            if (i != scene.unasked && !co_await read_request(state, stream, buffer)) {
                co_return;
            }
            if (!co_await send(stream, scene.answers[i], scene.piece)) {
                co_return;
            }
            ++state.sent;
        }
        if (scene.ending == RawScene::Ending::close_on_request || scene.ending == RawScene::Ending::reset_on_request) {
            co_await read_request(state, stream, buffer);
        }
        if (scene.ending == RawScene::Ending::reset || scene.ending == RawScene::Ending::reset_on_request) {
            socket.set_option(asio::socket_base::linger(true, 0));
            socket.close();
        } else if (scene.ending == RawScene::Ending::silence) {
            while (co_await read_request(state, stream, buffer)) {
            }
        }
    }

    template <class Stream>
    static asio::awaitable<bool> send(Stream& stream, std::string_view bytes, std::size_t piece) {
        while (!bytes.empty()) {
            const std::string_view next = bytes.substr(0, piece == 0 ? bytes.size() : piece);
            const auto [error, sent] =
                co_await asio::async_write(stream, asio::buffer(next), asio::as_tuple(asio::deferred));
            if (error) {
                co_return false;
            }
            bytes.remove_prefix(sent);
        }
        co_return true;
    }

    // Reads a request with its body. Returns false if the connection ends before.
    template <class Stream>
    static asio::awaitable<bool> read_request(State& state, Stream& stream, std::string& buffer) {
        constexpr auto token = asio::as_tuple(asio::deferred);
        auto dynamic = asio::dynamic_buffer(buffer);
        const auto [error, head] = co_await asio::async_read_until(stream, dynamic, "\r\n\r\n", token);
        if (error) {
            co_return false;
        }
        const std::size_t length = std::stoul(buffer.substr(buffer.find("Content-Length: ") + 16));
        if (buffer.size() < head + length) {
            const std::size_t missing = head + length - buffer.size();
            const auto [failed, received] =
                co_await asio::async_read(stream, dynamic, asio::transfer_exactly(missing), token);
            if (failed) {
                co_return false;
            }
        }
        state.requests.push_back(buffer.substr(0, head + length));
        buffer.erase(0, head + length);
        co_return true;
    }

    std::shared_ptr<State> state_;
};

/// A server that accepts no connection. The system still makes one or two for it, and lets the others knock.
struct DeafServer {
    explicit DeafServer(asio::io_context& context) : acceptor(context) {
        const asio::ip::tcp::endpoint loopback(asio::ip::address_v4::loopback(), 0);
        acceptor.open(loopback.protocol());
        acceptor.bind(loopback);
        acceptor.listen(0);
    }

    std::string url() const { return "http://127.0.0.1:" + std::to_string(acceptor.local_endpoint().port()); }

    asio::ip::tcp::acceptor acceptor;
};

/// Runs `function()` and everything that it starts, closes the server, and rethrows the exception.
template <class Function>
void run_to_end(asio::io_context& context, RawServer& server, Function function) {
    std::exception_ptr failure;
    asio::co_spawn(context, function(), [&](std::exception_ptr error) {
        failure = error;
        server.close();
    });
    context.run();
    context.restart();
    if (failure) {
        std::rethrow_exception(failure);
    }
}

/// An answer with status 200 and a content length.
inline std::string answer_with(const std::string& body, const std::string& more_headers = "") {
    return "HTTP/1.1 200 OK\r\nContent-Length: " + std::to_string(body.size()) + "\r\n" + more_headers + "\r\n" + body;
}

}  // namespace test
