// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"

#include <sluice/task_group.hpp>

#include <algorithm>
#include <cstddef>
#include <exception>
#include <functional>
#include <stdexcept>
#include <string>
#include <vector>

namespace properties {

/// Groups whose children spawn, nest, fail, cancel, and are cancelled from outside.
inline void check_task_group(Choices& choices) {
    struct Failure : std::runtime_error {
        using std::runtime_error::runtime_error;
    };

    InterleavingContext context([&](std::size_t n) { return choices.below(n); });
    Actors actors(context.get_executor());
    int alive = 0;  // children and bodies between their first and their last step

    struct Alive {
        int& count;
        explicit Alive(int& c) : count(c) { ++count; }
        ~Alive() { --count; }
    };

    // One group with some children; `depth` more may be inside of them.
    std::function<asio::awaitable<void>(int)> run_group = [&](int depth) -> asio::awaitable<void> {
        int inside = 0;                          // of this group alone
        std::vector<std::string> failures;       // that anybody threw
        const bool throws = !choices.one_in(4);  // whether anybody may
        sluice::TaskGroup* group = nullptr;
        const std::function<asio::awaitable<void>()> child = [&]() -> asio::awaitable<void> {
            const Alive child_alive(alive);
            const Alive child_inside(inside);
            if (!choices.one_in(3)) {
                co_await pause(choices);
            }
            if (choices.one_in(5)) {
                group->spawn([&] { return pause(choices); });
            }
            if (depth > 0 && choices.one_in(4)) {
                co_await run_group(depth - 1);
            }
            if (choices.one_in(12)) {
                group->cancel();
            }
            if (throws && choices.one_in(6)) {
                failures.push_back("failure " + std::to_string(failures.size()));
                throw Failure(failures.back());
            }
            co_await pause(choices);
        };
        std::string came_out;
        std::exception_ptr aborted;
        try {
            co_await sluice::with_task_group([&](sluice::TaskGroup& scope) -> asio::awaitable<void> {
                const Alive body_alive(alive);
                const Alive body_inside(inside);
                group = &scope;
                for (std::size_t n = choices.below(5); n != 0; --n) {
                    scope.spawn(child);
                }
                co_await pause(choices);
            });
        } catch (const Failure& failure) {
            came_out = failure.what();
        } catch (const boost::system::system_error&) {
            aborted = std::current_exception();
        }
        require(inside == 0, "a child outlived its group");
        require(failures.empty() == came_out.empty(), "a failure was swallowed, or made up");
        require(came_out.empty() || std::ranges::count(failures, came_out) == 1,
                "not a failure of this group came out");
        if (aborted) {
            std::rethrow_exception(aborted);
        }
    };
    const std::size_t groups = 1 + choices.below(3);
    for (std::size_t i = 0; i < groups; ++i) {
        actors.start([&] { return run_group(2); });
    }
    for (std::size_t steps = 0; steps < 2000 && context.run_one(); ++steps) {
        if (choices.one_in(40)) {
            actors.cancel_one(choices);
        }
    }
    context.run();

    actors.check();
    require(alive == 0, "something is still running");
}

}  // namespace properties
