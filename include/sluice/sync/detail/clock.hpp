// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/detail/requirements.hpp>

#include <boost/asio/execution/context.hpp>
#include <boost/asio/execution/executor.hpp>
#include <boost/asio/execution_context.hpp>
#include <boost/asio/query.hpp>
#include <boost/assert.hpp>

#include <concepts>

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

template <class T>
concept HasNow = requires(boost::asio::execution_context& context) {
    { T::now(context) } -> std::convertible_to<typename T::time_point>;
};

// Returns the time by which a T in `context` expires.
template <HasNow T>
typename T::time_point now(boost::asio::execution_context& context) {
    return T::now(context);
}
template <class T>
    requires(!HasNow<T>) && requires {
        { T::clock_type::now() } -> std::convertible_to<typename T::time_point>;
    }
typename T::time_point now(boost::asio::execution_context&) {
    return T::clock_type::now();
}

template <class Executor>
boost::asio::execution_context& context_of(const Executor& executor) {
    return boost::asio::query(executor, boost::asio::execution::context);
}

template <class T, class Executor>
    requires boost::asio::execution::is_executor<Executor>::value
typename T::time_point now(const Executor& executor) {
    return now<T>(context_of(executor));
}

// Asserts that T measures the time of the context that it is used in.
template <class T, class Executor>
void check_clock(const Executor& executor) {
    BOOST_ASSERT_MSG(HasNow<T> || !has_simulated_time(executor),
                     "sluice: two kinds of time in one execution context: where testing::VirtualTimer is used, stages, "
                     "pipelines and timeouts must be given testing::VirtualTimer too, or they wait forever; write "
                     "timed_by<testing::VirtualTimer>(executor), or pass it as the template argument");
    static_cast<void>(executor);
}

}  // namespace sluice::detail
