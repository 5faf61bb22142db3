// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/asio/cancellation_state.hpp>
#include <boost/asio/cancellation_type.hpp>
#include <boost/asio/error.hpp>
#include <boost/asio/experimental/channel_error.hpp>
#include <boost/asio/multiple_exceptions.hpp>
#include <boost/system/system_error.hpp>

#include <exception>
#include <typeinfo>

#if __has_include(<cxxabi.h>)
#include <cxxabi.h>
#endif

namespace sluice::detail {

// Whether the exception that is being handled may be an asio::multiple_exceptions. Costs far less than a catch clause.
inline bool may_be_multiple_exceptions() noexcept {
#if __has_include(<cxxabi.h>)
    const std::type_info* const type = abi::__cxa_current_exception_type();
    return !type || *type == typeid(boost::asio::multiple_exceptions);
#else
    return true;
#endif
}

// Returns the first of the exceptions in an asio::multiple_exceptions, and any other `error` unchanged.
inline std::exception_ptr first_exception(std::exception_ptr error) noexcept {
    while (error) {
        try {
            std::rethrow_exception(error);
        } catch (const boost::asio::multiple_exceptions& several) {
            if (!several.first_exception()) {
                break;
            }
            error = several.first_exception();
        } catch (...) {
            break;
        }
    }
    return error;
}

// Returns the exception nested in `error`, or null.
inline std::exception_ptr nested_exception(const std::exception_ptr& error) noexcept {
    try {
        std::rethrow_exception(error);
    } catch (const std::nested_exception& outer) {
        return outer.nested_ptr();
    } catch (...) {
        return nullptr;
    }
}

// Whether `holds(exception)` for `error` or any exception inside it, from the outermost to the innermost.
template <class Holds>
bool any_of_chain(std::exception_ptr error, Holds holds) {
    while (error) {
        const std::exception_ptr first = first_exception(error);
        if (holds(error) || (first != error && holds(first))) {
            return true;
        }
        error = nested_exception(first);
    }
    return false;
}

// The exception with which a cancelled operation ends. `operation` comes first in its message.
inline boost::system::system_error operation_aborted(const char* operation) {
    return {boost::asio::error::operation_aborted, operation};
}

inline bool is_cancelled(const boost::asio::cancellation_state& state) noexcept {
    return state.cancelled() != boost::asio::cancellation_type::none;
}

// Whether a cancelled coroutine ends with `error`, including by way of a channel or a parallel group.
inline bool is_cancellation(const std::exception_ptr& error) {
    try {
        std::rethrow_exception(first_exception(error));
    } catch (const boost::system::system_error& e) {
        return e.code() == boost::asio::error::operation_aborted ||
               e.code() == boost::asio::experimental::error::channel_cancelled;
    } catch (...) {
        return false;
    }
}

}  // namespace sluice::detail
