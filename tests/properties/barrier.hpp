// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"

#include <sluice/barrier.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <map>
#include <optional>
#include <stdexcept>
#include <vector>

namespace properties {

/// Parties meet phase after phase, are cancelled, drop out, and find the barrier broken, mended, or gone.
inline void check_barrier(Choices& choices) {
    struct CompletionFailed : std::runtime_error {
        using std::runtime_error::runtime_error;
    };

    InterleavingContext context([&](std::size_t n) { return choices.below(n); });
    const std::size_t parties = 1 + choices.below(5);
    const bool quiet = choices.one_in(2);  // nothing but meeting: then every party gets through every phase
    const std::uint64_t phases = 1 + choices.below(4);

    std::uint64_t completions = 0;
    std::map<std::uint64_t, std::vector<std::size_t>> indices;  // of the arrivals that got through, by phase
    std::vector<std::uint64_t> passed(parties, 0);              // phases, by party
    std::optional<sluice::Barrier> barrier;
    barrier.emplace(context.get_executor(), static_cast<std::ptrdiff_t>(parties), [&] {
        require(!barrier || barrier->phase() == completions, "the completion function sees the wrong phase");
        if (!quiet && choices.one_in(30)) {
            throw CompletionFailed("completion");
        }
        ++completions;
    });
    Actors actors(context.get_executor());

    for (std::size_t i = 0; i < parties; ++i) {
        actors.start([&, i]() -> asio::awaitable<void> {
            for (std::uint64_t phase = 0; phase < phases; ++phase) {
                co_await pause(choices);
                if (!barrier) {
                    co_return;
                }
                if (!quiet && choices.one_in(20)) {
                    try {
                        barrier->arrive_and_drop();
                    } catch (const sluice::BrokenBarrier&) {
                    } catch (const CompletionFailed&) {
                    }
                    co_return;
                }
                const std::uint64_t arrived_in = barrier->phase();
                try {
                    const std::size_t index = co_await barrier->arrive_and_wait();
                    require(completions > arrived_in, "a party left a phase that is not complete");
                    indices[arrived_in].push_back(index);
                    ++passed[i];
                } catch (const sluice::BrokenBarrier&) {
                    require(!quiet, "the barrier broke by itself");
                } catch (const CompletionFailed&) {
                }
                if (quiet) {
                    const auto [least, most] = std::ranges::minmax_element(passed);
                    require(*most - *least <= 1, "two parties are more than a phase apart");
                }
            }
        });
    }
    for (std::size_t steps = 0; steps < 600 && context.run_one(); ++steps) {
        if (quiet || !barrier) {
            continue;
        }
        if (choices.one_in(40)) {
            barrier->abort();
            require(barrier->broken() && barrier->waiting() == 0, "abort left a waiter");
        }
        if (choices.one_in(20)) {
            barrier->reset();
            require(!barrier->broken() && barrier->waiting() == 0, "reset left a waiter");
        }
        if (choices.one_in(12)) {
            actors.cancel_one(choices);
        }
        if (choices.one_in(200)) {
            barrier.reset();
        }
    }
    if (!quiet) {
        barrier.reset();  // whoever still waits for parties that have left
    }
    context.run();

    actors.check();
    if (quiet) {
        require(completions == phases, "a phase was not completed, or twice");
        require(barrier->waiting() == 0, "a waiter was lost");
    }
    for (auto& [phase, got] : indices) {
        std::ranges::sort(got);
        require(std::ranges::adjacent_find(got) == got.end(), "two arrivals have the same index");
        require(got.back() < parties, "an index is out of range");
        require(!quiet || got.size() == parties, "an arrival was lost");
    }
}

}  // namespace properties
