// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/asio/bind_cancellation_slot.hpp>
#include <boost/asio/cancellation_signal.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/deferred.hpp>

#include <utility>

namespace sluice::detail {

// Returns an operation that runs the coroutine `function()` on `executor`, where no cancellation reaches it, and waits
// for its end. A coroutine that may have been cancelled itself awaits it with throw_if_cancelled(false).
template <class Executor, class Function>
auto spawn_uncancelled(const Executor& executor, Function function) {
    return boost::asio::co_spawn(
        executor, std::move(function),
        boost::asio::bind_cancellation_slot(boost::asio::cancellation_slot(), boost::asio::deferred));
}

}  // namespace sluice::detail
