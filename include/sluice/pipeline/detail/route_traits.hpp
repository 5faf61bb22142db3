// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/sync/awaitable_function.hpp>
#include <sluice/sync/detail/call_signature.hpp>

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>

#include <concepts>

namespace sluice {

template <class Record, class Executor>
class Run;

}  // namespace sluice

namespace sluice::detail {

// The types in the signature of a route, and whether it is right.
template <class Signature>
struct RouteSignature {
    static constexpr bool takes_run = false;
    static constexpr bool returns_awaitable = false;
    static constexpr bool makes_record = false;
    static constexpr bool moves_record = false;
};
template <class Returned, class RunRecord, class RunExecutor>
struct RouteSignature<Returned(Run<RunRecord, RunExecutor>&)> {
    using Record = RunRecord;
    using Executor = RunExecutor;
    static constexpr bool takes_run = true;
    static constexpr bool returns_awaitable = std::same_as<Returned, boost::asio::awaitable<void, RunExecutor>>;
    static constexpr bool makes_record = std::default_initializable<RunRecord>;
    static constexpr bool moves_record = NothrowMovable<RunRecord>;
};

template <class Function>
using RouteTraits = RouteSignature<signature_of_t<Function>>;

template <class Function>
concept RouteFunction = RouteTraits<Function>::takes_run && RouteTraits<Function>::returns_awaitable &&
                        RouteTraits<Function>::makes_record && RouteTraits<Function>::moves_record;

// Stand in for a wrong route and its record, so that the compiler has nothing to add to the static_assert.
struct NoRecord {};
struct NoRoute {
    template <class Function>
    NoRoute(const Function&) noexcept {}

    boost::asio::awaitable<void> operator()(Run<NoRecord, boost::asio::any_io_executor>&) const { return {}; }
};

template <class Function>
struct RouteTypes {
    using Record = NoRecord;
    using Executor = boost::asio::any_io_executor;
    using Route = NoRoute;
};
template <RouteFunction Function>
struct RouteTypes<Function> {
    using Record = typename RouteTraits<Function>::Record;
    using Executor = typename RouteTraits<Function>::Executor;
    using Route = Function;
};

}  // namespace sluice::detail
