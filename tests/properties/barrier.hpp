// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"

#include <sluice/sync/barrier.hpp>

#include <boost/asio/cancellation_type.hpp>
#include <boost/system/system_error.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <deque>
#include <optional>
#include <utility>
#include <vector>

namespace properties {

/// The state of a barrier and the fate of each arrival, as Barrier documents them.
struct BarrierModel {
    enum class Fate { undecided, passes, breaks, fails, aborts };

    struct Arrival {
        const Actor* actor;
        Fate fate = Fate::undecided;
        std::optional<std::size_t> index;  // if it waits and passes

        explicit Arrival(const Actor* arriving) : actor(arriving) {}
    };

    std::size_t parties = 0;
    std::uint64_t phase = 0;
    bool broken = false;
    bool gone = false;
    std::deque<Arrival> arrivals;
    std::vector<Arrival*> waiting;   // in the order of arrival
    std::vector<Arrival*> released;  // waited in the phase that the completion function ends
    bool due = false;                // the completion function is to be called
    Arrival* last = nullptr;         // of its phase, if it has not continued yet
    std::size_t resumed = 0;         // other arrivals of that phase that have continued

    Arrival& arrive(const Actor& actor, bool drops) {
        Arrival& arrival = arrivals.emplace_back(&actor);
        if (gone || broken || parties == 0) {
            arrival.fate = gone ? Fate::aborts : Fate::breaks;
            return arrival;
        }
        if (drops) {
            --parties;
            arrival.fate = Fate::passes;
        } else {
            waiting.push_back(&arrival);
        }
        if (waiting.size() == parties) {
            released = std::exchange(waiting, {});
            due = true;
            last = &arrival;
        }
        return arrival;
    }

    /// The completion function has ended.
    void complete(bool throws) {
        for (std::size_t i = 0; i < released.size(); ++i) {
            released[i]->fate = throws ? Fate::breaks : Fate::passes;
            if (!throws) {
                released[i]->index = i;
            }
        }
        resumed = 0;
        if (throws) {
            last->fate = Fate::fails;
            restart(true);
        } else {
            ++phase;
        }
    }

    void restart(bool breaks) {
        broken = breaks;
        end_waits(Fate::breaks);
    }

    /// Ends the waits of `actor`, or every wait.
    void end_waits(Fate fate, const Actor* actor = nullptr) {
        std::erase_if(waiting, [&](Arrival* arrival) {
            const bool ends = !actor || arrival->actor == actor;
            arrival->fate = ends ? fate : arrival->fate;
            return ends;
        });
    }

    void check_end(const Arrival& arrival, Fate fate, std::optional<std::size_t> index) {
        const bool at_once = &arrival == last && std::exchange(last, nullptr);
        require(fate == arrival.fate, "an arrival has the wrong fate");
        require(index == arrival.index, "an arrival has the wrong index");
        require(at_once || !index || *index == resumed++, "a waiter was overtaken");
    }
};

/// Parties go through phases, are cancelled and drop out, while the barrier is broken, reset or destroyed.
inline void check_barrier(Choices& choices) {
    using Fate = BarrierModel::Fate;
    struct CompletionFailed {};

    const std::size_t parties = 1 + choices.below(5);
    const std::uint64_t rounds = 1 + choices.below(6);
    const std::size_t troubles = choices.one_in(4) ? 0 : choices.below(32);  // a bit for each kind
    const auto trouble = [&](std::size_t kind, std::size_t n) { return (troubles >> kind & 1) && choices.one_in(n); };

    BarrierModel model;
    model.parties = parties;
    std::vector<std::uint64_t> passed(parties, 0);  // the number of phases, by party
    std::optional<sluice::Barrier> barrier;
    Actors actors;

    const auto check = [&] {
        if (barrier) {
            require(barrier->waiting() == model.waiting.size(), "waiting() is wrong");
            require(barrier->broken() == model.broken, "broken() is wrong");
            require(barrier->phase() == model.phase, "phase() is wrong");
            require(barrier->parties() == static_cast<std::ptrdiff_t>(model.parties), "parties() is wrong");
        }
    };
    const auto destroy = [&] {
        barrier.reset();
        model.gone = true;
        model.end_waits(Fate::aborts);
    };
    const auto disturb = [&] {
        check();
        if (const Actor* cancelled = trouble(0, 6) ? actors.cancel_one(choices) : nullptr) {
            model.end_waits(Fate::aborts, cancelled);
        } else if (barrier && trouble(1, 60)) {
            barrier->abort();
            model.restart(true);
        } else if (barrier && trouble(1, model.broken ? 8 : 60)) {
            barrier->reset();
            model.restart(false);
        } else if (trouble(2, 100)) {
            destroy();
        }
        check();
    };
    const auto completion = [&] {
        require(std::exchange(model.due, false), "the completion function was called out of turn");
        disturb();
        const bool throws = trouble(3, 8);
        model.complete(throws);
        if (throws) {
            throw CompletionFailed();
        }
    };

    InterleavingContext context([&](std::size_t n) { return choices.below(n); });
    barrier.emplace(context.get_executor(), static_cast<std::ptrdiff_t>(parties), completion);
    for (std::size_t i = 0; i < parties; ++i) {
        actors.start(context.get_executor(), [&, i](Actor& actor) -> asio::awaitable<void> {
            for (std::uint64_t round = 0; round < rounds && barrier; ++round) {
                asio::awaitable<std::size_t> operation = barrier->arrive_and_wait();  // may outlive the barrier
                co_await pause(choices);
                if ((co_await asio::this_coro::cancellation_state).cancelled() != asio::cancellation_type::none) {
                    co_return;
                }
                const std::uint64_t phase = model.phase;
                const bool drops = barrier && trouble(4, 8);
                const auto& arrival = model.arrive(actor, drops);
                auto fate = Fate::passes;
                std::optional<std::size_t> index;
                try {
                    if (drops) {
                        barrier->arrive_and_drop();
                    } else {
                        index = co_await std::move(operation);
                    }
                } catch (const sluice::BrokenBarrier&) {
                    fate = Fate::breaks;
                } catch (const CompletionFailed&) {
                    fate = Fate::fails;
                } catch (const boost::system::system_error& error) {
                    require(error.code() == asio::error::operation_aborted, error.what());
                    fate = Fate::aborts;
                }
                model.check_end(arrival, fate, index);
                if (drops && fate != Fate::breaks) {
                    passed[i] = rounds;  // it holds no party back
                    if (model.parties != 0) {
                        co_return;
                    }
                } else if (fate == Fate::passes) {
                    require(passed[i]++ == phase, "a party missed a phase");
                    require(std::ranges::min(passed) >= phase, "two parties are more than a phase apart");
                }
                if (choices.one_in(2)) {  // so that a cancelled party may continue
                    co_await asio::this_coro::reset_cancellation_state(asio::enable_total_cancellation());
                }
            }
        });
    }
    while (context.run_one()) {
        require(!model.due, "the completion function was not called");
        require(!model.last, "the last arrival did not continue at once");
        disturb();
    }
    require(troubles != 0 || (model.phase == rounds && model.waiting.empty()), "a phase was not completed");
    destroy();  // parties may wait for others that have left
    context.run();
    actors.check();
}

}  // namespace properties
