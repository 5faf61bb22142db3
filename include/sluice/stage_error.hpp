// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/exceptions.hpp>

#include <boost/core/demangle.hpp>
#include <boost/system/error_code.hpp>

#include <exception>
#include <string>
#include <string_view>
#include <system_error>
#include <typeinfo>
#include <utility>

#if __has_include(<cxxabi.h>)
#include <cxxabi.h>
#endif

namespace sluice {

/// The reason for a failure: an exception of any type, or none.
///
/// Type and message are computed when they are needed, so that an error is as cheap to carry as a pointer.
///
/// @par Thread safety
/// That of `std::exception_ptr`: copies share the exception.
class StageError {
public:
    StageError() noexcept = default;

    StageError(std::exception_ptr exception) noexcept : exception_(std::move(exception)) {}

    explicit operator bool() const noexcept { return exception_ != nullptr; }

    /// The exception; null if there is no error.
    const std::exception_ptr& exception() const noexcept { return exception_; }

    /// Returns the name of the exception's type, such as `std::runtime_error`; empty if there is no error. For an
    /// `asio::multiple_exceptions`, that of its first exception.
    std::string type() const {
        if (!exception_) {
            return {};
        }
        try {
            std::rethrow_exception(detail::first_exception(exception_));
        } catch (const std::exception& error) {
            return name(typeid(error));
        } catch (...) {
#if __has_include(<cxxabi.h>)
            if (const std::type_info* const type = abi::__cxa_current_exception_type()) {
                return name(*type);
            }
#endif
            return "unknown";
        }
    }

    /// Returns `what()` of a `std::exception`, the text of a thrown string, the message of a thrown `error_code`, or
    /// otherwise a sentence which says that there is no message; empty if there is no error. For an
    /// `asio::multiple_exceptions`, that of its first exception. The messages of nested exceptions follow, each after a
    /// colon.
    std::string message() const {
        std::string text;
        for (auto error = detail::first_exception(exception_); error;
             error = detail::first_exception(detail::nested_exception(error))) {
            text += (text.empty() ? "" : ": ") + own_message(error);
        }
        return text;
    }

private:
    // Removes the wrapper that std::throw_with_nested() adds.
    static std::string name(const std::type_info& type) {
        std::string whole = boost::core::demangle(type.name());
        for (const std::string_view wrapper : {"std::_Nested_exception<", "std::__1::__nested<", "std::__nested<"}) {
            if (whole.starts_with(wrapper) && whole.ends_with('>')) {
                return whole.substr(wrapper.size(), whole.size() - wrapper.size() - 1);
            }
        }
        return whole;
    }

    static std::string own_message(const std::exception_ptr& error) {
        constexpr const char* none = "an exception that carries no message";
        try {
            std::rethrow_exception(error);
        } catch (const std::exception& exception) {
            return exception.what() ? exception.what() : none;
        } catch (const boost::system::error_code& code) {
            return code.message();
        } catch (const std::error_code& code) {
            return code.message();
        } catch (const std::string& text) {
            return text;
        } catch (const char* text) {
            return text ? text : "a null pointer to a string";
        } catch (...) {
            return none;
        }
    }

    std::exception_ptr exception_;
};

}  // namespace sluice
