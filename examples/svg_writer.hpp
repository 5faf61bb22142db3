// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "counted.hpp"
#include "svg.hpp"
#include "timeline.hpp"

#include <algorithm>
#include <cmath>
#include <cstddef>
#include <ostream>
#include <string>
#include <string_view>

namespace support {

/// Draws a timeline as an SVG: for each stage a lane per slot, and below them the number of queries that wait.
class SvgWriter : Svg {
public:
    SvgWriter(std::ostream& out, const Timeline& timeline) : Svg(out, timeline.end()), out_(out), timeline_(timeline) {}

    void write() {
        double height = top;
        for (const Timeline::Stage& stage : timeline_.stages()) {
            height += block_height(stage) + queue_height + gap;
        }
        begin(height + 22, title(), css);
        draw_legend(22, 54);
        axis(top, height - gap + 5, height + 2);
        double y = top;
        for (std::size_t i = 0; i != timeline_.stages().size(); ++i) {
            draw_stage(i, y);
            y += block_height(timeline_.stages()[i]) + queue_height + gap;
        }
        finish();
    }

private:
    using Ending = Timeline::Ending;

    static constexpr double top = 74, queue_height = 30, gap = 18;
    static constexpr std::string_view css =
        R"(.ok { fill: #38bdf8 } .again { fill: #fbbf24 } .lost { fill: #f43f5e } .off { fill: #64748b }
.queue { fill: #a78bfa; fill-opacity: .55; stroke: #c4b5fd } .cross { stroke: #fff; stroke-width: 1.5 }
)";

    static double lane_height(const Timeline::Stage& stage) {
        return std::clamp(104.0 / static_cast<double>(std::max<std::size_t>(stage.slots, 1)), 7.0, 18.0);
    }
    static double block_height(const Timeline::Stage& stage) {
        return std::max(48.0, lane_height(stage) * static_cast<double>(stage.slots));
    }

    static const char* style(Ending ending) {
        constexpr const char* classes[] = {"ok", "again", "lost", "off"};
        return classes[static_cast<int>(ending)];
    }

    // Marks a dead letter.
    void cross(double at_x, double at_y) {
        out_ << "<path d=\"M" << number(at_x - 2.5) << ' ' << number(at_y - 2.5)
             << "l5 5m0 -5l-5 5\" class=\"cross\"/>\n";
    }

    // Says how the queries ended. Those that succeeded in the last stage are completed.
    std::string title() const {
        const auto completed =
            static_cast<std::size_t>(std::ranges::count_if(timeline_.attempts(), [&](const auto& attempt) {
                return attempt.stage + 1 == timeline_.stages().size() && attempt.ending == Ending::succeeded;
            }));
        const std::size_t lost = timeline_.dead_letters().size();
        return counted(completed + lost, "query", "queries") + " in " + seconds(timeline_.end(), 1) + ": " +
               std::to_string(completed) + " completed, " + counted(lost, "dead letter");
    }

    void draw_legend(double at_x, double at_y) {
        const auto entry = [&](std::string_view classes, const std::string& words) {
            at_x = swatch(at_x, at_y, classes, words);
        };
        const auto any = [&](Ending ending) {
            return std::ranges::any_of(timeline_.attempts(), [&](const auto& each) { return each.ending == ending; });
        };
        entry("ok", "succeeded");
        if (any(Ending::retried)) {
            entry("again", "failed, retried");
        }
        if (any(Ending::failed)) {
            const double middle = at_x + 9;
            entry("lost", "failed: dead letter");
            cross(middle, at_y - 4);
        }
        if (any(Ending::cancelled)) {
            entry("off", "cancelled");
        }
        entry("queue", "waiting for a slot");
    }

    void draw_stage(std::size_t index, double y) {
        const Timeline::Stage& stage = timeline_.stages()[index];
        const double lane = lane_height(stage);
        const double block = block_height(stage);
        text(left - 12, y + 13, "name end", stage.name);
        text(left - 12, y + 28, "end", counted(stage.slots, "slot"));
        text(left - 12, y + 43, "end", std::to_string(percent_busy(index)) + " % busy");
        rectangle(left, y, width - left - right, block, "block");
        out_ << " fill-opacity=\".6\"/>\n";
        for (const Timeline::Attempt& attempt : timeline_.attempts()) {
            if (attempt.stage == index) {
                draw_attempt(attempt, y + lane * static_cast<double>(attempt.slot), lane);
            }
        }
        draw_queue(stage, y + block);
    }

    // The share of the whole time in which its slots were taken.
    long percent_busy(std::size_t stage) const {
        Time busy{};
        for (const Timeline::Attempt& attempt : timeline_.attempts()) {
            if (attempt.stage == stage) {
                busy += attempt.end - attempt.begin;
            }
        }
        const double all =
            static_cast<double>(timeline_.end().count()) * static_cast<double>(timeline_.stages()[stage].slots);
        return std::lround(all > 0 ? 100 * static_cast<double>(busy.count()) / all : 0);
    }

    void draw_attempt(const Timeline::Attempt& attempt, double y, double lane) {
        const double from = x(attempt.begin);
        const double long_ = std::max(x(attempt.end) - from - 1, 1.0);  // neighbours stay apart
        rectangle(from, y + 0.5, long_, lane - 1, style(attempt.ending));
        out_ << " rx=\"1.5\"><title>" << escaped(attempt.query.str()) << ", attempt " << attempt.number << ": "
             << seconds(attempt.begin, 3) << " to " << seconds(attempt.end, 3)
             << (attempt.error.empty() ? "" : ", " + escaped(attempt.error)) << "</title></rect>\n";
        if (lane >= 12 && long_ > 8 + 6 * static_cast<double>(attempt.query.str().size())) {
            text(from + 5, y + lane / 2 + 3.5, "id", attempt.query.str());
        }
        if (attempt.ending == Ending::failed) {
            cross(from + long_ / 2, y + lane / 2);
        }
    }

    void draw_queue(const Timeline::Stage& stage, double y) {
        std::size_t most = 0;
        for (const auto& [at, waiting] : stage.queue) {
            most = std::max(most, waiting);
        }
        text(left - 12, y + 22, "end", most == 0 ? "no queue" : "queue up to " + std::to_string(most));
        if (most == 0) {
            return;
        }
        const double bottom = y + queue_height;
        const auto height = [&](std::size_t waiting) {
            return number(bottom - (queue_height - 6) * static_cast<double>(waiting) / static_cast<double>(most));
        };
        out_ << R"(<path class="queue" d="M)" << number(left) << ' ' << number(bottom);
        std::string drawn = number(bottom);
        for (std::size_t i = 0; i != stage.queue.size(); ++i) {
            const auto& [at, waiting] = stage.queue[i];
            if (i + 1 != stage.queue.size() && x(stage.queue[i + 1].at) - x(at) < 0.5) {
                continue;  // too short to be seen
            }
            if (const std::string y_now = height(waiting); y_now != drawn) {
                out_ << 'H' << number(x(at)) << 'V' << y_now;
                drawn = y_now;
            }
        }
        out_ << 'H' << number(x(stage.queue.back().at)) << 'V' << number(bottom) << "z\"/>\n";
    }

    std::ostream& out_;
    const Timeline& timeline_;
};

inline void write_svg(std::ostream& out, const Timeline& timeline) { SvgWriter(out, timeline).write(); }

}  // namespace support
