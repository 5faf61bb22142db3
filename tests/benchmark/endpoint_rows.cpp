// SPDX-License-Identifier: BSL-1.0
// Stages that share an endpoint, against stages that each have their own.
#include "crew.hpp"
#include "harness.hpp"
#include "loops.hpp"
#include "rows.hpp"

#include <sluice/shared_string.hpp>
#include <sluice/stage/endpoint.hpp>
#include <sluice/stage/stage.hpp>

#include <array>
#include <cstddef>
#include <string>
#include <vector>

namespace benchmark {

namespace {

/// Turns that are stage runs, in one of two stages.
template <bool shared>
class StageLoop : public Loop<TypedExecutor> {
public:
    StageLoop(Executor executor, std::size_t limit)
        : Loop(executor),
          first_(executor, "first", sluice::EndpointOptions{.limit = half_of(limit)}),
          second_(executor, "second", sluice::EndpointOptions{.limit = half_of(limit)}),
          stages_{Stage(first_, "a", Model{this}), Stage(shared ? first_ : second_, "b", Model{this})} {}

    asio::awaitable<void, Executor> operator()(std::size_t turns) {
        const sluice::SharedString id("q");
        for (std::size_t i = 0; i < turns; ++i) {
            co_await stages_[i % 2].run(id);
        }
    }

private:
    struct Model {
        StageLoop* loop;
        asio::awaitable<int, Executor> operator()() const { return loop->model(); }
    };
    using Stage = sluice::Stage<Model>;

    asio::awaitable<int, Executor> model() {
        this->enter();
        co_await this->post();
        this->leave();
        co_return 1;
    }

    // One endpoint for both has all the slots.
    static std::ptrdiff_t half_of(std::size_t limit) noexcept {
        return static_cast<std::ptrdiff_t>(shared ? limit : limit / 2);
    }

    sluice::Endpoint<> first_;
    sluice::Endpoint<> second_;
    std::array<Stage, 2> stages_;
};

template <class Loop>
double time_per_turn(std::size_t turns) {
    constexpr std::size_t members = 1000;
    asio::io_context context(1);
    Loop loop(context.get_executor(), 10);
    StopWatch watch;
    Crew<Loop, StopWatch>(loop, watch, turns).run(context, members);
    require(loop.turns() == members * turns, "every coroutine makes every turn");
    require(loop.most_inside() <= 10, "no more coroutines than the limit allows are inside at once");
    return watch.per(members * turns);
}

}  // namespace

std::vector<Row> endpoint_rows(const Settings& settings) {
    const std::size_t turns = settings.size(200);
    return {{"stage run, 1000 coroutines for 10 slots of one endpoint that two stages share",
             "ns",
             {"sluice", [=] { return time_per_turn<StageLoop<true>>(turns); }},
             {{"an endpoint for each stage", [=] { return time_per_turn<StageLoop<false>>(turns); }, at_most(1.1)}}}};
}

}  // namespace benchmark
