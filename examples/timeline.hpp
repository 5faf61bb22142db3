// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/observer.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage_error.hpp>

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

/// An observer that records everything there is to draw: what happened when, and in which slot.
///
/// Slots have no numbers in the library. Here an attempt gets the lowest number that is free in its stage, so that two
/// attempts that overlap in time never have the same one.
class Timeline final : public sluice::Observer {
public:
    using Time = std::chrono::nanoseconds;  ///< Since the start of the clock.

    enum class Ending { succeeded, retried, failed, cancelled };

    /// One attempt, from on_started until it ended.
    struct Attempt {
        std::size_t stage = 0;
        std::size_t slot = 0;
        Time begin{};
        Time end{};
        sluice::SharedString query;
        int number = 0;
        Ending ending{};
        std::string error;
    };

    /// The number of queries that wait for a slot from `at` on.
    struct Depth {
        Time at;
        std::size_t waiting;
    };

    struct Stage {
        std::string name;
        std::size_t slots = 0;  ///< As given, or more if more were in use at once.
        std::vector<Depth> queue;

        Stage(std::string stage_name, std::size_t stage_slots) : name(std::move(stage_name)), slots(stage_slots) {}
    };

    struct DeadLetter {
        std::size_t stage = 0;
        Time at{};
        sluice::SharedString query;
        std::string error;
    };

    /// `clock` returns the time since its start. Stages are drawn in the given order; others are added as they appear.
    explicit Timeline(std::function<Time()> clock, std::vector<Stage> stages = {})
        : clock_(std::move(clock)), stages_(std::move(stages)), taken_(stages_.size()) {}

    /// The attempts that have ended, in that order.
    const std::vector<Attempt>& attempts() const noexcept { return attempts_; }
    const std::vector<Stage>& stages() const noexcept { return stages_; }
    const std::vector<DeadLetter>& dead_letters() const noexcept { return dead_letters_; }

    /// The time of the last event.
    Time end() const noexcept { return end_; }

    void on_queued(const sluice::StageResult<>& run) noexcept override {
        Run& r = runs_.try_emplace(&run).first->second;
        r.attempt.stage = index_of(run.stage.str());
        r.attempt.query = run.query_id;
        change_queue(r.attempt.stage, 1);
    }

    void on_started(const sluice::StageResult<>& run) noexcept override {
        Attempt& attempt = runs_.at(&run).attempt;
        change_queue(attempt.stage, -1);
        attempt.begin = now();
        attempt.number = run.attempts;
        std::vector<bool>& taken = taken_[attempt.stage];
        const auto free = std::ranges::find(taken, false);
        attempt.slot = static_cast<std::size_t>(free - taken.begin());
        if (free == taken.end()) {
            taken.push_back(true);
            Stage& stage = stages_[attempt.stage];
            stage.slots = std::max(stage.slots, taken.size());
        } else {
            *free = true;
        }
    }

    void on_attempt_failed(const sluice::StageResult<>& run, const sluice::StageError& error) noexcept override {
        end_attempt(runs_.at(&run), Ending::retried, error);
    }

    void on_finished(const sluice::StageResult<>& run, Outcome outcome, Event last) noexcept override {
        Run& r = runs_.at(&run);
        if (last == Event::queued) {
            change_queue(r.attempt.stage, -1);
        } else if (last == Event::started) {
            end_attempt(r, outcome == Outcome::succeeded ? Ending::succeeded : Ending::cancelled, run.error);
        } else {
            attempts_[r.last_ended].ending = Ending::failed;  // there was no retry
        }
        runs_.erase(&run);
    }

    void on_dead_letter(const sluice::Query& query, const sluice::StageResult<>& run,
                        const sluice::StageError&) noexcept override {
        dead_letters_.push_back({index_of(run.stage.str()), now(), query.id, run.error.message()});
    }

private:
    struct Run {
        Attempt attempt;             // so far
        std::size_t last_ended = 0;  // an index into attempts_
    };

    Time now() { return end_ = clock_(); }

    std::size_t index_of(const std::string& name) {
        const auto at = std::ranges::find_if(stages_, [&](const Stage& stage) { return stage.name == name; });
        if (at != stages_.end()) {
            return static_cast<std::size_t>(at - stages_.begin());
        }
        stages_.emplace_back(name, 0);
        taken_.emplace_back();
        return stages_.size() - 1;
    }

    void change_queue(std::size_t stage, int by) {
        std::vector<Depth>& queue = stages_[stage].queue;
        const std::size_t waiting = (queue.empty() ? 0 : queue.back().waiting) + static_cast<std::size_t>(by);
        if (const Time at = now(); queue.empty() || queue.back().at != at) {
            queue.push_back({at, waiting});
        } else {
            queue.back().waiting = waiting;
        }
    }

    void end_attempt(Run& run, Ending ending, const sluice::StageError& error) {
        Attempt& attempt = run.attempt;
        attempt.end = now();
        attempt.ending = ending;
        attempt.error = error.message();
        taken_[attempt.stage][attempt.slot] = false;
        run.last_ended = attempts_.size();
        attempts_.push_back(attempt);
    }

    std::function<Time()> clock_;
    std::vector<Stage> stages_;
    std::vector<std::vector<bool>> taken_;  // by stage and slot
    std::map<const sluice::StageResult<>*, Run> runs_;
    std::vector<Attempt> attempts_;
    std::vector<DeadLetter> dead_letters_;
    Time end_{};
};

/// The name of the ending in pictures.
inline std::string_view name(Timeline::Ending ending) {
    constexpr std::string_view names[] = {"succeeded", "failed, retried", "failed", "cancelled"};
    return names[static_cast<int>(ending)];
}

}  // namespace support
