// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/shared_string.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/detail/breaker_state.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/retry_budget_state.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/sync/timed_by.hpp>
#include <sluice/sync/timer.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/asio/steady_timer.hpp>
#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <boost/assert.hpp>

#include <chrono>
#include <cstddef>
#include <memory>
#include <type_traits>
#include <utility>

namespace sluice {

/// The circuit breaker of an Endpoint; see BreakerOptions. A handle, which keeps nothing else of the endpoint alive.
///
/// @par Thread safety
/// That of the endpoint.
class Breaker {
public:
    /// Lets no attempt begin until it is forced closed or reset. Nobody knows when that is: so attempts that hold wait
    /// for as long as their query and a drain allow.
    void force_open() noexcept { line_->change_breaker(&detail::BreakerState::force_open); }

    /// Lets every attempt begin, whatever becomes of them, until it is forced open or reset. They are counted.
    void force_closed() noexcept { line_->change_breaker(&detail::BreakerState::force_closed); }

    /// Closes it, as if it were new.
    void reset() noexcept { line_->change_breaker(&detail::BreakerState::reset); }

    BreakerStatus status() const noexcept { return line_->breaker()->status(line_->now()); }

private:
    template <Timer>
    friend class Endpoint;

    explicit Breaker(boost::intrusive_ptr<detail::Line> line) noexcept : line_(std::move(line)) {}

    boost::intrusive_ptr<detail::Line> line_;
};

/// One model behind one account: a name, its limits, and the line of those that wait for a slot, strictly first
/// come, first served, unless EndpointOptions::order says otherwise. Stages that call the same model share its
/// endpoint, and so its limit.
///
/// The time that a query spends in the line is queue time; the timeout of an attempt begins with its slot. A model
/// function that runs a stage of the same endpoint waits for a slot while it holds one; see Stage.
///
/// An attempt gets its slot when the rates can pay for it, no pause holds and the breaker lets it begin: all is granted
/// together, to the head of the line, and paid at that instant. So whoever waits for a rate holds no slot, and whoever
/// is cancelled has paid nothing. An attempt that was throttled, or failed in an outage, returns to its old place. An
/// error with a Verdict that is throttled or overloaded and has a `retry_after` pauses the endpoint for that time, but
/// for 2 min at most.
///
/// A RetryBudget bounds how many of its stage runs are retries at once.
///
/// The line may have a bound: EndpointOptions::max_waiting, max_wait and shed_late say who fails instead of waiting.
/// Whoever does has taken nothing.
///
/// Each of these costs O(1) for an attempt; one that returns to its place, O(those before it); with
/// LineOrder::furthest_first, O(those that it overtakes). A pause costs O(those that wait) if queries have timeouts,
/// and so does a breaker that opens.
///
/// Copies are handles to the same endpoint. It lives until the last copy and the last Stage made of it are gone and no
/// query runs in one.
///
/// @tparam T The timer of the stages that are made of it, deduced from the executor argument; see timed_by().
///
/// @par Thread safety
/// Distinct endpoints: safe. Copies of one endpoint: unsafe. They belong to one thread or strand, that of the executor.
///
/// @par Lifetime
/// The execution context may be destroyed before or after the endpoint; the queries that wait are destroyed with it.
template <Timer T = boost::asio::steady_timer>
class Endpoint {
public:
    using timer_type = T;
    using executor_type = boost::asio::any_io_executor;

    /// @param executor Resumes the queries that wait for a slot.
    /// @param name Appears in messages.
    /// @param options The limits, and what an error means.
    /// @throws std::invalid_argument naming the endpoint and the option, with its value, that is out of range.
    template <class Executor>
        requires boost::asio::execution::is_executor<Executor>::value
    Endpoint(Executor executor, SharedString name, EndpointOptions options)
        : state_(detail::EndpointState::make<T>("Endpoint", std::move(executor), std::move(name), options)) {}
    template <class Executor>
    Endpoint(const TimedExecutor<T, Executor>& executor, SharedString name, EndpointOptions options)
        : Endpoint(executor.executor(), std::move(name), options) {}

    const SharedString& name() const noexcept { return state_->name; }

    /// Changes the limit. Raising it resumes one waiting query for each new slot. Lowering it takes no slot away: while
    /// `active() > limit()`, returned slots are not handed on. 0 pauses the endpoint.
    /// @throws std::invalid_argument if `limit` is negative; nothing changes then.
    void set_limit(std::ptrdiff_t limit) { state_->set_limit(limit); }
    std::ptrdiff_t limit() const noexcept { return state_->line.limit(); }

    /// Changes a rate, while calls wait and run. What has begun counts: a period as long as one before continues from
    /// its balance, and any other from the lowest; but during a pause, the shortest one is empty. `Rate::unlimited`
    /// lifts it.
    /// @throws std::invalid_argument naming the endpoint and the value that is out of range; nothing changes then.
    void set_rate(Rate::Dimension dimension, const Rate& rate) { state_->set_rate(dimension, rate); }

    /// Lets no attempt begin before `duration` has passed, as a provider may ask; attempts that run continue. Of
    /// several pauses the latest end counts, and none can be shortened. After it, the shortest period of each rate
    /// begins with an empty balance, so that calls begin at its pace, and not all at once.
    void pause(std::chrono::nanoseconds duration) noexcept { state_->policies->pause(duration); }

    /// The circuit breaker.
    /// @pre EndpointOptions::breaker was set.
    Breaker breaker() const noexcept {
        BOOST_ASSERT_MSG(state_->policies->breaker(), "sluice::Endpoint: has no breaker");
        return Breaker(state_->policies);
    }

    /// The number of attempts that have a slot, including those granted to a query that has not resumed yet.
    std::ptrdiff_t active() const noexcept { return state_->line.active(); }

    /// The number of queries in the line.
    std::size_t waiting() const noexcept { return state_->line.waiting(); }

    /// The number of stage runs that are retries now, as RetryBudget counts them: in backoff, in the line, or with a
    /// slot. 0 without a retry budget.
    std::size_t retries() const noexcept {
        const detail::RetryBudgetState* const budget = state_->policies->retry_budget();
        return budget ? budget->retries() : 0;
    }

    /// Fails every query in the line, and every one that comes, with Reason::closed. Attempts that run continue.
    /// Closing again has no effect.
    void close() noexcept { state_->line.close(); }

    /// Empty once the execution context has been destroyed.
    executor_type get_executor() const { return state_->line.get_executor(); }

    /// Whether both are handles to the same endpoint.
    friend bool operator==(const Endpoint&, const Endpoint&) noexcept = default;

private:
    template <class, Timer>
    friend class Stage;

    // For those that watch the endpoint.
    friend const std::shared_ptr<detail::EndpointState>& state_of(const Endpoint& endpoint) noexcept {
        return endpoint.state_;
    }

    explicit Endpoint(std::shared_ptr<detail::EndpointState> state) noexcept : state_(std::move(state)) {}

    std::shared_ptr<detail::EndpointState> state_;
};

template <class Executor>
Endpoint(Executor, SharedString, EndpointOptions) -> Endpoint<>;
template <class T, class Executor>
Endpoint(TimedExecutor<T, Executor>, SharedString, EndpointOptions) -> Endpoint<T>;

}  // namespace sluice
