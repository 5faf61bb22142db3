// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "choices.hpp"

#include <sluice/sync/task_group.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <deque>
#include <memory>
#include <stdexcept>
#include <string>
#include <utility>

namespace properties {

/// Nested groups, and how they must end. Outlives the context, since the coroutines refer to it.
class TaskGroups : Expectations {
public:
    TaskGroups(Choices& choices, Actors& actors) : choices_(choices), actors_(actors) {}

    void run(InterleavingContext& context) {
        executor_ = context.get_executor();
        for (std::size_t n = 1 + choices_.below(3); n != 0; --n) {
            actors_.start(executor_, [this](Actor& actor) { return run_group(nullptr, actor, 2); });
        }
        for (std::size_t steps = 0; context.run_one(); ++steps) {
            observe();
            if (steps < 500 && choices_.one_in(20)) {
                disturb();
                observe();
            }
        }
        actors_.check();
        require(std::ranges::all_of(scopes_, ended), "something is still running");
    }

private:
    using Time = VirtualTimer::time_point;
    static constexpr Time never = Time::max();

    // The event that is certain to end a group, so that its members may wait without limit.
    enum class Doom { failure, cancel, outside, none };

    // The body, or a child.
    struct Member {
        Time spawned;
        Doom brings;  // the doom of the group that this member causes, if any
        bool begun = false;
        std::weak_ptr<int> callable;   // expires with the callable
        std::weak_ptr<int> coroutine;  // expires with the coroutine

        Member(Time when, Doom what) : spawned(when), brings(what) {}
    };

    struct Scope {
        Scope* parent;  // null if the actor itself runs it
        Actor& actor;
        std::size_t depth;                   // the number of levels that may be nested in it
        Doom doom = Doom::none;              // of this group itself
        bool doomed = false;                 // has a doom, or is inside a group that is doomed
        bool fails = false;                  // whether members may fail
        sluice::TaskGroup* group = nullptr;  // from the beginning of the body until the group has ended
        std::deque<Member> members;          // the children when they are spawned, the body when it begins
        Time cancelled = never;              // when cancelled() was first seen to be true
        Time failed = never;                 // when the first member failed
        bool cut_short = false;              // certainly cancelled from outside
        bool returned = false;               // the body has returned its value

        Scope(Scope* outer, Actor& runs_in, std::size_t levels) : parent(outer), actor(runs_in), depth(levels) {}

        bool was_cancelled() const { return parent ? parent->cancelled != never : actor.cancelled; }
    };

    struct Failure {
        const Scope* scope;
        Time at;
    };

    static bool runs(const Member& member) { return !member.coroutine.expired(); }
    static bool gone(const Member& member) { return member.callable.expired() && !runs(member); }
    static bool ended(const Scope& scope) { return std::ranges::all_of(scope.members, gone); }

    Time now() const { return VirtualTimer::now(executor_); }

    void observe() {
        for (Scope& scope : scopes_) {
            if (scope.group && scope.group->cancelled()) {
                scope.cancelled = std::min(scope.cancelled, now());
            }
            if (scope.group && scope.was_cancelled() && std::ranges::any_of(scope.members, runs)) {
                expect(scope.cancelled != never, "a cancellation from outside did not reach a group");
                scope.cut_short = true;
            }
        }
        check_expectations();
    }

    void disturb() {
        Scope* const scope = scopes_.empty() ? nullptr : &scopes_[choices_.below(scopes_.size())];
        if (choices_.one_in(2)) {
            actors_.cancel_one(choices_);
        } else if (scope && scope->group && choices_.one_in(3)) {
            scope->group->cancel();
        } else if (scope && scope->group) {
            spawn(*scope, Doom::none);
        }
    }

    void cancel_later(Actor& actor) {
        const auto timer = std::make_shared<VirtualTimer>(executor_, std::chrono::nanoseconds(choices_.below(20)));
        timer->async_wait([timer, &actor, type = some_cancellation(choices_)](const boost::system::error_code&) {
            actor.cancel(type);
        });
    }

    void spawn(Scope& scope, Doom brings) {
        Member& member = scope.members.emplace_back(now(), brings);
        auto callable = std::make_shared<int>();
        member.callable = callable;
        spawning_ = true;
        try {
            scope.group->spawn([this, &scope, &member, callable = std::move(callable)] {
                expect(!spawning_, "a child began inside spawn()");
                return run_member(scope, member);
            });
        } catch (const std::logic_error&) {
            scope.members.pop_back();
            expect(ended(scope), "a group that had not ended refused a child");
        }
        spawning_ = false;
    }

