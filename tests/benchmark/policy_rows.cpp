// SPDX-License-Identifier: BSL-1.0
// What the policies of an endpoint cost while they have nothing to do.
#include "allocation_gauge.hpp"
#include "crew.hpp"
#include "harness.hpp"
#include "loops.hpp"
#include "rows.hpp"

#include <sluice/shared_string.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/endpoint_options.hpp>
#include <sluice/stage/rate.hpp>
#include <sluice/stage/retry_budget.hpp>
#include <sluice/stage/stage.hpp>

#include <chrono>
#include <cstddef>
#include <limits>
#include <string>
#include <vector>

namespace benchmark {

namespace {

using namespace std::chrono_literals;

/// What the endpoint has beside its limit.
enum class Policies { none, all };

/// Rates that are never used up, a breaker that never opens, and bounds that are never reached.
sluice::EndpointOptions options_of(Policies policies, std::size_t limit) {
    sluice::EndpointOptions options{.limit = static_cast<std::ptrdiff_t>(limit)};
    if (policies == Policies::all) {
        options.requests = sluice::Rate(1'000'000'000'000, 1min);
        options.input_tokens = sluice::Rate(1'000'000'000'000'000, 1min);
        options.output_tokens = sluice::Rate(1'000'000'000'000'000, 1min);
        options.breaker = sluice::BreakerOptions{.slow = 1h};
        options.retry_budget = sluice::RetryBudget();
        options.max_waiting = std::numeric_limits<std::ptrdiff_t>::max();
        options.max_wait = 24h;
        options.shed_late = true;
        options.order = sluice::LineOrder::furthest_first;
    }
    return options;
}

/// Turns that are stage runs.
template <Policies policies, Holding holding>
class PolicyLoop : public Loop<TypedExecutor, holding> {
public:
    PolicyLoop(TypedExecutor executor, std::size_t limit)
        : Loop<TypedExecutor, holding>(executor),
          stage_(sluice::Endpoint(executor, "gpt", options_of(policies, limit)), "a", Model{this}) {}

    asio::awaitable<void, TypedExecutor> operator()(std::size_t turns) {
        const sluice::SharedString id("q");
        for (std::size_t i = 0; i < turns; ++i) {
            co_await stage_.run(id);
        }
    }

private:
    struct Model {
        PolicyLoop* loop;
        asio::awaitable<int, TypedExecutor> operator()() const { return loop->model(); }
    };

    asio::awaitable<int, TypedExecutor> model() {
        this->enter();
        if constexpr (PolicyLoop::posts) {
            co_await this->post();
        }
        this->leave();
        co_return 1;
    }

    sluice::Stage<Model> stage_;
};

template <class Gauge, Policies policies, Holding holding>
Gauge measure(std::size_t members, std::size_t turns, std::size_t limit) {
    asio::io_context context(1);
    PolicyLoop<policies, holding> loop(context.get_executor(), limit);
    Gauge gauge;
    Crew<PolicyLoop<policies, holding>, Gauge>(loop, gauge, turns).run(context, members);
    require(loop.turns() == members * turns, "every coroutine makes every turn");
    require(loop.most_inside() <= limit, "no more coroutines than the limit allows are inside at once");
    return gauge;
}

template <Policies policies>
double time_alone(std::size_t turns) {
    return measure<StopWatch, policies, Holding::nothing>(1, turns, 1).per(turns);
}

template <Policies policies>
double allocations_alone(std::size_t turns) {
    const auto gauge = measure<AllocationGauge, policies, Holding::nothing>(1, turns, 1);
    return static_cast<double>(gauge.allocations()) / static_cast<double>(turns);
}

template <Policies policies>
double time_in_line(std::size_t members, std::size_t turns) {
    return measure<StopWatch, policies, Holding::one_post>(members, turns, 10).per(members * turns);
}

}  // namespace

std::vector<Row> policy_rows(const Settings& settings) {
    const std::size_t turns = settings.size(200'000);
    const std::size_t waiting = settings.size(100'000);
    return {{"stage run, whose endpoint has rates, a breaker, a retry budget and bounds that are idle",
             "ns",
             {"sluice", [=] { return time_alone<Policies::all>(turns); }},
             {{"with a limit alone", [=] { return time_alone<Policies::none>(turns); }}},
             {{"more than with a limit alone",
               [](const Costs& costs) { return costs.at("sluice") - costs.at("with a limit alone"); }}}},
            {"allocations of such a stage run",
             "allocations",
             {"sluice", [=] { return allocations_alone<Policies::all>(turns); }},
             {{"with a limit alone", [=] { return allocations_alone<Policies::none>(turns); }}},
             {},
             Row::Kind::count,
             false},
            {"stage run, " + std::to_string(waiting) + " coroutines for 10 slots of such an endpoint",
             "ns",
             {"sluice", [=] { return time_in_line<Policies::all>(waiting, 2); }},
             {{"with a limit alone", [=] { return time_in_line<Policies::none>(waiting, 2); }},
              {"the same with 1000 coroutines", [=] { return time_in_line<Policies::all>(waiting / 100, 200); }}}}};
}

}  // namespace benchmark
