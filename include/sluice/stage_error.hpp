// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/core/demangle.hpp>

#include <cxxabi.h>
#include <exception>
#include <string>
#include <typeinfo>
#include <utility>

namespace sluice {

/// Why something failed: an exception of any type, or nothing.
///
/// Type and message are worked out when they are asked for, so that carrying an error costs a pointer.
///
/// @par Thread safety
/// As `std::exception_ptr`: what it points to is shared by its copies.
class StageError {
public:
    /// No error.
    StageError() noexcept = default;

    StageError(std::exception_ptr exception) noexcept : exception_(std::move(exception)) {}

    /// Whether there is an error.
    explicit operator bool() const noexcept { return exception_ != nullptr; }

    /// The exception itself; null when there is none.
    const std::exception_ptr& exception() const noexcept { return exception_; }

    /// The name of the exception's type, such as `std::runtime_error`; empty when there is no error.
    std::string type() const {
        return inspect([](const std::exception*) {
            const std::type_info* type = abi::__cxa_current_exception_type();
            return type ? boost::core::demangle(type->name()) : std::string("unknown");
        });
    }

    /// `what()` of a `std::exception`, the text of a thrown string, else a sentence that says that there is no message;
    /// empty when there is no error.
    std::string message() const {
        return inspect([](const std::exception* error) -> std::string {
            if (error) {
                return error->what() ? error->what() : "an exception that carries no message";
            }
            try {
                throw;
            } catch (const std::string& text) {
                return text;
            } catch (const char* text) {
                return text ? text : "a null pointer to a string";
            } catch (...) {
                return "an exception that carries no message";
            }
        });
    }

private:
    // Calls `look` while the exception is being handled.
    template <class Look>
    std::string inspect(Look look) const {
        if (!exception_) {
            return {};
        }
        try {
            std::rethrow_exception(exception_);
        } catch (const std::exception& error) {
            return look(&error);
        } catch (...) {
            return look(nullptr);
        }
    }

    std::exception_ptr exception_;
};

}  // namespace sluice
