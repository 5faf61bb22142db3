// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/detail/deadline.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/timeouts.hpp>
#include <sluice/sync/detail/waiter.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>

namespace sluice::detail {

// The wait of an attempt in the line that is cut short when its query is late, or when it has waited for as long as it
// may. T is the timer of its stage.
template <class T>
class LineWait {
public:
    using Time = typename T::time_point;

    // Whether it may have to be cut short.
    static bool is_limited(const Line& line, const DeadlineOf<T>* deadline) noexcept {
        return deadline || line.max_wait();
    }

    // Waits until then. @pre is_limited()
    template <class Executor>
    static boost::asio::awaitable<void, Executor> run(Pooled, Line& line, Timeouts<T>& timeouts, LineEntry& entry,
                                                      const DeadlineOf<T>* deadline, Time began) {
        const Executor executor = co_await boost::asio::this_coro::executor;
        const auto until = *earlier(deadline, line.max_wait(), began);
        const typename Timeouts<T>::Wait wait(timeouts, executor, until, entry);
        co_await line.wait(entry);
        if (wait.expired() && entry.outcome == WaitOutcome::aborted) {
            refuse(entry, deadline, until);
        }
    }

    // After a wait, limited or not. A slot that comes when it is to be cut short is returned.
    static void end(EndpointState& endpoint, LineEntry& entry, const DeadlineOf<T>* deadline, Time began, Time now) {
        const auto until = earlier(deadline, endpoint.policies->max_wait(), began);
        if (until && now >= *until && entry.outcome == WaitOutcome::granted) {
            endpoint.policies->cancel_call(entry, false);
            granted_slot(endpoint.line).release();
            refuse(entry, deadline, *until);
        }
    }

    // Refuses an attempt that could wait until then.
    static void refuse(LineEntry& entry, const DeadlineOf<T>* deadline, Time until) noexcept {
        entry.outcome = WaitOutcome::refused;
        entry.refusal = deadline && until == deadline->due ? LineEntry::Refusal::late : LineEntry::Refusal::waited;
    }
};

}  // namespace sluice::detail
