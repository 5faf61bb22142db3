// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "http_client.hpp"
#include "http_options.hpp"
#include "protocol.hpp"

#include <sluice/shared_string.hpp>
#include <sluice/stage/attempt.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <string>
#include <string_view>
#include <vector>

namespace openai {

struct ClientOptions {
    std::string api_key = {};  ///< Sent as bearer token; none if empty. No error has it, even if the server repeats it.
    HttpOptions http = {};     ///< Timeouts, pool, limits, certificates.
};

/// A client for an OpenAI-compatible server.
///
/// @code
/// openai::Client client(executor, "https://api.example.com/v1", {.api_key = key});
/// sluice::Stage answer(executor, "answer", 8, [&](const std::string& text, sluice::Attempt& attempt) {
///     return client.chat({.model = "small", .messages = {{"user", text}}}, attempt);
/// });
/// @endcode
///
/// It repeats nothing, since the stage does, but a request whose kept connection was closed before an answer came, see
/// HttpClient. Each operation throws a sluice::ModelError that says what the failure means, be it of the connection
/// (see HttpClient), of the status (see error_of()) or of the answer. Each reports to `attempt` the usage, and what the
/// server says of its rates. `attempt` must live until the operation has ended; the client and the other arguments need
/// not.
///
/// @par Cancellation
/// Each operation closes its connection, so that the server can stop, and throws `operation_aborted`.
///
/// @par Thread safety
/// Unsafe: it belongs to one thread or strand, which `executor` runs it on.
class Client {
public:
    /// @throws std::invalid_argument naming the URL if it is none or would take the key to another computer without
    ///     TLS, or the option that is out of range.
    /// @throws std::runtime_error if the environment names a proxy for the URL: see refuse_proxy().
    Client(const boost::asio::any_io_executor& executor, std::string_view base_url, ClientOptions options = {});

    /// Asks for an answer as a whole.
    /// @throws sluice::ModelError also when called, if the request cannot be written; see chat_body().
    boost::asio::awaitable<ChatAnswer> chat(const ChatRequest& request, sluice::Attempt& attempt);

    /// Asks for an answer that comes in pieces, and calls `on_piece` for each. If that fails after a piece, the error
    /// is not retryable: another attempt would give the pieces again. It says how much had come. But if the stage has a
    /// timeout, that counts as transient, as always: use those of HttpOptions, or a stage without retries.
    /// @throws sluice::ModelError as chat(), and whatever `on_piece` throws.
    boost::asio::awaitable<ChatAnswer> chat_stream(const ChatRequest& request, OnPiece on_piece,
                                                   sluice::Attempt& attempt);

    /// Asks for the vectors of several texts in one call.
    /// @param model May be empty for a server that has a single one.
    /// @throws sluice::ModelError as chat().
    boost::asio::awaitable<Embeddings> embed(const std::string& model, const std::vector<std::string>& texts,
                                             sluice::Attempt& attempt);

private:
    sluice::SharedString key_;
    HttpClient http_;
};

}  // namespace openai
