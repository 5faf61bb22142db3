// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/detail/requirements.hpp>

#include <boost/asio/multiple_exceptions.hpp>

#include <exception>
#include <utility>

namespace sluice::detail {

// The first of several exceptions that operations run in parallel have thrown; `error` itself, if it is a single one.
inline std::exception_ptr first_exception(std::exception_ptr error) noexcept {
    for (;;) {
        try {
            std::rethrow_exception(error);
        } catch (const boost::asio::multiple_exceptions& several) {
            if (!several.first_exception()) {
                return error;
            }
            error = several.first_exception();
        } catch (...) {
            return error;
        }
    }
}

// What is nested in `error`; null if nothing is.
inline std::exception_ptr nested_exception(const std::exception_ptr& error) noexcept {
    try {
        std::rethrow_exception(error);
    } catch (const std::nested_exception& outer) {
        return outer.nested_ptr();
    } catch (...) {
        return nullptr;
    }
}

// Whether `holds(exception)` for an exception, or one that is nested in it, from the outermost to the innermost.
template <class Holds>
bool any_of_chain(std::exception_ptr error, Holds holds) {
    while (error) {
        error = first_exception(std::move(error));
        if (holds(std::as_const(error))) {
            return true;
        }
        error = nested_exception(error);
    }
    return false;
}

}  // namespace sluice::detail
