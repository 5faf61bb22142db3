// SPDX-License-Identifier: BSL-1.0
#include "text.hpp"

#include <sluice/stage/verdict.hpp>

#include <boost/assert.hpp>

#include <algorithm>
#include <cstdint>
#include <cstring>

namespace openai {

namespace {

// Returns the length of the character with which `text` begins, or 0 if that is not UTF-8. Overlong forms, surrogates
// and what lies beyond U+10FFFF are not.
std::size_t character_length(std::string_view text) noexcept {
    const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0U; };
    const unsigned first = byte(0);
    if (first < 0x80) {
        return 1;
    }
    if (first < 0xC2 || first > 0xF4) {
        return 0;
    }
    const unsigned lowest = first == 0xE0 ? 0xA0 : first == 0xF0 ? 0x90 : 0x80;
    const unsigned highest = first == 0xED ? 0x9F : first == 0xF4 ? 0x8F : 0xBF;
    if (byte(1) < lowest || byte(1) > highest) {
        return 0;
    }
    const std::size_t length = first < 0xE0 ? 2 : first < 0xF0 ? 3 : 4;
    for (std::size_t i = 2; i < length; ++i) {
        if ((byte(i) & 0xC0) != 0x80) {
            return 0;
        }
    }
    return length;
}

using EightBytes = std::uint64_t;

bool begins_with_ascii(std::string_view text) noexcept {
    EightBytes bytes = 0;
    if (text.size() < sizeof bytes) {
        return false;
    }
    std::memcpy(&bytes, text.data(), sizeof bytes);
    return (bytes & 0x8080808080808080U) == 0;
}

// Returns the offset of the first byte that is not UTF-8, or the size.
std::size_t find_invalid(std::string_view text) noexcept {
    std::size_t at = 0;
    while (at < text.size()) {
        const std::string_view rest = text.substr(at);
        const std::size_t length = begins_with_ascii(rest) ? sizeof(EightBytes) : character_length(rest);
        if (length == 0) {
            break;
        }
        at += length;
    }
    return at;
}

std::string hexadecimal(std::string_view prefix, char byte) {
    constexpr std::string_view digits = "0123456789abcdef";
    const auto value = static_cast<unsigned char>(byte);
    return std::string(prefix) + digits[value >> 4U] + digits[value & 15U];
}

std::string printable_character(std::string_view character, bool valid) {
    const char first = character.front();
    if (!valid || first == '\x7F') {
        return hexadecimal("\\x", first);
    }
    if (first == '\n' || first == '\r' || first == '\t') {
        return first == '\n' ? "\\n" : first == '\r' ? "\\r" : "\\t";
    }
    if (static_cast<unsigned char>(first) < 0x20) {
        return hexadecimal("\\x", first);
    }
    if (first == '\xC2' && static_cast<unsigned char>(character[1]) < 0xA0) {
        return hexadecimal("\\u00", character[1]);
    }
    return std::string(character);
}

bool equal_in_any_case(char a, char b) noexcept {
    const auto lower = [](char c) { return c >= 'A' && c <= 'Z' ? c + 32 : c; };
    return lower(a) == lower(b);
}

bool begins_with_escape(std::string_view text) noexcept {
    return text.starts_with('\\') || text.starts_with('%') || text.starts_with('&');
}

// Returns the size of the character at the beginning of `text`, be it as it is or escaped as in JSON, a URL or HTML; 0
// if there is another one.
std::size_t spelled_size(std::string_view text, char character) {
    if (!begins_with_escape(text)) {
        return text.starts_with(character) ? 1 : 0;
    }
    const std::string hex = hexadecimal("", character);
    for (const std::string& spelling : {"\\u00" + hex, "%" + hex, "&#x" + hex + ";",
                                        "&#" + std::to_string(int{character}) + ";", std::string{'\\', character}}) {
        if (std::ranges::equal(text.substr(0, spelling.size()), spelling, equal_in_any_case)) {
            return spelling.size();
        }
    }
    return text.starts_with(character) ? 1 : 0;
}

// Returns the size of the secret at the beginning of `text`, or of a beginning of it where the text was cut; 0 if there
// is none.
std::size_t secret_size(std::string_view text, std::string_view secret) {
    constexpr std::size_t least = 4;
    constexpr std::size_t longest_escape = 6;
    constexpr std::string_view cut = "...";
    if (secret.empty() || text.starts_with(secret)) {
        return secret.size();
    }
    std::size_t size = 0;
    for (std::size_t i = 0; i != secret.size(); ++i) {
        const std::string_view rest = text.substr(size);
        const std::size_t unfinished = begins_with_escape(rest) ? longest_escape - 1 : 0;
        if (i >= least && rest.substr(0, unfinished + cut.size()).find(cut) != std::string_view::npos) {
            return size;
        }
        const std::size_t next = spelled_size(rest, secret[i]);
        if (next == 0) {
            return 0;
        }
        size += next;
    }
    return size;
}

}  // namespace

std::string printable(std::string_view text, std::size_t max) {
    constexpr std::string_view ellipsis = "...";
    BOOST_ASSERT(max >= ellipsis.size());
    std::string result;
    std::size_t cut = 0;  // where the ellipsis begins, if there must be one
    while (!text.empty()) {
        const std::size_t valid = character_length(text);
        const std::size_t length = std::max<std::size_t>(valid, 1);
        const std::string character = printable_character(text.substr(0, length), valid != 0);
        if (result.size() + character.size() > max) {
            result.resize(cut);
            return result.append(ellipsis);
        }
        result += character;
        if (result.size() + ellipsis.size() <= max) {
            cut = result.size();
        }
        text.remove_prefix(length);
    }
    return result;
}

std::string for_terminal(std::string_view text) {
    constexpr std::size_t longest_escape = 4;
    std::string result;
    while (!text.empty()) {
        const std::string_view line = text.substr(0, text.find_first_of("\n\t"));
        result += printable(line, longest_escape * (line.size() + 1));
        text.remove_prefix(line.size());
        result += text.substr(0, 1);
        text.remove_prefix(std::min<std::size_t>(text.size(), 1));
    }
    return result;
}

void require_utf8(std::string_view what, std::string_view text) {
    if (const std::size_t at = find_invalid(text); at != text.size()) {
        throw sluice::ModelError(std::string(what) + " is not UTF-8: byte " + hexadecimal("0x", text[at]) +
                                     " at offset " + std::to_string(at),
                                 {.kind = sluice::Verdict::invalid});
    }
}

void require_utf8(std::string_view list, std::size_t index, std::string_view member, std::string_view text) {
    if (find_invalid(text) != text.size()) {
        require_utf8(std::string(list) + "[" + std::to_string(index) + "]" + std::string(member), text);
    }
}

std::string hide(std::string_view text, std::string_view secret) {
    std::string result;
    while (!text.empty()) {
        const std::size_t size = secret_size(text, secret);
        result += size == 0 ? text.substr(0, 1) : "[hidden]";
        text.remove_prefix(std::max<std::size_t>(size, 1));
    }
    return result;
}

}  // namespace openai
