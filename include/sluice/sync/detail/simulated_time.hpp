// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/query.hpp>

namespace sluice::detail {

// An execution context with this service runs on simulated time; every other clock is meaningless there.
class SimulatedTime : public boost::asio::execution_context::service {
public:
    static inline boost::asio::execution_context::id id;

    using service::service;
};

template <class Executor>
bool has_simulated_time(const Executor& executor) {
    return boost::asio::has_service<SimulatedTime>(boost::asio::query(executor, boost::asio::execution::context));
}

}  // namespace sluice::detail
