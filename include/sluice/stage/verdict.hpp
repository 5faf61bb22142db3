// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/shared_string.hpp>

#include <boost/asio/multiple_exceptions.hpp>

#include <chrono>
#include <cstdint>
#include <exception>
#include <optional>
#include <stdexcept>
#include <string>
#include <string_view>
#include <utility>

namespace sluice {

/// The meaning of an error for the next call of the model. Every policy uses it.
struct Verdict {
    enum class Kind : std::uint8_t {
        transient,   ///< It may work next time: a connection was lost, a server failed, the time was up.
        throttled,   ///< The caller sends too much, as HTTP status 429 says.
        overloaded,  ///< The provider has too much to do, as 503 and 529 say.
        invalid,     ///< The request itself is wrong, or was refused for its content. Repeating it is useless.
        exhausted,   ///< No credit is left, or the key is not valid. No request will work until a person acts.
    };
    using enum Kind;

    Kind kind = transient;
    std::optional<std::chrono::nanoseconds> retry_after = std::nullopt;  ///< How long the provider asks to wait.

    /// Whether a retry makes sense: the error is transient, throttled or overloaded.
    constexpr bool retryable() const noexcept { return kind != invalid && kind != exhausted; }
};

/// Returns the name of the enumerator, such as `throttled`; `unknown` for any other value.
constexpr std::string_view to_string(Verdict::Kind kind) noexcept {
    switch (kind) {
        case Verdict::transient:
            return "transient";
        case Verdict::throttled:
            return "throttled";
        case Verdict::overloaded:
            return "overloaded";
        case Verdict::invalid:
            return "invalid";
        case Verdict::exhausted:
            return "exhausted";
    }
    return "unknown";
}

/// Returns the Verdict on the exception with which an attempt ended, which is never null. If it throws, the attempt is
/// not retried, and the error is a RetryPredicateError.
using VerdictFunction = Verdict (*)(const std::exception_ptr&);

/// An error that a client of a model throws, so that policies know what it means.
///
/// @code
/// throw sluice::ModelError("rate limit reached", {.kind = sluice::Verdict::throttled, .retry_after = 20s}, 429);
/// @endcode
class ModelError : public std::runtime_error {
public:
    /// @param message For people.
    /// @param verdict What the error means.
    /// @param status The HTTP status, or another number of the provider's; 0 if there is none.
    /// @param code The provider's own name for the error, such as `context_length_exceeded`; may be empty.
    explicit ModelError(const std::string& message, Verdict verdict = {}, int status = 0, SharedString code = {})
        : std::runtime_error(message), verdict_(verdict), status_(status), code_(std::move(code)) {}

    const Verdict& verdict() const noexcept { return verdict_; }
    int status() const noexcept { return status_; }
    const SharedString& code() const noexcept { return code_; }

private:
    Verdict verdict_;
    int status_;
    SharedString code_;
};

/// The default VerdictFunction: the verdict of a ModelError, and for an `asio::multiple_exceptions` that of its first
/// exception. Other exceptions are transient, even if a ModelError is nested in them: the outermost exception says what
/// happened, such as a TimeoutError.
inline Verdict verdict_of(const std::exception_ptr& error) {
    try {
        std::rethrow_exception(error);
    } catch (const ModelError& model_error) {
        return model_error.verdict();
    } catch (const boost::asio::multiple_exceptions& several) {
        return several.first_exception() ? verdict_of(several.first_exception()) : Verdict();
    } catch (...) {
        return {};
    }
}

}  // namespace sluice
