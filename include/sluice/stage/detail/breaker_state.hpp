// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/stage/breaker.hpp>
#include <sluice/stage/detail/breaker_options.hpp>
#include <sluice/stage/detail/breaker_window.hpp>
#include <sluice/stage/retry.hpp>

#include <boost/assert.hpp>

#include <algorithm>
#include <chrono>
#include <cstdint>
#include <variant>

namespace sluice::detail {

// What the result of a call says about the provider.
enum class BreakerResult : std::uint8_t {
    success,
    failure,
    ignored,    // nothing
    cut_short,  // nothing but that it was slow, if it was
    trips,      // no call will work until a person acts
};

// A call that has begun.
struct BreakerCall {
    std::uint64_t generation = 0;
    std::chrono::nanoseconds started{0};
    bool probe = false;
};

// What the result of a call did.
struct BreakerReport {
    bool opened = false;        // it opened the breaker
    bool closed = false;        // it closed the breaker
    bool tripped = false;       // it found the account exhausted when others had opened the breaker
    bool failed_probe = false;  // the call was a probe and failed, even if its round had been decided
    bool stale = false;         // it was not counted, since the call began before the last change of the state
    bool in_outage = false;     // it is a failure; and the call was a probe, or the breaker opened while it ran

    // Whether an attempt that is willing to wait may be made again without using up a retry. It includes every failure
    // of a call that was running when the breaker opened, not that of the one call alone that opened it: the same
    // outage failed them all, and which of them reached the threshold is chance. Of 20 calls in flight with a minimum
    // of 10, the 10 reported last would be lost otherwise. It includes those that fail while the breaker is half-open
    // or after it has closed again, since a call may hang through the whole outage until its timeout. Whatever fails
    // before the breaker opens uses up a retry, and so does whatever begins after it has closed; so each opening spares
    // a call at most once, and each round at most its probes.
    bool spares_retry() const noexcept { return in_outage; }
};

// The state machine of a circuit breaker; see BreakerOptions.
//
// Each time `now` counts from an origin that the caller chooses, and is neither negative nor nanoseconds::max(). A time
// that is earlier than that of a previous operation does no harm. Each operation is O(1), and O(calls in the window)
// when a breaker with a window of calls closes. Nothing allocates but the constructor, of a window of calls.
//
// Every call that begin() returns must be given to end() or cancel() once; a BreakerPermit does so.
class BreakerState {
public:
    static constexpr std::chrono::nanoseconds never = std::chrono::nanoseconds::max();

    // `options` are valid. Without a seed, it is 0.
    explicit BreakerState(const BreakerOptions& options, std::chrono::nanoseconds now = std::chrono::nanoseconds(0))
        : options_(options), window_(make_window(options)), since_(now) {}

    BreakerState(const BreakerState&) = delete;  // calls refer to it
    BreakerState& operator=(const BreakerState&) = delete;

    // When a call may begin: `now`, later, or `never` by itself: then only a report, a cancelled probe or a person can
    // change that.
    std::chrono::nanoseconds earliest(std::chrono::nanoseconds now) const noexcept {
        if (state_ == BreakerStatus::closed) [[likely]] {
            return now;
        }
        return state_ == BreakerStatus::open ? std::max(now, until_) : places_ > 0 ? now : never;
    }

    // Begins a call. If the breaker is open, its open time has ended, and it becomes half-open.
    //
    // @pre earliest(now) == now
    BreakerCall begin(std::chrono::nanoseconds now) noexcept {
        BOOST_ASSERT(earliest(now) == now);
        if (state_ == BreakerStatus::closed) [[likely]] {
            return {.generation = generation_, .started = now};
        }
        settle(now);
        --places_;
        return {.generation = generation_, .started = now, .probe = true};
    }

