// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/detail/argument.hpp>
#include <sluice/stage/detail/fallback_coroutine.hpp>
#include <sluice/stage/detail/fallback_traits.hpp>
#include <sluice/stage/detail/query_run.hpp>
#include <sluice/stage/stage.hpp>
#include <sluice/sync/detail/frame_pool.hpp>
#include <sluice/sync/detail/require.hpp>

#include <concepts>
#include <cstddef>
#include <exception>
#include <optional>
#include <stdexcept>
#include <tuple>
#include <type_traits>
#include <utility>

namespace sluice {

/// Several stages that can do the same, such as models of different providers: the next one serves a query if those
/// before it could not. It stands for a Stage in the steps of a Run.
///
/// @code
/// const sluice::Fallback answer("answer", gpt, claude, local);
/// co_await run.step(&Ticket::reply, answer, run.query().text);
/// @endcode
///
/// Its members are tried in order, each once for a query, with its own endpoint, retries and timeout:
///
/// @li *next*: if no member is left, the fallback has *failed*. The member is *skipped*, and the next one tried, if the
/// breaker of its endpoint is open and it does not wait for that, or if the pause or the open time of its endpoint
/// lasts longer than Query::timeout leaves. A half-open breaker with a place for a probe is not open. Otherwise the
/// member *runs*.
/// @li *runs*: the stage run of the member, with its attempts and retries. If its value is accepted, the member has
/// *served* the query. Otherwise the *next* one is tried; but the fallback has *ended* if no other member could help.
/// That is so if the query was cancelled or its timeout is over, if a field that it reads is empty, and if the Verdict
/// on the last error is `invalid`: a request that is wrong is wrong everywhere, except for what also_after() names.
/// @li *served*, *ended*: the StageResult of that member is the result of the step: the stage that it names has served
/// the query, or failed it.
/// @li *failed*: the result has the name of the fallback, Reason::fallback, and a FallbackError with all causes.
///
/// So it goes on after a member whose retries are used up, which has timed out, whose account is exhausted, whose
/// endpoint is closed, for which the call is too costly, or whose backoff or pause would end too late, while the query
/// has time left for another. A member with others behind it does not wait for an open breaker, unless its stage has
/// WhileOpen::hold; that of the last is up to its WhileOpen. If the breaker opens while the query waits in the line,
/// the member is refused, with Reason::breaker_open.
///
/// The results of the query have every stage run of a member, and observers have its events. Those that were skipped
/// are in no result but the FallbackError; observers have Observer::on_skipped. A fallback that failed has no event but
/// on_dead_letter.
///
/// Copies are handles to the same stages. Each costs as much as its members, and the predicate.
///
/// @par Complexity
/// O(members that are tried), beside their stage runs. Costs a coroutine frame, and one for each of these.
///
/// @par Thread safety
/// That of its stages, which belong to one thread or strand.
template <class Accept, class... Members>
class Fallback {
    static_assert((!detail::is_fallback<Members> && ...),
                  "sluice::Fallback: a member cannot be a Fallback itself; list its members instead");
    static_assert((detail::is_stage<Members> && ...), "sluice::Fallback: each member must be a sluice::Stage");
    static_assert(sizeof...(Members) >= 2, "sluice::Fallback: needs at least two members");

    template <class... CallArgs>
    using Calls = detail::FallbackTraits<detail::TypeList<CallArgs...>, Members...>;

public:
    using timer_type = typename detail::CommonTimer<Members...>::Type;
    static_assert(!std::same_as<timer_type, void>, "sluice::Fallback: all members must have the same timer");

    /// @param name Appears in the result of a query that no member serves.
    /// @param members The stages, in the order in which they are tried; at least two.
    /// @throws std::invalid_argument if `name` is empty.
    explicit Fallback(SharedString name, Members... members) : name_(std::move(name)), members_(std::move(members)...) {
        if (name_.empty()) {
            throw std::invalid_argument("Fallback: the name must not be empty");
        }
    }

    /// Returns a copy that takes a value only if `predicate(value)` holds. It is called with a const lvalue of what the
    /// step stores in its field, which stays empty otherwise; run() returns it. A stage run whose value is not accepted
    /// has failed, with Reason::not_accepted. So it has if the predicate throws, with that as its error.
    /// @param predicate Called as a const lvalue, while the attempt has its slot.
    /// @throws std::invalid_argument if `predicate` is empty.
    template <class Predicate>
    [[nodiscard]] Fallback<Predicate, Members...> accept(Predicate predicate) const {
        static_assert(!may_refuse,
                      "sluice::Fallback: it has a predicate for accept() already; write one that asks both");
        if (detail::is_empty(predicate)) {
            throw std::invalid_argument("Fallback '" + name_.str() + "': the predicate of accept() must not be empty");
        }
        return Fallback<Predicate, Members...>(*this, std::move(predicate));
    }

