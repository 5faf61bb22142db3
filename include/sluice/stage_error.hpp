// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/error_chain.hpp>

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

    /// The name of the exception's type, such as `std::runtime_error`; empty when there is no error. Of several that
    /// operations run in parallel have thrown (`asio::multiple_exceptions`), that of the first.
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

    /// `what()` of a `std::exception`, the text of a thrown string, the message of a thrown `error_code`, else a
    /// sentence that says that there is no message; empty when there is no error. Of several that operations run in
    /// parallel have thrown, that of the first. The messages of nested exceptions follow, each after a colon.
    std::string message() const {
        std::string text;
        for (auto error = detail::first_exception(exception_); error;
             error = detail::first_exception(detail::nested_exception(error))) {
            text += (text.empty() ? "" : ": ") + own_message(error);
        }
        return text;
    }

private:
    // Without the wrapper in which std::throw_with_nested() throws.
    static std::string name(const std::type_info& type) {
        std::string whole = boost::core::demangle(type.name());
        for (const std::string_view wrapper : {"std::_Nested_exception<", "std::__1::__nested<"}) {
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