    // Ends a call that began here. It is slow if `now` is later than its start by more than BreakerOptions::slow.
    BreakerReport end(const BreakerCall& call, BreakerResult result, std::chrono::nanoseconds now) noexcept {
        const bool slow = options_.slow && now - call.started > *options_.slow;
        if (result == BreakerResult::ignored || (result == BreakerResult::cut_short && !slow)) {
            return {.stale = !cancel(call)};
        }
        const bool failed = result == BreakerResult::failure || result == BreakerResult::trips;
        BreakerReport report{.failed_probe = failed && call.probe, .stale = call.generation != generation_};
        if (!report.stale) {
            const bool trips = result == BreakerResult::trips;
            call.probe ? end_probe(report, failed, slow, trips, now) : end_call(report, failed, slow, trips, now);
        } else if (result == BreakerResult::trips && state_ == BreakerStatus::open && !forced_ && now < until_) {
            report.tripped = true;
            tripped_ = true;
        }
        report.in_outage = failed && (call.probe || call.generation < opened_);
        return report;
    }

    // Ends a call that was cancelled: nothing is counted, and a probe returns its place. Returns false if the call
    // began before the last change of the state. Nothing waits for a place here: whoever does must ask again.
    bool cancel(const BreakerCall& call) noexcept {
        if (call.generation != generation_) {
            return false;
        }
        places_ += call.probe ? 1 : 0;
        return true;
    }

    // Opens it until it is forced closed or reset.
    void force_open(std::chrono::nanoseconds now) noexcept {
        settle(now);
        open(state_ == BreakerStatus::closed ? counts(now) : counts_, now, never, Cause::forced);
        forced_ = true;
        tripped_ = false;
    }

    // Closes it until it is forced open or reset. Calls are counted, but do not open it.
    void force_closed(std::chrono::nanoseconds now) noexcept {
        close(now, Cause::forced);
        forced_ = true;
    }

    // Closes it, with an empty window and the first open time, as if it were new.
    void reset(std::chrono::nanoseconds now) noexcept { close(now, Cause::reset); }

    bool closed() const noexcept { return state_ == BreakerStatus::closed; }

    // Whether a call found the account exhausted when it last opened, or later while it was open; not if it has closed.
    bool tripped() const noexcept { return tripped_; }

    // An open breaker whose open time has ended is shown as half-open, since the next call will find it so.
    BreakerStatus status(std::chrono::nanoseconds now) const noexcept {
        const bool ended = state_ == BreakerStatus::open && until_ <= now;
        const BreakerCounts shown = state_ == BreakerStatus::closed ? counts(now) : ended ? BreakerCounts() : counts_;
        BreakerStatus status{.state = ended ? BreakerStatus::half_open : state_,
                             .forced = forced_,
                             .tripped = tripped_,
                             .elapsed = std::max(now - (ended ? until_ : since_), std::chrono::nanoseconds(0)),
                             .calls = shown.calls,
                             .failure_rate = BreakerCounts::share(shown.failed, shown.calls),
                             .slow_rate = BreakerCounts::share(shown.slow, shown.calls),
                             .generation = generation_ + (ended ? 1 : 0),
                             .cause = ended ? Cause::open_time_ended : cause_,
                             .openings = openings_};
        if (status.state == BreakerStatus::open && !forced_) {
            status.remaining = until_ - now;
        }
        return status;
    }

    // The number of changes of the state, so far. A call that began in another generation is not counted.
    std::uint64_t generation() const noexcept { return generation_; }

    // How often it became open.
    std::uint64_t openings() const noexcept { return openings_; }

    // When it entered its state.
    std::chrono::nanoseconds since() const noexcept { return since_; }

private:
    using Cause = BreakerStatus::Cause;
    using Window = std::variant<TimeWindow, CountWindow>;

    static Window make_window(const BreakerOptions& options) {
        return options.window_calls ? Window(CountWindow(*options.window_calls)) : Window(TimeWindow(options.window));
    }

    // Makes a breaker half-open whose open time has ended, as of then: so it does not matter when somebody asks.
    void settle(std::chrono::nanoseconds now) noexcept {
        if (state_ == BreakerStatus::open && until_ <= now) {
            enter(BreakerStatus::half_open, until_, Cause::open_time_ended);
            counts_ = {};
            places_ = options_.probes;
        }
    }