    /// Returns a copy that also goes on after an error whose verdict is `invalid`, if `predicate(error)` holds: for
    /// requests that are wrong for one model and right for another, such as one that is too long. It is not asked about
    /// other errors, after which the fallback goes on anyway, and replaces an earlier one. If it throws, the fallback
    /// has ended, and the error is a RetryPredicateError.
    /// @throws std::invalid_argument if `predicate` is empty.
    ///
    /// @code
    /// const auto with_longer = answer.also_after(sluice::retry_on<ContextTooLong>);
    /// @endcode
    [[nodiscard]] Fallback also_after(bool (*predicate)(const std::exception_ptr&)) const {
        if (!predicate) {
            throw std::invalid_argument("Fallback '" + name_.str() +
                                        "': the predicate of also_after() must not be empty");
        }
        Fallback result = *this;
        result.also_after_ = predicate;
        return result;
    }

    /// When awaited, runs one query and returns a `StageResult<Value>`, where Value is the common type of the members'
    /// values: that of the member that has served or ended, or of the fallback if it failed. As Stage::run() otherwise,
    /// the arguments included.
    ///
    /// @throws boost::system::system_error with `operation_aborted` if the run was cancelled.
    template <class... Args>
    [[nodiscard]] auto run(SharedString query_id, Args&&... args) const {
        using Traits = Calls<detail::call_argument_t<Args>...>;
        using Value = typename Traits::Value;
        constexpr bool accepts = detail::accepts<Accept, Value>;
        static_assert(Traits::is_callable,
                      "sluice::Fallback: the model function of each member must be callable with the arguments of "
                      "run(); lvalues are passed as they are, and rvalues as const lvalues");
        static_assert(!Traits::is_callable || Traits::is_model,
                      "sluice::ModelFunction: the model function of each member of a Fallback must return an "
                      "asio::awaitable of a value: not void, no reference, nothing that may throw when it is moved");
        static_assert(!Traits::is_model || Traits::same_executor,
                      "sluice::Fallback: the awaitables of its members must have the same executor type");
        static_assert(!Traits::is_model || Traits::has_value,
                      "sluice::Fallback: the values of its members must have a common type");
        static_assert(accepts,
                      "sluice::Fallback: the predicate of accept() must be callable, as const, with the value, and "
                      "return a bool");
        if constexpr (Traits::is_model && Traits::same_executor && Traits::has_value && accepts) {
            return detail::FallbackCoroutine<Fallback, Target<Value>, Args...>::run(
                detail::Pooled(), Target<Value>(*this, std::move(query_id)), std::forward<Args>(args)...);
        }
    }

    const SharedString& name() const noexcept { return name_; }

private:
    template <class, class...>
    friend class Fallback;
    template <class, class, class...>
    friend class detail::FallbackCoroutine;
    template <class, class>
    friend struct detail::MemberTarget;

    static constexpr std::size_t size = sizeof...(Members);
    static constexpr bool may_refuse = !std::same_as<Accept, detail::AcceptAll>;

    template <class... CallArgs>
    using RunExecutor = typename Calls<CallArgs...>::Executor;

    // A run alone returns its result.
    template <class Value>
    struct Target {
        using Returned = StageResult<Value>;
        using Data = Value;
        static constexpr bool is_step = false;

        Target(Fallback its_stage, SharedString id) : stage(std::move(its_stage)), kept(std::move(id), stage.name()) {}

        detail::QueryRun<timer_type>& query() noexcept { return run; }
        const SharedString& query_id() const noexcept { return kept.query_id; }
        StageResult<> result() const { return StageResult<>(query_id(), stage.name()); }
        std::optional<Value>& data(StageResult<>&) noexcept { return kept.data; }
        static void aborted(StageResult<>&) noexcept {}
        void ended(const StageResult<>& result) { static_cast<StageResult<>&>(kept) = result; }
        Returned&& returned(StageResult<>&) noexcept { return std::move(kept); }

        Fallback stage;
        Returned kept;
        detail::QueryRun<timer_type> run{nullptr};
    };

    template <class Other>
    Fallback(const Fallback<Other, Members...>& other, Accept accept)
        : name_(other.name_), members_(other.members_), also_after_(other.also_after_), accept_(std::move(accept)) {}

    SharedString name_;
    std::tuple<Members...> members_;
    bool (*also_after_)(const std::exception_ptr&) = nullptr;
    [[no_unique_address]] Accept accept_{};
};

template <class... Members>
Fallback(SharedString, Members...) -> Fallback<detail::AcceptAll, Members...>;

}  // namespace sluice
