// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/testing/virtual_time.hpp>

#include <boost/asio/executor_work_guard.hpp>
#include <boost/asio/io_context.hpp>

#include <stdexcept>

namespace sluice::testing {

/// Runs the handlers that are ready and, whenever none is, advances virtual time to the next expiry. Returns the
/// elapsed virtual time when nothing is left that can run, although coroutines may still wait for something, or when
/// the context is stopped. Does not block. May be called again.
///
/// Rethrows what a handler throws.
inline VirtualClock::duration run_until_stalled(boost::asio::io_context& context) {
    VirtualTime& time = VirtualTime::of(context);
    const auto begin = time.now();
    const auto work = boost::asio::make_work_guard(context);  // without any work the context would stop by itself
    context.restart();
    do {
        do {
            time.complete_due();
        } while (context.poll_one() != 0);
    } while (!context.stopped() && time.advance());
    return time.now() - begin;
}

/// Runs everything to its end, like run_until_stalled(), and returns the elapsed virtual time.
///
/// @throws std::logic_error if something still waits and nothing can end the wait: a slot that is never returned, a
/// party that does not arrive, a timer other than VirtualTimer, work on another thread, or a work guard.
inline VirtualClock::duration run(boost::asio::io_context& context) {
    const auto elapsed = run_until_stalled(context);
    if (!context.stopped()) {
        throw std::logic_error(
            "sluice::testing::run: a coroutine still waits, for something that never happens, for another thread, or "
            "for a timer other than VirtualTimer; to test that, call run_until_stalled()");
    }
    return elapsed;
}

}  // namespace sluice::testing
