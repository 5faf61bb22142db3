// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/metrics/detail/endpoint_numbers.hpp>
#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/pipeline/detail/pipeline_numbers.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/window.hpp>

#include <boost/smart_ptr/intrusive_ptr.hpp>

#include <cstdint>
#include <map>
#include <memory>
#include <utility>
#include <vector>

namespace sluice::detail {

// Endpoints that are watched. The numbers of those that have been destroyed are kept. Their lines, which have them, are
// dropped when another endpoint is added; nothing else is kept of them until then.
class EndpointWatchList {
public:
    void add(const std::shared_ptr<EndpointState>& endpoint) {
        bool is_new = true;
        std::erase_if(endpoints_, [&](const Watched& each) {
            const auto known = each.endpoint.lock();
            is_new = is_new && known != endpoint;
            if (!known) {
                add_past(destroyed_[each.name], *each.line);
            }
            return !known;
        });
        if (is_new) {
            endpoints_.push_back({endpoint->name, endpoint, endpoint->policies});
        }
    }

    std::vector<EndpointMetrics> read() const {
        std::map<SharedString, EndpointMetrics> by_name;
        for (const Watched& each : endpoints_) {
            if (const auto endpoint = each.endpoint.lock()) {
                EndpointMetrics& metrics = by_name[each.name];
                metrics.endpoint = each.name;
                add_present(metrics, *each.line);
                add_past(metrics, *each.line);
            }
        }
        for (const Watched& each : endpoints_) {
            if (const auto found = by_name.find(each.name); each.endpoint.expired() && found != by_name.end()) {
                add_past(found->second, *each.line);
            }
        }
        std::vector<EndpointMetrics> result;
        for (auto& [name, metrics] : by_name) {
            if (const auto destroyed = destroyed_.find(name); destroyed != destroyed_.end()) {
                add_past(metrics, destroyed->second);
            }
            result.push_back(std::move(metrics));
        }
        return result;
    }

private:
    struct Watched {
        SharedString name;
        std::weak_ptr<EndpointState> endpoint;
        boost::intrusive_ptr<Line> line;
    };

    std::vector<Watched> endpoints_;
    std::map<SharedString, EndpointMetrics> destroyed_;
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
