// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "counted.hpp"

#include <sluice/observer.hpp>
#include <sluice/query.hpp>
#include <sluice/result.hpp>
#include <sluice/stage_error.hpp>

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <functional>
#include <ostream>
#include <string>
#include <utility>

namespace support {

/// Shows the progress of a run in one line on a terminal, which is rewritten at most ten times a second and erased at
/// the end.
class Progress final : public sluice::Observer {
public:
    using Time = std::chrono::nanoseconds;

    /// A query is done when it has succeeded in `last_stage` or is a dead letter.
    Progress(std::ostream& terminal, std::size_t queries, std::string last_stage, std::function<Time()> clock)
        : terminal_(terminal), queries_(queries), last_stage_(std::move(last_stage)), clock_(std::move(clock)) {}

    ~Progress() override { erase(); }

    /// Erases the line, so that something else can be written to the terminal. It comes back when there is progress.
    void erase() { show({}); }

    void on_finished(const sluice::StageResult<>& run, Outcome outcome, Event) noexcept override {
        if (outcome == Outcome::succeeded && run.stage == last_stage_) {
            ++completed_;
            show_at_intervals();
        }
    }

    void on_dead_letter(const sluice::Query&, const sluice::StageResult<>&,
                        const sluice::StageError&) noexcept override {
        ++dead_letters_;
        show_at_intervals();
    }

private:
    void show_at_intervals() {
        const std::size_t done = completed_ + dead_letters_;
        if (done == queries_) {
            erase();
        } else if (const Time now = clock_(); now >= next_) {
            next_ = now + std::chrono::milliseconds(100);
            show(std::to_string(done) + '/' + std::to_string(queries_) + " queries (" +
                 std::to_string(done * 100 / queries_) + " %), " + counted(dead_letters_, "dead letter"));
        }
    }

    // Overwrites the previous line, which may be longer.
    void show(const std::string& line) {
        const std::string blanks(shown_ > line.size() ? shown_ - line.size() : 0, ' ');
        if (shown_ != 0 || !line.empty()) {
            terminal_ << '\r' << line << blanks << (line.empty() ? "\r" : "") << std::flush;
        }
        shown_ = line.size();
    }

    std::ostream& terminal_;
    std::size_t queries_;
    std::string last_stage_;
    std::function<Time()> clock_;
    Time next_ = std::chrono::milliseconds(100);  // a short run shows nothing
    std::size_t completed_ = 0;
    std::size_t dead_letters_ = 0;
    std::size_t shown_ = 0;  // characters on the terminal
};

}  // namespace support