    asio::awaitable<void> run_group(Scope* parent, Actor& actor, std::size_t depth) {
        Scope& scope = scopes_.emplace_back(parent, actor, depth);
        scope.doom = static_cast<Doom>(choices_.below(parent ? 2 : 4));
        if (parent && choices_.one_in(2)) {
            scope.doom = Doom::none;
        } else if (scope.doom == Doom::outside) {
            cancel_later(actor);
        }
        scope.doomed = scope.doom != Doom::none || (parent && parent->doomed);
        scope.fails = choices_.one_in(2);
        const bool returns_value = choices_.one_in(3);  // whether the body returns one
        const auto body = [this, &scope](sluice::TaskGroup& group) { return run_body(scope, group); };
        const auto body_with_value = [this, &scope](sluice::TaskGroup& group) {
            return run_body_with_value(scope, group);
        };
        bool failed = false;
        bool aborted = false;
        try {
            if (returns_value) {
                const int value = co_await sluice::with_task_group(body_with_value);
                expect(scope.returned && value == 7, "a value was not returned by the body");
            } else {
                co_await sluice::with_task_group(body);
            }
        } catch (const Failure& failure) {
            failed = true;
            expect(failure.scope == &scope && failure.at == scope.failed, "the rethrown failure is not the first one");
        } catch (const boost::system::system_error& error) {
            aborted = error.code() == asio::error::operation_aborted;
            expect(aborted, "an unknown error was thrown");
        } catch (...) {
            expect(false, "an unknown exception was thrown");
        }
        scope.group = nullptr;
        const auto was_due = [&](const Member& member) { return member.begun || member.spawned >= scope.cancelled; };
        expect(ended(scope), "a child, or its callable, outlived its group");
        expect(std::ranges::all_of(scope.members, was_due), "a child never began although it was not cancelled");
        expect(failed == (scope.failed != never), "a failure was lost or invented");
        expect(failed || aborted || (!scope.cut_short && !scope.members.empty()), "a cancellation was lost");
        expect(!aborted || scope.was_cancelled() || (returns_value && !scope.returned),
               "a group was aborted without a cancellation");
        if (aborted && scope.was_cancelled()) {
            throw boost::system::system_error(asio::error::operation_aborted);
        }
    }

    asio::awaitable<int> run_body_with_value(Scope& scope, sluice::TaskGroup& group) {
        co_await run_body(scope, group);
        scope.returned = true;
        co_return 7;
    }

    asio::awaitable<void> run_body(Scope& scope, sluice::TaskGroup& group) {
        scope.group = &group;
        const std::size_t children = choices_.below(5);
        const std::size_t bringer = choices_.below(children + 1);
        for (std::size_t n = 0; n != children; ++n) {
            spawn(scope, n == bringer ? scope.doom : Doom::none);
        }
        Member& body = scope.members.emplace_back(now(), bringer == children ? scope.doom : Doom::none);
        co_await run_member(scope, body);
    }

    asio::awaitable<void> run_member(Scope& scope, Member& member) {
        expect(!std::exchange(member.begun, true), "a child began twice");
        expect(scope.group && !scope.group->cancelled(), "a child began in a group that was cancelled or had ended");
        if (!scope.group) {
            co_return;
        }
        const auto alive = std::make_shared<int>();
        member.coroutine = alive;
        bool cancelled = false;
        try {
            co_await work(scope, member.brings);
        } catch (const boost::system::system_error&) {
            cancelled = true;
        }
        if (cancelled) {
            expect(scope.group->cancelled(), "a child was cancelled, but not its group");
            co_await asio::this_coro::reset_cancellation_state();
            try {
                co_await pause(choices_);
            } catch (const boost::system::system_error&) {
                expect(false, "a clean-up was disturbed");
            }
            if (scope.fails && choices_.one_in(4)) {
                fail(scope);
            }
            if (choices_.one_in(2)) {
                throw boost::system::system_error(asio::error::operation_aborted);
            }
        }
    }

    asio::awaitable<void> work(Scope& scope, Doom brings) {
        const bool patient = brings != Doom::failure && brings != Doom::cancel;
        if (choices_.one_in(2)) {  // lets only one type of cancellation through
            const auto filter = [only = some_cancellation(choices_)](asio::cancellation_type type) {
                return type & only;
            };
            co_await asio::this_coro::reset_cancellation_state(filter);
        }
        if (!choices_.one_in(3)) {
            co_await pause_in(scope);
        }
        if (choices_.one_in(5)) {
            spawn(scope, Doom::none);
        }
        if (patient && scope.depth != 0 && choices_.one_in(4)) {
            co_await run_group(&scope, scope.actor, scope.depth - 1);
        }
        if (patient && scope.doomed && choices_.one_in(3)) {
            VirtualTimer timer(executor_, Time::duration::max());
            co_await timer.async_wait(asio::deferred);
            expect(false, "a child was not cancelled with its group");
        }
        if (brings == Doom::cancel || choices_.one_in(12)) {
            scope.group->cancel();
            expect(scope.group->cancelled(), "cancelled() is false after cancel()");
        }
        if (brings == Doom::failure || (scope.fails && choices_.one_in(6))) {
            fail(scope);
        }
        co_await pause_in(scope);
    }

    asio::awaitable<void> pause_in(Scope& scope) {
        const bool cancelled = scope.group->cancelled();
        co_await pause(choices_);
        expect(!cancelled, "a child continued in a cancelled group");
    }

    [[noreturn]] void fail(Scope& scope) {
        scope.failed = std::min(scope.failed, now());
        throw Failure{&scope, now()};
    }

    Choices& choices_;
    Actors& actors_;
    asio::any_io_executor executor_;
    std::deque<Scope> scopes_;  // each after those that enclose it
    bool spawning_ = false;
};

/// Groups whose members spawn, nest, hang, clean up, fail, cancel, and are cancelled from outside.
inline void check_task_group(Choices& choices) {
    Actors actors;
    TaskGroups groups(choices, actors);
    InterleavingContext context([&](std::size_t n) { return choices.below(n); });
    groups.run(context);
}

}  // namespace properties
