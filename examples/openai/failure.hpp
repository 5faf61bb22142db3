// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "header_values.hpp"

#include <sluice/stage/verdict.hpp>

#include <boost/json/fwd.hpp>

#include <chrono>
#include <cstddef>
#include <optional>
#include <string_view>

namespace openai {

/// The size of the message of an error at most, in bytes.
inline constexpr std::size_t max_message = 1024;

/// Returns what an answer with another status than 200 means.
///
/// Status and verdict, unless the server's code or type for the error says more:
/// - 429: throttled.
/// - 503 and 529: overloaded.
/// - 401, 402 and 403, since no request will work until a person acts: exhausted.
/// - Other 4xx, 501 and redirections, which are not followed: invalid.
/// - 408, 409, 425, other 5xx, and whatever else: transient.
///
/// Codes: no quota, credit or budget is left: exhausted. The context is too long, or the content is refused: invalid.
/// The server or engine is overloaded: overloaded.
///
/// The header `x-should-retry` overrules them. If it is `true`, an error that would not be retryable is throttled for
/// 429, overloaded for 503 and 529, and otherwise transient. If it is `false`, one that was throttled is exhausted, and
/// one that was transient or overloaded is invalid: it says nothing of other requests.
///
/// The time to wait comes from `retry-after-ms`, or else from `retry-after`, in seconds or as a date relative to that
/// of the answer. One that is longer than 2 min makes the verdict exhausted, unless `x-should-retry` is `true`, since
/// no query should be held for so long.
///
/// The message has at most 1 kB, and no control characters: the status, the server's code, and its words, or the
/// beginning of a body that is not as usual. The code has at most 64 bytes; it is the server's type for the error if
/// that has no code, or only a number.
/// @param body May be cut off.
/// @param now The date of the answer if that has none.
sluice::ModelError error_of(int status, const Headers& headers, std::string_view body,
                            std::chrono::system_clock::time_point now);

/// Returns the error that an answer with status 200, or an event of a stream, reports as `error`; empty if it is `null`
/// or missing. If the server's code for it is a number from 400 to 599, that is the status. Otherwise the status is
/// 200, and the verdict that of the code or type; transient if they are unknown.
std::optional<sluice::ModelError> error_in(const boost::json::value& answer);

}  // namespace openai
