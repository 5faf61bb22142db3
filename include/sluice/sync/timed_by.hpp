// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/timer.hpp>

#include <utility>

namespace sluice {

/// An executor, together with the type of timer with which objects made from it wait and measure time. timed_by()
/// returns it.
template <class T, class Executor>
class TimedExecutor {
public:
    using timer_type = T;
    using executor_type = Executor;

    explicit TimedExecutor(Executor executor) : executor_(std::move(executor)) {}

    const Executor& executor() const noexcept { return executor_; }

private:
    Executor executor_;
};

/// Returns `executor` with another timer than `asio::steady_timer`. It takes the place of the executor:
///
/// @code
/// sluice::Stage stage(sluice::timed_by<sluice::testing::VirtualTimer>(executor), "classify", 20, classify);
/// @endcode
template <class T, class Executor>
TimedExecutor<T, Executor> timed_by(Executor executor) {
    static_assert(Timer<T>,
                  "sluice::Timer: the timer of timed_by() must have the interface of asio::steady_timer and a clock");
    return TimedExecutor<T, Executor>(std::move(executor));
}

}  // namespace sluice
