// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/metrics/detail/prometheus_text.hpp>
#include <sluice/metrics/metrics_snapshot.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/detail/rate_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/sync/detail/require.hpp>

#include <chrono>
#include <string>
#include <utility>
#include <vector>

namespace sluice::detail {

inline double to_seconds(std::chrono::nanoseconds time) noexcept { return std::chrono::duration<double>(time).count(); }

// Writes the families of the breakers.
inline void write_breakers(PrometheusText& text, const std::vector<EndpointMetrics>& endpoints) {
    std::vector<std::pair<SharedString, BreakerMetrics>> breakers;
    for (const EndpointMetrics& each : endpoints) {
        if (each.breaker) {
            breakers.emplace_back(each.endpoint, *each.breaker);
        }
    }
    text.family("sluice_endpoint_breaker_state", "gauge", "Whether the circuit breaker is in a state.", breakers,
                [&](const auto& item) {
                    const auto& [endpoint, breaker] = item;
                    text.sample({{"endpoint", endpoint}, {"state", "closed"}}, breaker.closed);
                    text.sample({{"endpoint", endpoint}, {"state", "open"}}, breaker.open);
                    text.sample({{"endpoint", endpoint}, {"state", "half_open"}}, breaker.half_open);
                    text.sample({{"endpoint", endpoint}, {"state", "forced_open"}}, breaker.forced_open);
                    text.sample({{"endpoint", endpoint}, {"state", "forced_closed"}}, breaker.forced_closed);
                });
    text.family("sluice_endpoint_breaker_openings_total", "counter", "Times that the circuit breaker has opened.",
                breakers, [&](const auto& item) { text.sample({{"endpoint", item.first}}, item.second.openings); });
}

// Writes the families of one dimension, which have names of their own, since tokens and requests cannot be added up.
inline void write_rates(PrometheusText& text, const std::vector<EndpointMetrics>& endpoints,
                        Rate::Dimension dimension) {
    std::vector<std::pair<SharedString, RateMetrics>> limited;
    std::vector<std::pair<SharedString, RateMetrics>> metered;
    for (const EndpointMetrics& each : endpoints) {
        const RateMetrics& rate = each.rate(dimension);
        if (!rate.periods.empty()) {
            limited.emplace_back(each.endpoint, rate);
        }
        if (!rate.periods.empty() || rate.granted != 0) {
            metered.emplace_back(each.endpoint, rate);
        }
    }
    const std::string name = std::string("sluice_endpoint_") + describe(dimension).option;
    const std::string unit = describe(dimension).unit;
    const auto by_period = [&](const char* suffix, const std::string& help, auto value) {
        text.family(name + suffix, "gauge", help, limited, [&](const auto& item) {
            for (const RateMetrics::Period& period : item.second.periods) {
                const std::string seconds = format_number(to_seconds(period.per));
                text.sample({{"endpoint", item.first}, {"period_seconds", seconds}}, value(period));
            }
        });
    };
    by_period("_left", "The " + unit + " that are left in a period; negative for a debt.",
              [](const RateMetrics::Period& period) { return period.left; });
    by_period("_burst", "The most " + unit + " that may be left in a period.",
              [](const RateMetrics::Period& period) { return period.burst; });
    const auto accounts = [&](const char* suffix, const char* type, const std::string& help, auto value) {
        text.family(name + suffix, type, help, metered,
                    [&](const auto& item) { text.sample({{"endpoint", item.first}}, value(item.second)); });
    };
    accounts("_granted_total", "counter", "The " + unit + " that calls were granted when they began.",
             [](const RateMetrics& rate) { return rate.granted; });
    accounts("_settled_total", "counter", "The " + unit + " that calls have used.",
             [](const RateMetrics& rate) { return rate.settled; });
    accounts("_outstanding", "gauge", "The " + unit + " that were granted to calls that have not ended.",
             [](const RateMetrics& rate) { return rate.outstanding; });
}

// Writes the families of the endpoints.
inline void write_endpoints(PrometheusText& text, const std::vector<EndpointMetrics>& endpoints) {
    const auto gauge = [&](const char* name, const char* help, auto value) {
        text.family(name, "gauge", help, endpoints, [&](const EndpointMetrics& endpoint) {
            text.sample({{"endpoint", endpoint.endpoint}}, value(endpoint));
        });
    };
    gauge("sluice_endpoint_limit", "Attempts that may run at once.", [](auto& endpoint) { return endpoint.limit; });
    gauge("sluice_endpoint_active", "Attempts that have a slot.", [](auto& endpoint) { return endpoint.active; });
    gauge("sluice_endpoint_waiting", "Queries that wait for a slot.", [](auto& endpoint) { return endpoint.waiting; });
    gauge("sluice_endpoint_pause_left_seconds", "The time until the pause of the endpoint ends.",
          [](auto& endpoint) { return to_seconds(endpoint.pause_left); });
    write_breakers(text, endpoints);
    write_rates(text, endpoints, Rate::requests);
    write_rates(text, endpoints, Rate::input_tokens);
    write_rates(text, endpoints, Rate::output_tokens);
}

}  // namespace sluice::detail
