// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/stage/detail/argument.hpp>
#include <sluice/stage/detail/deadline.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/line.hpp>
#include <sluice/stage/detail/member_target.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/stage_coroutine.hpp>
#include <sluice/stage/fallback_error.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/sync/detail/clock.hpp>
#include <sluice/sync/detail/exceptions.hpp>
#include <sluice/sync/detail/frame_pool.hpp>

#include <boost/asio/awaitable.hpp>
#include <boost/asio/this_coro.hpp>

#include <array>
#include <cstddef>
#include <exception>
#include <memory>
#include <tuple>
#include <utility>
#include <vector>

namespace sluice::detail {

// The form in which a member gets an argument that the fallback stores as an `Arg`: a field as such, and otherwise a
// reference, through which a model function gets the same lvalue.
template <class Arg>
struct MemberArgument {
    using Type = const Arg&;
};
template <class Arg>
struct MemberArgument<Arg&> {
    using Type = Arg&;
};
template <class Value>
struct MemberArgument<FieldArgument<Value>> {
    using Type = FieldArgument<Value>;
};
template <class Arg>
using member_argument_t = typename MemberArgument<Arg>::Type;

// The coroutine that runs one query through the members of a fallback; see Fallback. `Target` is as that of a
// StageCoroutine, and has the fallback as `stage`. It is told of each stage run; the last one that it is told of
// counts.
template <class FallbackType, class Target, class... Args>
class FallbackCoroutine {
    using T = typename FallbackType::timer_type;

public:
    using Returned = typename Target::Returned;
    using Executor = typename FallbackType::template RunExecutor<call_argument_t<Args>...>;

    static boost::asio::awaitable<Returned, Executor> run(Pooled, Target target, Args... args) {
        if constexpr (Target::is_step) {
            target.begins();
            if (target.is_filled()) {
                co_return target.skipped();
            }
        }
        Members members = members_of(target);
        StageResult<> result;
        try {
            const bool was_cancelled = is_cancelled(co_await boost::asio::this_coro::cancellation_state);
            std::exception_ptr earlier;
            bool ended = false;
            for (std::size_t i = 0; i != members.size() && !ended; ++i) {
                if (is_skipped(target.query(), members[i])) {
                    report_skipped(target, members[i]);
                } else {
                    co_await runs[i](target, members[i], earlier, args...);
                    ended = members[i].ends;
                    earlier = members[i].error;
                }
                // The run of a stage that was cancelled has thrown; but its value may not have been accepted, and an
                // observer may have cancelled a query whose member was skipped.
                if (!ended && !was_cancelled && is_cancelled(co_await boost::asio::this_coro::cancellation_state)) {
                    throw operation_aborted("Fallback::run");
                }
            }
            if (!ended) {
                result = target.result();
                result.reason = Reason::fallback;
                result.error = std::make_exception_ptr(FallbackError(causes(members)));
                target.ended(result);
            }
        } catch (...) {
            abort(target, members, result);
            throw;
        }
        if constexpr (Target::is_step) {
            if (target.saves()) {
                const bool throws = co_await boost::asio::this_coro::throw_if_cancelled();
                co_await boost::asio::this_coro::throw_if_cancelled(false);
                co_await target.save();
                co_await boost::asio::this_coro::throw_if_cancelled(throws);
            }
        }
        co_return target.returned(result);
    }

private:
    static constexpr std::size_t count = FallbackType::size;

    using Members = std::array<FallbackMember, count>;
    using Member = MemberTarget<FallbackType, Target>;

    // Whoever waits for an open breaker before the last member keeps the query from those behind it.
    static Members members_of(const Target& target) noexcept {
        Members members = std::apply(
            [](const auto&... stages) {
                return Members{FallbackMember{&stages.name(), &state_of(stages)->reports(),
                                              state_of(stages)->endpoint.get(), state_of(stages)->while_open()}...};
            },
            target.stage.members_);
        for (std::size_t i = 0; i + 1 != count; ++i) {
            if (members[i].while_open != WhileOpen::hold) {
                members[i].while_open = WhileOpen::fail;
            }
        }
        return members;
    }

    // Whether the member could not begin its attempt, or not before the query is late.
    static bool is_skipped(QueryRun<T>& query, FallbackMember& member) {
        Line& line = *member.endpoint->policies;
        if (line.closed()) {
            return false;
        }
        Line::Time left = Line::Time::max();
        if (const DeadlineOf<T>* const deadline = query.deadline()) {
            const auto time = now<T>(line.context());
            if (deadline->is_over(time)) {
                return false;  // whichever member comes next is late
            }
            left = deadline->left(time);
        }
        switch (line.refusal(member.while_open, left)) {
            case LineEntry::Refusal::breaker_open:
                member.reason = Reason::breaker_open;
                return true;
            case LineEntry::Refusal::late:
                member.reason = Reason::deadline;
                return true;
            default:
                return false;
        }
    }

    static void report_skipped(Target& target, const FallbackMember& member) noexcept {
        member.reports->notify(target.query(), &Observer::on_skipped, target.query_id(), *member.name, member.reason);
    }

    // Begins the stage run of a member.
    template <std::size_t index>
    static boost::asio::awaitable<void, Executor> run_member(Target& target, FallbackMember& member,
                                                             const std::exception_ptr& earlier,
                                                             std::remove_reference_t<Args>&... args) {
        auto& stage = *state_of(std::get<index>(target.stage.members_));
        using State = std::remove_reference_t<decltype(stage)>;
        return StageCoroutine<State, Member, member_argument_t<Args>...>::run(
            Pooled(), stage, Member{target.stage, target, member, earlier}, nullptr,
            static_cast<member_argument_t<Args>>(args)...);
    }

    using RunMember = boost::asio::awaitable<void, Executor> (*)(Target&, FallbackMember&, const std::exception_ptr&,
                                                                 std::remove_reference_t<Args>&...);
    static constexpr std::array<RunMember, count> runs = []<std::size_t... index>(std::index_sequence<index...>) {
        return std::array<RunMember, count>{&run_member<index>...};
    }(std::make_index_sequence<count>());

    static std::vector<FallbackError::Cause> causes(const Members& members) {
        std::vector<FallbackError::Cause> causes;
        causes.reserve(count);
        for (const FallbackMember& member : members) {
            causes.push_back({*member.name, member.reason, member.error});
        }
        return causes;
    }

    // An exception leaves the fallback: that of a stage run, which has told the target, or one between two of them.
    static void abort(Target& target, const Members& members, StageResult<>& result) {
        for (const FallbackMember& member : members) {
            if (member.aborted) {
                return;
            }
        }
        result = target.result();
        result.error = std::current_exception();
        target.aborted(result);
    }
};

}  // namespace sluice::detail
