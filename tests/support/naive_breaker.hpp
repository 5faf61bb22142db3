// SPDX-License-Identifier: BSL-1.0
// The expected behaviour of a circuit breaker. It shares no code with sluice.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <utility>
#include <vector>

namespace test {

/// A circuit breaker as the documentation of sluice::BreakerOptions describes it, as plainly as possible: it keeps
/// every result, and counts anew whenever it is asked. Times are numbers, rates are whole percentages, and there is no
/// jitter.
class NaiveBreaker {
public:
    enum class Result { success, failure, ignored, trips };
    struct Settings {
        std::int64_t failure_percent;
        std::int64_t minimum;
        std::int64_t tenth;  // of the window; 0: it is one of calls
        std::size_t last;    // calls in the window, if it is one of calls
        std::int64_t slow;   // 0: none
        std::int64_t slow_percent;
        std::int64_t open;
        std::int64_t cap;
        std::int64_t probes;
    };
    struct Call {
        std::uint64_t generation;
        std::int64_t started;
        bool probe;
    };
    struct Seen {
        int state;  // 0 closed, 1 open, 2 half-open
        bool forced;
        bool tripped;
        std::int64_t elapsed;
        std::optional<std::int64_t> remaining;
        std::int64_t calls;
        std::int64_t failed;
        std::int64_t slow;
        std::uint64_t generation;

        bool operator==(const Seen&) const = default;
    };
    struct Said {
        bool opened = false;
        bool closed = false;
        bool failed_probe = false;
        bool stale = false;
        bool spared = false;

        bool operator==(const Said&) const = default;
    };

    explicit NaiveBreaker(const Settings& settings) : set_(settings) {}

    bool may_begin(std::int64_t now) const {
        switch (seen_state(now)) {
            case 0:
                return true;
            case 1:
                return false;
            default:
                return state_ == 1 || in_flight_ + static_cast<std::int64_t>(results_.size()) < set_.probes;
        }
    }
    // When it may begin without any other event; -1 for never.
    std::int64_t earliest(std::int64_t now) const {
        return may_begin(now) ? now : state_ == 1 && !forced_ ? until_ : -1;
    }

    Call begin(std::int64_t now) {
        become_half_open(now);
        in_flight_ += state_ == 2 ? 1 : 0;
        return {generation_, now, state_ == 2};
    }

    Said end(const Call& call, Result result, std::int64_t now) {
        Said said;
        const bool failed = result == Result::failure || result == Result::trips;
        said.stale = call.generation != generation_;
        said.failed_probe = call.probe && failed;
        if (!said.stale) {
            in_flight_ -= call.probe ? 1 : 0;
            if (result != Result::ignored) {
                results_.push_back(
                    {state_ == 0 ? bucket(now) : 0, failed, set_.slow != 0 && now - call.started > set_.slow});
                judge(said, result == Result::trips, now);
            }
        } else if (result == Result::trips && seen_state(now) == 1 && !forced_) {
            tripped_ = true;
        }
        if (failed) {
            said.spared = call.probe;
            for (const std::uint64_t opening : openings_) {
                said.spared = said.spared || opening > call.generation;
            }
        }
        return said;
    }

    void force_open(std::int64_t now) {
        become_half_open(now);
        const Counts counts = state_ == 0 ? window(now) : state_ == 1 ? opened_by_ : all(results_);
        change(1, now);
        opened_by_ = counts;
        openings_.push_back(generation_);
        forced_ = true;
        tripped_ = false;
    }
    void close(std::int64_t now, bool forced) {
        become_half_open(now);
        change(0, now);
        forced_ = forced;
        tripped_ = false;
        next_open_ = 0;
    }

    Seen see(std::int64_t now) const {
        const int state = seen_state(now);
        const bool late = state != state_;
        const Counts counts = state == 0 ? window(now) : state == 1 ? opened_by_ : late ? Counts{} : all(results_);
        return {state,
                forced_,
                tripped_,
                std::max<std::int64_t>(0, now - (late ? until_ : since_)),
                state == 1 && !forced_ ? std::optional(until_ - now) : std::nullopt,
                counts.calls,
                counts.failed,
                counts.slow,
                generation_ + (late ? 1 : 0)};
    }

    std::size_t openings() const { return openings_.size(); }

private:
    struct Ended {
        std::int64_t bucket;
        bool failed;
        bool slow;
    };
    struct Counts {
        std::int64_t calls = 0;
        std::int64_t failed = 0;
        std::int64_t slow = 0;
    };

    int seen_state(std::int64_t now) const { return state_ == 1 && !forced_ && now >= until_ ? 2 : state_; }

    // Calls are never counted in a bucket before the newest one.
    std::int64_t bucket(std::int64_t now) {
        if (set_.tenth != 0) {
            newest_ = std::max(newest_, now / set_.tenth);
        }
        return newest_;
    }

    static Counts all(const std::vector<Ended>& results) {
        Counts counts;
        for (const Ended& result : results) {
            ++counts.calls;
            counts.failed += result.failed ? 1 : 0;
            counts.slow += result.slow ? 1 : 0;
        }
        return counts;
    }

    Counts window(std::int64_t now) const {
        std::vector<Ended> kept;
        for (std::size_t i = 0; i != results_.size(); ++i) {
            const bool in = set_.tenth != 0 ? results_[i].bucket > std::max(newest_, now / set_.tenth) - 10
                                            : i + set_.last >= results_.size();
            if (in) {
                kept.push_back(results_[i]);
            }
        }
        return all(kept);
    }

    bool reached(std::int64_t failed, std::int64_t slow, std::int64_t of) const {
        return failed * 100 >= set_.failure_percent * of || (set_.slow != 0 && slow * 100 >= set_.slow_percent * of);
    }

    void judge(Said& said, bool trips, std::int64_t now) {
        if (state_ == 0) {
            const Counts counts = window(now);
            said.opened =
                !forced_ &&
                (trips || (counts.calls >= set_.minimum && reached(counts.failed, counts.slow, counts.calls)));
            if (said.opened) {
                open(counts, trips, now);
            }
            return;
        }
        const Counts counts = all(results_);
        const std::int64_t left = set_.probes - counts.calls;
        if (trips || reached(counts.failed, counts.slow, set_.probes)) {
            said.opened = true;
            open(counts, trips, now);
        } else if (!reached(counts.failed + left, counts.slow + left, set_.probes)) {
            said.closed = true;
            close(now, false);
        }
    }

    void open(const Counts& counts, bool trips, std::int64_t now) {
        change(1, now);
        opened_by_ = counts;
        openings_.push_back(generation_);
        tripped_ = trips;
        next_open_ = next_open_ == 0 ? set_.open : std::min(2 * next_open_, set_.cap);
        until_ = now + next_open_;
    }

    void become_half_open(std::int64_t now) {
        if (seen_state(now) != state_) {
            change(2, until_);
        }
    }

    void change(int state, std::int64_t now) {
        state_ = state;
        since_ = now;
        ++generation_;
        results_.clear();
        in_flight_ = 0;
    }

    Settings set_;
    int state_ = 0;
    bool forced_ = false;
    bool tripped_ = false;
    std::uint64_t generation_ = 0;
    std::vector<std::uint64_t> openings_;  // the generations that were open
    std::vector<Ended> results_;           // of this generation
    std::int64_t in_flight_ = 0;           // probes of this generation
    Counts opened_by_;
    std::int64_t newest_ = 0;
    std::int64_t since_ = 0;
    std::int64_t until_ = 0;
    std::int64_t next_open_ = 0;  // the open time before this one; 0 if closed
};

}  // namespace test
