// SPDX-License-Identifier: BSL-1.0
// For tests that interrupt a run after every possible number of steps.
#pragma once

#include "task.hpp"

#include <boost/asio/io_context.hpp>
#include <catch2/catch_test_macros.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <optional>

namespace test {

/// The steps that a run takes before it is interrupted. Each runs one handler, or advances virtual time.
class Steps {
public:
    explicit Steps(int count) : count_(count) {}

    int count() const { return count_; }

    void take(asio::io_context& context) { enough_ = steps(context, count_) && enough_; }

    /// Whether there was enough to do for all the steps.
    bool enough() const { return enough_; }

private:
    int count_;
    bool enough_ = true;
};

/// Calls `run` with a Steps of `first` steps, then of one step more each time, until there is not enough to do for
/// them. Returns the number of calls.
///
/// `run` sets a scene up, takes the steps, and interrupts it.
template <class Run>
int for_every_step(Run run, int first = 0) {
    for (int n = first;; ++n) {
        INFO("after " << n << " steps");
        Steps steps(n);
        run(steps);
        if (!steps.enough()) {
            return n - first + 1;
        }
    }
}

/// Destroys the primitive of a run before its context, at every step. Then either the remaining coroutines run, and
/// each must end, or the context is destroyed too.
///
/// A Run has a context, the tasks in it, and the number of coroutine frames that are alive.
template <class Run, class Primitive>
void destroy_before_context_at_every_step(std::optional<Primitive> Run::* primitive) {
    const bool runs_on = GENERATE(false, true);
    for_every_step([&](Steps& steps) {
        Run run;
        steps.take(*run.context);
        run.*primitive = std::nullopt;
        if (runs_on) {
            poll(*run.context);
            CHECK(std::ranges::all_of(run.tasks, [](const auto& task) { return task.succeeded() || task.aborted(); }));
        } else {
            run.context = std::nullopt;
        }
        CHECK(run.frames == 0);
    });
}

}  // namespace test
