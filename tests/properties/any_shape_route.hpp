// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "any_shape_scene.hpp"
#include "choices.hpp"

#include <sluice/pipeline/run.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/fallback.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/timeout.hpp>

#include <array>
#include <chrono>
#include <cstddef>
#include <optional>
#include <string>
#include <utility>

namespace properties::any_shape {

using SheetRun = sluice::Run<Sheet>;

/// The model function of every stage.
struct Model {
    Scene* scene;
    std::size_t stage;

    asio::awaitable<std::string> operator()(const Call& call) const { return scene->model(stage, call); }
    asio::awaitable<std::string> operator()(const Call& call, const std::string& input) const {
        scene->expect(call.fate->known[0] == input, "an argument is not the value of its field");
        return scene->model(stage, call);
    }
};
using SheetStage = sluice::Stage<Model, VirtualTimer>;

struct Sink {
    Scene* scene;

    asio::awaitable<void> put(const sluice::Query& query, const sluice::StageResult<>& why, const Sheet& record) {
        return scene->put(query, why, record);
    }
};

/// One that also saves each record.
struct SavingSink {
    Scene* scene;

    asio::awaitable<void> put(const sluice::Query& query, const sluice::StageResult<>& why, const Sheet& record) {
        return scene->put(query, why, record);
    }
    asio::awaitable<void> save(const sluice::Query& query, const Sheet& record) { return scene->save(query, record); }
};

/// Takes the query of an index, from a range of indexes.
struct Take {
    Scene* scene;
    Intake* intake;

    SheetCheckpoint operator()(std::size_t index) const { return scene->take(*intake, index); }
};

/// An asynchronous source, which may answer late when it is cancelled.
struct Source {
    Scene* scene;
    Intake* intake;

    asio::awaitable<std::optional<SheetCheckpoint>> next() { return produce(*scene, *intake); }

private:
    static asio::awaitable<std::optional<SheetCheckpoint>> produce(Scene& scene, Intake& intake) {
        scene.expect(!std::exchange(intake.asks, true), "a source was asked before it had answered");
        scene.expect(scene.drained_at == 0 && intake.drained_at == 0, "a source was asked after the drain");
        const struct Answered {
            Intake& intake;
            ~Answered() { intake.asks = false; }
        } answered{intake};
        if (scene.choices.one_in(4)) {
            co_await linger(scene.choices);
        } else {
            co_await pause(scene.choices);
            const auto state = co_await asio::this_coro::cancellation_state;
            if (state.cancelled() != asio::cancellation_type::none) {
                throw boost::system::system_error(asio::error::operation_aborted);
            }
        }
        if (intake.taken == intake.drafts.size()) {
            co_return std::nullopt;
        }
        co_return scene.take(intake, intake.taken);
    }
};

/// A route that takes the shape of its query.
struct Route {
    Scene* scene;
    std::array<SheetStage, 3> stages;

    asio::awaitable<void> operator()(SheetRun& run) const { return follow(*this, run); }

private:
    struct Passage {
        Scene& scene;
        Fate& fate;

        Passage(Scene& its_scene, Fate& its_fate) : scene(its_scene), fate(its_fate) {
            ++fate.routes;
            ++scene.routes;
            ++fate.intake->in_route;
            scene.expect(fate.intake->kind == Kind::one || fate.intake->in_route <= scene.most_in_route,
                         "a window was exceeded");
        }
        ~Passage() {
            --fate.intake->in_route;
            --scene.routes;
            fate.route_over_at = ++scene.moment;
        }

        Passage(const Passage&) = delete;
        Passage& operator=(const Passage&) = delete;
    };

    static asio::awaitable<void> follow(const Route& route, SheetRun& run) {
        Fate& fate = route.scene->fate_of(run.query());
        const Passage passage(*route.scene, fate);
        if (fate.draft.turn == 1) {
            co_await pause(route.scene->choices);
        }
        co_await steps(route, run, fate);
        fate.returned = true;
    }

