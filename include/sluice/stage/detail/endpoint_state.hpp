// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/shared_string.hpp>
#include <sluice/stage/detail/breaker_options.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/rate_options.hpp>
#include <sluice/stage/detail/retry_budget_state.hpp>
#include <sluice/stage/detail/retry_decision.hpp>
#include <sluice/stage/detail/timed_line.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/bound_queue.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/intrusive_list.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <cstddef>
#include <functional>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace sluice::detail {

// Is told when the limit of an endpoint has changed, while it is in the endpoint's list.
class LimitListener : public ListHook {
public:
    virtual void on_limit_changed() = 0;

protected:
    ~LimitListener() { unlink(); }
};

// Throws std::invalid_argument naming the option that is out of range, and its value, if one is.
inline void require_valid(const std::string& owner, const EndpointOptions& options) {
    require(options.limit >= 1, owner, "limit must be at least 1", options.limit);
    require_valid(owner, Rate::requests, options.requests);
    require_valid(owner, Rate::input_tokens, options.input_tokens);
    require_valid(owner, Rate::output_tokens, options.output_tokens);
    if (options.breaker) {
        require_valid(owner, *options.breaker);
    }
    if (options.retry_budget) {
        require_valid(owner, *options.retry_budget);
    }
    if (options.max_waiting) {
        require(*options.max_waiting >= 0, owner, "max_waiting must not be negative", *options.max_waiting);
    }
    if (options.max_wait) {
        require(options.max_wait->count() > 0, owner, "max_wait must be positive", options.max_wait->count(), " ns");
    }
}

// What the handles to one endpoint share.
struct EndpointState {
    // `kind` is what messages call it, and `T` the timer of its line.
    template <class T, class Executor>
    static std::shared_ptr<EndpointState> make(const char* kind, Executor executor, SharedString name,
                                               EndpointOptions options) {
        if (name.empty()) {
            throw std::invalid_argument(std::string(kind) + ": the name must not be empty");
        }
        const std::string who = std::string(kind) + " '" + name.str() + "'";
        if (!options.verdict) {
            throw std::invalid_argument(who + ": the verdict function must not be empty");
        }
        executor = require_executor(who, std::move(executor));
        require_valid(who, options);
        if (options.breaker && !options.breaker->seed) {  // as with StageState
            options.breaker->seed = HasNow<T> ? std::hash<std::string>()(name.str()) : random_seed();
        }
        const typename T::executor_type of_timer(executor);
        const auto line = make_queue<TimedLine<T>>(kind, std::move(executor), of_timer, options, name);
        return std::make_shared<EndpointState>(std::move(name), line, options.verdict);
    }

    EndpointState(SharedString endpoint_name, const boost::intrusive_ptr<Line>& its_policies, VerdictFunction function)
        : name(std::move(endpoint_name)), line(its_policies), policies(its_policies), verdict(function) {}

    void set_limit(std::ptrdiff_t limit) {
        line.set_limit(require(limit >= 0, "Endpoint '" + name.str() + "'", "limit must not be negative", limit));
        limit_listeners.for_each([](LimitListener& listener) { listener.on_limit_changed(); });
    }

    void set_rate(Rate::Dimension dimension, const Rate& rate) const {
        require_valid("Endpoint '" + name.str() + "'", dimension, rate);
        policies->set_rate(dimension, rate);
    }

    SharedString name;
    StageSemaphore line;
    boost::intrusive_ptr<Line> policies;  // of the line
    VerdictFunction verdict;
    IntrusiveList<LimitListener> limit_listeners;
};

}  // namespace sluice::detail
