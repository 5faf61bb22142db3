// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <cstddef>
#include <string>
#include <string_view>

namespace openai {

/// Returns a text from a server as it may be printed: on one line, with control characters and bytes that are not
/// UTF-8 escaped, as in `\n`, `\x1b` and `\u0085`. A longer one is cut between two characters and ends with "...".
/// @param max The size of the result at most, in bytes; at least 3.
std::string printable(std::string_view text, std::size_t max);

/// Returns a text from a server as a terminal may show it, with line ends and tabs, and otherwise as by printable():
/// with control characters a server could give the terminal orders.
std::string for_terminal(std::string_view text);

/// Returns the text with "[hidden]" in place of the secret, also where its characters are escaped as in JSON, a URL or
/// HTML, and of a beginning of it of 4 bytes or more where the text was cut: before "...".
std::string hide(std::string_view text, std::string_view secret);

/// @throws sluice::ModelError that names `what` and the first wrong byte, if `text` is not UTF-8. The error is invalid:
/// servers refuse such a request, and replacing the byte would ask something else.
void require_utf8(std::string_view what, std::string_view text);

/// The same for an element of a list, or a member of one, such as `messages[0].content`.
void require_utf8(std::string_view list, std::size_t index, std::string_view member, std::string_view text);

}  // namespace openai