    auto step(SheetRun& run, Fate& fate, std::size_t field, std::size_t detour = 0) const {
        return run.step(fields[field], stages[(field + fate.draft.turn + detour) % 3], Call{&fate, field});
    }

    static asio::awaitable<void> pair(const Route& route, SheetRun& run, Fate& fate) {
        co_await run.all(route.step(run, fate, 0), route.step(run, fate, 1));
    }

    static asio::awaitable<void> steps(const Route& route, SheetRun& run, Fate& fate) {
        switch (fate.draft.shape) {
            case Shape::in_line:
                co_await route.step(run, fate, 0);
                co_await route.step(run, fate, 1);
                co_await run.step(&Sheet::third, route.stages[2], Call{&fate, 2}, &Sheet::first);
                break;
            case Shape::beside:
                co_await run.all(route.step(run, fate, 0), route.step(run, fate, 1));
                co_await run.step(&Sheet::third, route.stages[0], Call{&fate, 2}, &Sheet::first);
                break;
            case Shape::three_beside:
                co_await run.all(route.step(run, fate, 0), route.step(run, fate, 1), route.step(run, fate, 2));
                break;
            case Shape::nested:
                co_await run.all(pair(route, run, fate), route.step(run, fate, 2));
                break;
            case Shape::loop:
                for (;;) {
                    co_await route.step(run, fate, 0);
                    co_await route.step(run, fate, 1);
                    if (run->rounds == 2) {
                        break;
                    }
                    ++run->rounds;
                    run->first.reset();
                    run->second.reset();
                    fate.known[0] = fate.known[1] = fate.paid[0] = fate.paid[1] = std::nullopt;
                }
                co_await route.step(run, fate, 2);
                break;
            case Shape::branch:
                co_await route.step(run, fate, 0);
                co_await route.step(run, fate, fate.draft.turn == 0 ? 1 : 2);
                break;
            case Shape::fallback: {
                const auto& stage = route.stages[fate.draft.turn];
                const sluice::StageError error = co_await run.step_or_error(&Sheet::first, stage, Call{&fate, 0});
                route.scene->expect(bool(error) != run->first.has_value(), "an error and a value");
                co_await route.step(run, fate, 0, 1);
                co_await route.step(run, fate, 1);
                break;
            }
            case Shape::tolerant: {
                const auto& stage = route.stages[fate.draft.turn];
                co_await run.all(run.step_or_error(&Sheet::first, stage, Call{&fate, 0}), route.step(run, fate, 1));
                route.scene->expect(run->second.has_value(), "all() has returned before one of its steps");
                co_await route.step(run, fate, 0, 1);
                break;
            }
            case Shape::deadline: {
                const auto first = [&] { return route.step(run, fate, 0); };
                try {
                    co_await sluice::with_timeout<VirtualTimer>(std::chrono::nanoseconds(12), first);
                } catch (const sluice::TimeoutError&) {
                    fate.cut_itself = true;
                }
                co_await route.step(run, fate, 0, 1);
                co_await route.step(run, fate, 1);
                break;
            }
            case Shape::throws:
                co_await route.step(run, fate, 0);
                throw Failure("route");
            case Shape::swallows:
                try {
                    co_await route.step(run, fate, 0);
                    co_await run.all(pair(route, run, fate), route.step(run, fate, 2));
                } catch (const sluice::StepFailed&) {
                } catch (...) {
                    fate.swallowed = true;
                }
                break;
            case Shape::chain: {
                const auto chain =
                    sluice::Fallback("chain", route.stages[fate.draft.turn], route.stages[(fate.draft.turn + 1) % 3],
                                     route.stages[(fate.draft.turn + 2) % 3])
                        .accept([&](const std::string& value) { return route.scene->accept(fate, 0, value); });
                co_await run.all(run.step(&Sheet::first, chain, Call{&fate, 0}), route.step(run, fate, 1));
                break;
            }
        }
    }
};

}  // namespace properties::any_shape
