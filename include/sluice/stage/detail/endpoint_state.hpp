// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/shared_string.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/intrusive_list.hpp>
#include <sluice/sync/detail/require.hpp>
#include <sluice/sync/stage_semaphore.hpp>

#include <cstddef>
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

// What the handles to one endpoint share.
struct EndpointState {
    // `kind` is what messages call it.
    template <class Executor>
    static std::shared_ptr<EndpointState> make(const char* kind, Executor executor, SharedString name,
                                               std::ptrdiff_t limit, VerdictFunction verdict) {
        if (name.empty()) {
            throw std::invalid_argument(std::string(kind) + ": the name must not be empty");
        }
        const std::string who = std::string(kind) + " '" + name.str() + "'";
        if (!verdict) {
            throw std::invalid_argument(who + ": the verdict function must not be empty");
        }
        return std::make_shared<EndpointState>(require_executor(who, std::move(executor)), std::move(name),
                                               require(limit >= 1, who, "limit must be at least 1", limit), verdict);
    }

    template <class Executor>
    EndpointState(Executor executor, SharedString endpoint_name, std::ptrdiff_t limit, VerdictFunction function)
        : name(std::move(endpoint_name)), line(std::move(executor), limit), verdict(function) {}

    void set_limit(std::ptrdiff_t limit) {
        line.set_limit(require(limit >= 0, "Endpoint '" + name.str() + "'", "limit must not be negative", limit));
        limit_listeners.for_each([](LimitListener& listener) { listener.on_limit_changed(); });
    }

    SharedString name;
    StageSemaphore line;
    VerdictFunction verdict;
    IntrusiveList<LimitListener> limit_listeners;
};

}  // namespace sluice::detail