    void end_call(BreakerReport& report, bool failed, bool slow, bool trips, std::chrono::nanoseconds now) noexcept {
        TimeWindow* const times = std::get_if<TimeWindow>(&window_);
        const BreakerCounts& counted =
            times ? times->add(now, failed, slow) : std::get_if<CountWindow>(&window_)->add(now, failed, slow);
        report.opened = !forced_ && (trips || (counted.calls >= options_.minimum_calls && reaches_a_rate(counted)));
        if (report.opened) {
            open_for_a_time(counted,
                            trips                           ? Cause::exhausted
                            : reaches_failure_rate(counted) ? Cause::failure_rate
                                                            : Cause::slow_rate,
                            now);
        }
    }

    void end_probe(BreakerReport& report, bool failed, bool slow, bool trips, std::chrono::nanoseconds now) noexcept {
        counts_.add(failed, slow);
        const std::int64_t missing = options_.probes - counts_.calls;
        report.opened = trips || reaches_a_rate({options_.probes, counts_.failed, counts_.slow});
        report.closed =
            !report.opened && !reaches_a_rate({options_.probes, counts_.failed + missing, counts_.slow + missing});
        if (report.opened) {
            open_for_a_time(counts_, trips ? Cause::exhausted : Cause::probes_failed, now);
        } else if (report.closed) {
            close(now, Cause::probes_succeeded);
        }
    }

    bool reaches_failure_rate(const BreakerCounts& counted) const noexcept {
        return BreakerCounts::share(counted.failed, counted.calls) >= options_.failure_rate;
    }
    bool reaches_a_rate(const BreakerCounts& counted) const noexcept {
        return reaches_failure_rate(counted) ||
               (options_.slow && BreakerCounts::share(counted.slow, counted.calls) >= options_.slow_rate);
    }

    void open_for_a_time(const BreakerCounts& counted, Cause cause, std::chrono::nanoseconds now) noexcept {
        using std::chrono::nanoseconds;
        rounds_ = std::min(rounds_ + 1, 64);  // 2^63 ns is more than any cap
        const RetryPolicy doubling{.backoff = {.initial = options_.open_time,
                                               .cap = open_cap(options_),
                                               .jitter = options_.jitter,
                                               .seed = options_.seed}};
        const nanoseconds time = std::max(doubling.delay(rounds_, generation_), nanoseconds(1));
        open(counted, now, time < never - now ? now + time : never, cause);
        tripped_ = cause == Cause::exhausted;
    }

    void open(const BreakerCounts& counted, std::chrono::nanoseconds now, std::chrono::nanoseconds until,
              Cause cause) noexcept {
        counts_ = counted;
        until_ = until;
        openings_ += state_ != BreakerStatus::open ? 1 : 0;
        enter(BreakerStatus::open, now, cause);
        opened_ = generation_;
    }

    void close(std::chrono::nanoseconds now, Cause cause) noexcept {
        settle(now);
        enter(BreakerStatus::closed, now, cause);
        std::visit([](auto& window) { window.clear(); }, window_);
        forced_ = false;
        tripped_ = false;
        rounds_ = 0;
    }

    void enter(BreakerStatus::State state, std::chrono::nanoseconds now, Cause cause) noexcept {
        state_ = state;
        cause_ = cause;
        since_ = now;
        ++generation_;
    }

    BreakerCounts counts(std::chrono::nanoseconds now) const noexcept {
        return std::visit([now](const auto& window) -> BreakerCounts { return window.counts(now); }, window_);
    }

    const BreakerOptions options_;
    BreakerStatus::State state_ = BreakerStatus::closed;
    Cause cause_ = Cause::none;  // why it entered that
    bool forced_ = false;
    bool tripped_ = false;
    int rounds_ = 0;  // how often it has opened since it was last closed, up to 64
    int places_ = 0;  // if half-open: the probes that have yet to begin
    std::uint64_t generation_ = 0;
    std::uint64_t opened_ = 0;    // the generation that began when it last opened
    std::uint64_t openings_ = 0;  // how often it became open
    Window window_;               // if closed
    BreakerCounts counts_;        // if half-open, of the probes that have ended; if open, of what opened it
    std::chrono::nanoseconds since_;
    std::chrono::nanoseconds until_{0};  // if open: when it becomes half-open
};

}  // namespace sluice::detail
