// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/detail/deadline.hpp>
#include <sluice/stage/detail/endpoint_state.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/detail/retry_decision.hpp>
#include <sluice/stage/detail/stage_reports.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/sync/detail/clock.hpp>

#include <exception>
#include <functional>
#include <optional>
#include <stdexcept>
#include <utility>

namespace sluice::detail {

// A member of a Fallback, and what became of it for one query.
struct FallbackMember {
    const SharedString* name;
    const StageReports* reports;
    EndpointState* endpoint;
    WhileOpen while_open;

    Reason reason = Reason::none;        // why it did not serve the query
    std::exception_ptr error = nullptr;  // null if it did not run
    bool ends = false;                   // no further member is tried
    bool aborted = false;
};

// Where the stage run of a member puts what it makes: where the Fallback itself does. See StageCoroutine.
template <class FallbackType, class Target>
struct MemberTarget {
    using T = typename FallbackType::timer_type;
    using Returned = void;
    using Data = typename Target::Data;
    static constexpr bool is_step = false;
    static constexpr bool is_member = true;
    static constexpr bool may_refuse = FallbackType::may_refuse;

    QueryRun<T>& query() noexcept { return outer.query(); }
    StageResult<> result() const {
        StageResult<> result = outer.result();
        result.stage = *member.name;
        return result;
    }
    std::optional<Data>& data(StageResult<>& result) noexcept { return outer.data(result); }

    void aborted(StageResult<>& result) {
        member.aborted = true;
        outer.aborted(result);
    }
    void ended(StageResult<>& result) {
        query().expire_reading();  // user code may have run since
        member.ends = result.success || ends_fallback(result);
        member.reason = result.reason;
        member.error = result.error.exception();
        outer.ended(result);
    }
    static void returned(StageResult<>&) noexcept {}

    WhileOpen while_open() const noexcept { return member.while_open; }

    // What the error of an attempt means.
    void judged(const Verdict& verdict) noexcept { invalid = is_invalid(verdict); }

    // Asks whether the value is accepted, and otherwise removes it.
    void ask(StageResult<>& result) {
        if constexpr (FallbackType::may_refuse) {
            std::optional<Data>& value = data(result);
            try {
                if (!std::invoke(fallback.accept_, std::as_const(*value))) {
                    refusal = std::make_exception_ptr(
                        std::runtime_error("the fallback '" + fallback.name_.str() + "' did not accept the value"));
                }
            } catch (...) {
                refusal = std::current_exception();
            }
            query().expire_reading();
            if (refusal) {
                value.reset();
            }
        }
    }

    const FallbackType& fallback;
    Target& outer;
    FallbackMember& member;
    std::exception_ptr earlier;            // of the last member before it that ran
    bool invalid = false;                  // its last attempt
    std::exception_ptr refusal = nullptr;  // why its value was not accepted

private:
    // Whether the failure is one that no other member can mend.
    bool ends_fallback(StageResult<>& result) {
        switch (result.reason) {
            case Reason::missing:
                return true;
            case Reason::model:
                return is_late() || (invalid && !goes_on_after_invalid(result));
            default:  // of a deadline it may be that only a wait would have ended too late
                return is_late();
        }
    }

    bool is_late() {
        const DeadlineOf<T>* const deadline = query().deadline();
        const Line& line = *member.endpoint->policies;
        return deadline && !line.context_gone() && deadline->is_over(now<T>(line.context()));  // or the next one is
    }

    bool goes_on_after_invalid(StageResult<>& result) const {
        const auto also_after = fallback.also_after_;
        try {
            return also_after && also_after(result.error.exception());
        } catch (...) {
            result.error = predicate_error("predicate of also_after()", result.error.exception());
            return false;
        }
    }
};

}  // namespace sluice::detail
