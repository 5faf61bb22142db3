// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/any_io_executor.hpp>
#include <boost/beast/http/message.hpp>
#include <boost/beast/http/string_body.hpp>

#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <memory>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace boost::asio::ssl {
class context;
}

namespace openai {

/// A request as the server has read it.
struct ScriptedRequest {
    std::size_t number = 0;         ///< From 1, in the order in which they have come.
    std::size_t on_connection = 0;  ///< From 1, of those on its connection.
    boost::beast::http::request<boost::beast::http::string_body> message;
    std::string model;
    std::vector<std::string> texts;  ///< The contents of the messages, or the texts to embed.
    bool stream = false;             ///< Whether the answer is to be streamed
    bool stream_usage = false;       ///< and to end with the usage.
    std::string problem;             ///< Why it is refused with status 400; empty if it is not.
};

/// How the server answers a request. Default: correctly, and at once.
struct Behaviour {
    std::chrono::nanoseconds delay = {};        ///< Before the answer.
    std::chrono::nanoseconds piece_delay = {};  ///< Between two pieces of it.
    std::size_t piece_bytes = 0;                ///< The size of a piece; 0 for the words of a stream.
    std::optional<int> status = std::nullopt;   ///< Default: the correct one.

    /// Sent as well, or instead of those with the same names.
    std::vector<std::pair<std::string, std::string>> headers = {};
    std::optional<std::string> body = std::nullopt;  ///< Instead of the correct one. It is not streamed.
    std::optional<std::string> raw = std::nullopt;   ///< Instead of everything, as it is; status 0.

    std::optional<std::size_t> words = std::nullopt;  ///< How many words of a stream come. Default: all.
    std::string last_event = "[DONE]";                ///< The last event of a stream; none if empty.
    bool endless = false;                             ///< Repeats the body, which is not empty, chunked.

    std::optional<std::size_t> stop_after = std::nullopt;  ///< How many bytes are sent, with the headers. Default: all.
    bool hang = false;   ///< Sends nothing after those, and keeps the connection until the client closes it.
    bool close = false;  ///< Closes the connection after the answer without saying so.

    /// An error in the shape of OpenAI's.
    static Behaviour error(int status, std::string_view code, std::string_view message);

    /// An error with status 429 and `retry-after-ms`.
    static Behaviour throttled(std::chrono::milliseconds retry_after);

    /// No answer ever.
    static Behaviour silent() { return {.stop_after = 0, .hang = true}; }
};

/// Chooses how a request is answered.
using Script = std::function<Behaviour(const ScriptedRequest&)>;

struct ScriptedServerOptions {
    /// Default: each answer begins after 20 ms, and a word of a stream comes every 20 ms.
    Script script = nullptr;

    /// How many requests may be in work at once; one more is answered with status 429. 0 for any number.
    std::size_t slots = 0;

    /// How many requests may come a second, up to 1,000,000; one more is answered with status 429 and `retry-after-ms`.
    /// 0 for any number.
    int rate = 0;
    int burst = 1;  ///< How many of these may come at once after a rest, from 1 to 1,000,000.

    /// How long a connection is kept that sends no request, or not all of it; positive. Clients are not told.
    std::chrono::nanoseconds keep_alive = std::chrono::minutes(1);

    /// The certificate and key for https; must outlive the server and its connections. Default: http.
    boost::asio::ssl::context* tls = nullptr;
};

/// What the server has counted.
struct ScriptedCounts {
    std::size_t connections = 0;       ///< That were accepted.
    std::size_t open_connections = 0;  ///< Now.
    std::size_t requests = 0;
    std::size_t working = 0;                  ///< Requests that are being answered now.
    std::size_t most_working = 0;             ///< The most at any time.
    std::size_t gone = 0;                     ///< Requests whose client has left before the end of the answer.
    std::map<int, std::size_t> answers = {};  ///< Those sent to their end, by status.
};

/// A server on loopback that looks like one of OpenAI's, and answers as a script says. There is no model behind it: the
/// answer to a chat repeats the last message, and an embedding is made of the letters of its text.
///
/// @code
/// openai::ScriptedServer server(executor, {.script = [](const openai::ScriptedRequest& request) {
///     return request.number % 10 == 0 ? openai::Behaviour::throttled(50ms) : openai::Behaviour();
/// }});
/// openai::Client client(executor, server.url());
/// @endcode
///
/// It has `POST /v1/chat/completions`, `POST /v1/embeddings`, `GET /v1/models` and `GET /health`. A request
/// that is malformed or longer than 4 MiB is answered with status 400. A client that sends anything before it has its
/// answer, or closes its side, has gone: it gets no more of it. An exception that the script throws leaves the run() of
/// the context. Without a descriptor for a connection, it waits until one is free.
///
/// @par Thread safety
/// Unsafe: it belongs to the thread or strand of its executor.
///
/// @par Lifetime
/// Destroying it closes it. It must not outlive its context.
class ScriptedServer {
public:
    /// Listens at a port that the system chooses.
    /// @throws std::invalid_argument naming the option that is out of range, and its value.
    /// @throws boost::system::system_error if it cannot listen.
    explicit ScriptedServer(const boost::asio::any_io_executor& executor, ScriptedServerOptions options = {});
    ~ScriptedServer();

    ScriptedServer(const ScriptedServer&) = delete;
    ScriptedServer& operator=(const ScriptedServer&) = delete;

    /// Accepts no more connections, and closes those that are open. Their coroutines end as soon as the context runs.
    void close() noexcept;

    unsigned short port() const noexcept;
    std::string url() const;  ///< As "http://127.0.0.1:41234/v1".
    const ScriptedCounts& counts() const noexcept;

private:
    class State;
    std::shared_ptr<State> state_;
};

}  // namespace openai
