// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/error_chain.hpp>

#include <boost/asio/error.hpp>
#include <boost/asio/experimental/channel_error.hpp>
#include <boost/system/system_error.hpp>

#include <exception>

namespace sluice::detail {

// The exception with which a cancelled operation ends. `operation` comes first in its message.
inline boost::system::system_error operation_aborted(const char* operation) {
    return {boost::asio::error::operation_aborted, operation};
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
