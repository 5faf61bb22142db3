// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/reason.hpp>
#include <sluice/result.hpp>
#include <sluice/shared_string.hpp>
#include <sluice/stage/breaker.hpp>
#include <sluice/stage/deadline_error.hpp>
#include <sluice/stage/endpoint_observer.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/verdict.hpp>
#include <sluice/stage_error.hpp>
#include <sluice/sync/timeout.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <map>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace support {

/// An observer of stages and of their endpoints that records what became of each call, and what the policies of the
/// endpoints did. A stage and its endpoint have the same name, that of the provider.
class ProviderLog final : public sluice::Observer, public sluice::EndpointObserver {
public:
    using Time = std::chrono::nanoseconds;  ///< Since the start of the clock.
    using State = sluice::BreakerStatus::State;

    /// How a call ended.
    enum class Ending { answered, failed, timed_out, throttled, cancelled };

    struct Call {
        Time begin{};
        Time end{};
        Ending ending{};
    };

    struct Span {
        Time from{};
        Time to = Time::max();  ///< That if it lasts.

        /// How much of it is before `end`.
        Time until(Time end) const { return std::max(std::min(to, end) - from, Time(0)); }
    };

    /// A state of a breaker that is not closed, and how long it lasted.
    struct BreakerSpan : Span {
        State state{};
    };

    /// What is known of one provider.
    struct Entry {
        std::string name;
        std::vector<Call> calls;  ///< Those that have ended, in that order.
        std::vector<BreakerSpan> breaker;
        std::vector<Span> pauses;
        std::size_t openings = 0;  ///< Of the breaker.
        std::size_t waits = 0;     ///< Calls that waited in the line.
        Time longest_wait{};
        std::size_t withheld = 0;  ///< Stage runs that the retry budget allowed no retry.
        std::size_t skipped = 0;   ///< Queries for which the fallback has skipped it.
        std::size_t retries = 0;
        std::map<sluice::Reason, std::size_t> failures;  ///< The number of stage runs that failed, by their reasons.

        explicit Entry(std::string provider) : name(std::move(provider)) {}

        std::size_t count(Ending ending) const {
            return static_cast<std::size_t>(std::ranges::count(calls, ending, &Call::ending));
        }

        std::size_t failed(sluice::Reason reason) const {
            const auto at = failures.find(reason);
            return at == failures.end() ? 0 : at->second;
        }

        /// The time before `end` for which the breaker was open.
        Time open_until(Time end) const {
            Time sum{};
            for (const BreakerSpan& span : breaker) {
                sum += span.state == State::open ? span.until(end) : Time(0);
            }
            return sum;
        }

        Time paused_until(Time end) const {
            Time sum{};
            for (const Span& pause : pauses) {
                sum += pause.until(end);
            }
            return sum;
        }

        /// The most calls that began in any interval of this length.
        std::size_t most_begun_in(Time interval) const {
            std::vector<Time> begun;
            for (const Call& call : calls) {
                begun.push_back(call.begin);
            }
            std::ranges::sort(begun);
            std::size_t most = 0;
            for (std::size_t first = 0, last = 0; last != begun.size(); ++last) {
                while (begun[last] - begun[first] >= interval) {
                    ++first;
                }
                most = std::max(most, last - first + 1);
            }
            return most;
        }
    };

    /// `clock` returns the time since its start.
    ProviderLog(std::function<Time()> clock, const std::vector<std::string>& providers) : clock_(std::move(clock)) {
        for (const std::string& name : providers) {
            entries_.emplace_back(name);
        }
    }

    const std::vector<Entry>& entries() const noexcept { return entries_; }
    const Entry& of(std::string_view provider) const { return *std::ranges::find(entries_, provider, &Entry::name); }

    /// The time of the last event.
    Time end() const noexcept { return end_; }

    void on_queued(const sluice::StageResult<>& run) noexcept override { since_[&run] = now(); }

    void on_started(const sluice::StageResult<>& run) noexcept override { end_wait(run); }

    void on_attempt_failed(const sluice::StageResult<>& run, const sluice::StageError& error) noexcept override {
        end_call(run, ending_of(error));
    }

    void on_retry(const sluice::StageResult<>& run, const sluice::Verdict&, Time) noexcept override {
        ++entry(run.stage).retries;
    }

    void on_finished(const sluice::StageResult<>& run, Outcome outcome, Event last) noexcept override {
        if (last == Event::queued) {
            end_wait(run);
        } else if (last == Event::started) {
            end_call(run, outcome == Outcome::succeeded ? Ending::answered : Ending::cancelled);
        }
        Entry& its = entry(run.stage);
        if (outcome == Outcome::failed) {
            ++its.failures[run.reason];
        }
        its.withheld += run.retries_withheld;
        since_.erase(&run);
    }

    void on_skipped(const sluice::SharedString&, const sluice::SharedString& stage, sluice::Reason) noexcept override {
        ++entry(stage).skipped;
    }

    void on_paused(const sluice::SharedString& endpoint, Time remaining, Time before) noexcept override {
        std::vector<Span>& pauses = entry(endpoint).pauses;
        if (before.count() == 0) {
            pauses.push_back({.from = now()});
        }
        pauses.back().to = now() + remaining;
    }

    void on_breaker(const sluice::SharedString& endpoint, State before,
                    const sluice::BreakerStatus& after) noexcept override {
        Entry& its = entry(endpoint);
        if (before != State::closed) {
            its.breaker.back().to = now();
        }
        if (after.state != State::closed) {
            its.breaker.push_back({{.from = now()}, after.state});
        }
        its.openings += after.state == State::open;
    }

private:
    Time now() { return end_ = clock_(); }

    Entry& entry(const sluice::SharedString& provider) {
        return *std::ranges::find(entries_, provider.str(), &Entry::name);
    }

    static Ending ending_of(const sluice::StageError& error) {
        if (sluice::retry_on<sluice::TimeoutError, sluice::DeadlineError>(error.exception())) {
            return Ending::timed_out;
        }
        const bool throttled = sluice::verdict_of(error.exception()).kind == sluice::Verdict::throttled;
        return throttled ? Ending::throttled : Ending::failed;
    }

    // From now on, the stage run does not wait.
    void end_wait(const sluice::StageResult<>& run) {
        Time& since = since_.at(&run);
        Entry& its = entry(run.stage);
        const Time waited = now() - since;
        its.waits += waited.count() != 0;
        its.longest_wait = std::max(its.longest_wait, waited);
        since += waited;
    }

    void end_call(const sluice::StageResult<>& run, Ending ending) {
        entry(run.stage).calls.push_back({since_.at(&run), now(), ending});
    }

    std::function<Time()> clock_;
    std::vector<Entry> entries_;
    std::map<const sluice::StageResult<>*, Time> since_;  // when its wait or its call began
    Time end_{};
};

}  // namespace support
