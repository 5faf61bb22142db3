// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/pipeline/detail/pipeline_numbers.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/window.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <map>
#include <memory>
#include <vector>

namespace sluice::detail {

// Limits may be as great as a number can be.
inline std::uint64_t saturating_sum(std::uint64_t a, std::uint64_t b) noexcept {
    return a > std::numeric_limits<std::uint64_t>::max() - b ? std::numeric_limits<std::uint64_t>::max() : a + b;
}

// Endpoints that are watched. Those that have been destroyed are dropped when another one is added; until then the
// memory of their state is kept, and nothing else.
class EndpointWatchList {
public:
    void add(const std::shared_ptr<EndpointState>& endpoint) {
        bool is_new = true;
        std::erase_if(endpoints_, [&](const std::weak_ptr<EndpointState>& each) {
            const auto known = each.lock();
            is_new = is_new && known != endpoint;
            return !known;
        });
        if (is_new) {
            endpoints_.push_back(endpoint);
        }
    }

    std::vector<EndpointMetrics> read() const {
        std::map<SharedString, EndpointMetrics> by_name;
        for (const std::weak_ptr<EndpointState>& each : endpoints_) {
            if (const auto endpoint = each.lock()) {
                EndpointMetrics& metrics = by_name[endpoint->name];
                metrics.endpoint = endpoint->name;
                metrics.limit = saturating_sum(metrics.limit, static_cast<std::uint64_t>(endpoint->line.limit()));
                metrics.active += static_cast<std::uint64_t>(endpoint->line.active());
                metrics.waiting += endpoint->line.waiting();
            }
        }
        std::vector<EndpointMetrics> result;
        for (const auto& [name, metrics] : by_name) {
            result.push_back(metrics);
        }
        return result;
    }

private:
    std::vector<std::weak_ptr<EndpointState>> endpoints_;
};

// Pipelines of one name that are watched. The numbers of those that have been destroyed are kept.
class PipelineWatchList {
public:
    void add(const std::shared_ptr<PipelineNumbers>& pipeline) {
        bool is_new = true;
        std::erase_if(pipelines_, [&](const Watched& each) {
            const auto known = each.pipeline.lock();
            is_new = is_new && known != pipeline;
            if (!known) {
                add_ends(destroyed_, *each.counts);
            }
            return !known;
        });
        if (is_new) {
            pipelines_.push_back({pipeline, pipeline->counts()});
        }
    }

    PipelineMetrics read(const SharedString& name) const {
        PipelineMetrics metrics = destroyed_;
        metrics.pipeline = name;
        for (const Watched& each : pipelines_) {
            add_ends(metrics, *each.counts);
            if (const auto pipeline = each.pipeline.lock()) {
                metrics.window = saturating_sum(metrics.window, static_cast<std::uint64_t>(pipeline->window()));
                pipeline->for_each_window([&](Window& window) {
                    ++metrics.windows;
                    metrics.window_in_use += static_cast<std::uint64_t>(window.places().active());
                });
                metrics.in_work += each.counts->in_work();
            }
        }
        return metrics;
    }

private:
    struct Watched {
        std::weak_ptr<PipelineNumbers> pipeline;
        std::shared_ptr<const QueryCounts> counts;
    };

    static void add_ends(PipelineMetrics& metrics, const QueryCounts& counts) noexcept {
        metrics.completed += counts.completed;
        metrics.dead_letters += counts.dead;
        metrics.cancelled += counts.cancelled;
        metrics.unfinished += counts.unfinished;
    }

    std::vector<Watched> pipelines_;
    PipelineMetrics destroyed_;
};

}  // namespace sluice::detail
