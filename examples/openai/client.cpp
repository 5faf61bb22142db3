// SPDX-License-Identifier: BSL-1.0
#include "client.hpp"

#include "failure.hpp"
#include "text.hpp"
#include "url.hpp"

#include <sluice/shared_string.hpp>
#include <sluice/stage/attempt.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace asio = boost::asio;

namespace openai {
namespace {

constexpr std::size_t max_error_body = std::size_t{16} << 10;

Url direct(std::string_view base_url) {
    Url url = parse_url(base_url);
    refuse_proxy(url);
    return url;
}

HttpOptions with_key(ClientOptions options) {
    if (!options.api_key.empty()) {
        options.http.bearer_token = std::move(options.api_key);
    }
    return std::move(options.http);
}

// Completes with the response once its header has come, if the status is 200.
asio::awaitable<HttpResponse> succeeded(asio::awaitable<HttpResponse> post, sluice::Attempt& attempt) {
    HttpResponse response = co_await std::move(post);
    report_rates(response.headers(), attempt);
    if (response.status() == 200) {
        co_return response;
    }
    std::string body;
    try {
        body = co_await response.read(max_error_body);
    } catch (const sluice::ModelError&) {
        body.clear();  // The status says more than that its explanation broke off.
    }
    throw error_of(response.status(), response.headers(), body, std::chrono::system_clock::now());
}

void report_usage(const std::optional<sluice::Cost>& usage, sluice::Attempt& attempt) {
    if (usage) {
        attempt.used(*usage);
    }
}

template <class Answer>
Answer reported(Answer answer, sluice::Attempt& attempt) {
    report_usage(answer.usage, attempt);
    return answer;
}

asio::awaitable<std::string> whole_body(asio::awaitable<HttpResponse> post, sluice::Attempt& attempt) {
    HttpResponse response = co_await succeeded(std::move(post), attempt);
    co_return co_await response.read();
}

asio::awaitable<ChatAnswer> read_chat(asio::awaitable<HttpResponse> post, sluice::Attempt& attempt) {
    const std::string body = co_await whole_body(std::move(post), attempt);
    co_return reported(parse_chat(body), attempt);
}

asio::awaitable<Embeddings> read_embeddings(asio::awaitable<HttpResponse> post, std::size_t texts,
                                            sluice::Attempt& attempt) {
    const std::string body = co_await whole_body(std::move(post), attempt);
    co_return reported(parse_embeddings(body, texts), attempt);
}

// The reader has seen the beginning of the answer, and must not see it again.
sluice::ModelError not_retryable(const sluice::ModelError& error, std::size_t delivered) {
    sluice::Verdict verdict = error.verdict();
    if (verdict.retryable()) {
        verdict.kind = sluice::Verdict::invalid;
    }
    const std::string message =
        "the answer failed after " + std::to_string(delivered) + " bytes of it had been passed on: " + error.what();
    return sluice::ModelError(printable(message, max_message), verdict, error.status(), error.code());
}

asio::awaitable<ChatAnswer> read_stream(asio::awaitable<HttpResponse> post, OnPiece on_piece,
                                        sluice::Attempt& attempt) {
    HttpResponse response = co_await succeeded(std::move(post), attempt);
    ChatStream stream;
    std::size_t delivered = 0;
    bool in_reader = false;
    try {
        while (!stream.done()) {
            const std::string_view piece = co_await response.read_some();
            if (piece.empty()) {
                break;
            }
            stream.feed(piece, [&](std::string_view text) {
                delivered += text.size();
                in_reader = true;  // also after an exception of it
                on_piece(text);
                in_reader = false;
            });
        }
        co_await response.finish();
        co_return reported(std::move(stream).finish(), attempt);
    } catch (const sluice::ModelError& error) {
        report_usage(stream.usage(), attempt);
        if (delivered == 0 || in_reader) {
            throw;
        }
        throw not_retryable(error, delivered);
    } catch (...) {
        report_usage(stream.usage(), attempt);
        throw;
    }
}

// Servers may repeat the key in what they say of an error.
template <class Answer>
asio::awaitable<Answer> without_key(asio::awaitable<Answer> call, sluice::SharedString key) {
    try {
        co_return co_await std::move(call);
    } catch (const sluice::ModelError& error) {
        const std::string message = hide(error.what(), key);
        const std::string code = hide(error.code().str(), key);
        if (message == error.what() && code == error.code().str()) {
            throw;  // it may be one of the caller's own
        }
        throw sluice::ModelError(printable(message, max_message), error.verdict(), error.status(), code);
    }
}

}  // namespace

Client::Client(const asio::any_io_executor& executor, std::string_view base_url, ClientOptions options)
    : key_(options.api_key.empty() ? options.http.bearer_token : options.api_key),
      http_(executor, direct(base_url), with_key(std::move(options))) {}

asio::awaitable<ChatAnswer> Client::chat(const ChatRequest& request, sluice::Attempt& attempt) {
    return without_key(read_chat(http_.post("/chat/completions", chat_body(request, false)), attempt), key_);
}

asio::awaitable<ChatAnswer> Client::chat_stream(const ChatRequest& request, OnPiece on_piece,
                                                sluice::Attempt& attempt) {
    auto post = http_.post("/chat/completions", chat_body(request, true), "text/event-stream");
    return without_key(read_stream(std::move(post), std::move(on_piece), attempt), key_);
}

asio::awaitable<Embeddings> Client::embed(const std::string& model, const std::vector<std::string>& texts,
                                          sluice::Attempt& attempt) {
    auto post = http_.post("/embeddings", embeddings_body(model, texts));
    return without_key(read_embeddings(std::move(post), texts.size(), attempt), key_);
}

}  // namespace openai
