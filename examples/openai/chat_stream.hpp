// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "chat.hpp"
#include "sse_parser.hpp"

#include <sluice/stage/rate.hpp>

#include <cstddef>
#include <functional>
#include <optional>
#include <string>
#include <string_view>

namespace openai {

/// Takes each piece of a streamed answer, as soon as it has come. The view is valid during the call.
using OnPiece = std::function<void(std::string_view)>;

/// Puts a streamed answer together.
class ChatStream {
public:
    /// The longest text, in bytes.
    static constexpr std::size_t max_text = std::size_t{64} << 20;

    /// Takes the next bytes of the body, wherever they were split, and calls `on_piece` for each piece of text; never
    /// with an empty one. Ignores all that comes after `[DONE]`. After an exception, also one of `on_piece`, the stream
    /// must not be fed again.
    /// @throws sluice::ModelError for an `error` in the stream, as error_in() says; transient if it is malformed or an
    /// event is too long, see SseParser; invalid if the text is longer than `max_text`.
    void feed(std::string_view bytes, const OnPiece& on_piece);

    /// What the server has reported so far.
    const std::optional<sluice::Cost>& usage() const noexcept { return answer_.usage; }

    bool done() const noexcept { return done_; }                            ///< Whether `[DONE]` has come.
    std::size_t delivered() const noexcept { return answer_.text.size(); }  ///< The bytes given to `on_piece`.

    /// Returns the answer when the body has ended.
    /// @throws sluice::ModelError, transient, if `[DONE]` has not come, or the body was not a stream of events; as
    /// error_in() says if the last event was an `error` that was not ended.
    ChatAnswer finish() &&;

private:
    void take(std::string_view data, const OnPiece& on_piece);

    SseParser parser_;
    ChatAnswer answer_;
    std::string beginning_;  // of the body, until the first event has come
    bool any_event_ = false;
    bool done_ = false;
};

}  // namespace openai
