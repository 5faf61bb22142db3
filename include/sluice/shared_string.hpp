// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <compare>
#include <memory>
#include <ostream>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace sluice {

/// An immutable string whose copies share their text. The ids of queries and the names of stages are such strings,
/// since every result repeats them.
///
/// Constructible from any string, and convertible to `const std::string&` and `std::string_view`. Copying is O(1) and
/// allocates nothing.
///
/// @par Thread safety
/// That of `std::shared_ptr<const std::string>`: distinct objects are safe, even if they share their text.
class SharedString {
public:
    SharedString() noexcept = default;

    SharedString(std::string text) : text_(std::make_shared<const std::string>(std::move(text))) {}
    SharedString(std::string_view text) : SharedString(std::string(text)) {}
    /// @throws std::invalid_argument if `text` is a null pointer.
    SharedString(const char* text)
        : SharedString(std::string(
              text ? text : throw std::invalid_argument("SharedString: must not be made of a null pointer"))) {}

    const std::string& str() const noexcept {
        static const std::string empty;
        return text_ ? *text_ : empty;
    }

    operator const std::string&() const noexcept { return str(); }
    operator std::string_view() const noexcept { return str(); }

    bool empty() const noexcept { return str().empty(); }

    friend bool operator==(const SharedString& a, const SharedString& b) noexcept { return a.str() == b.str(); }
    friend bool operator==(const SharedString& a, std::string_view b) noexcept { return a.str() == b; }
    friend bool operator==(const SharedString& a, const std::string& b) noexcept { return a.str() == b; }
    friend bool operator==(const SharedString& a, const char* b) noexcept { return a.str() == b; }
    friend std::strong_ordering operator<=>(const SharedString& a, const SharedString& b) noexcept {
        return a.str() <=> b.str();
    }

    friend std::ostream& operator<<(std::ostream& out, const SharedString& text) { return out << text.str(); }

private:
    std::shared_ptr<const std::string> text_;  // null for the empty string
};

}  // namespace sluice
