// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <algorithm>
#include <chrono>
#include <cmath>
#include <cstddef>
#include <cstdio>
#include <ostream>
#include <string>
#include <string_view>

namespace support {

/// What the pictures of the examples have in common: a dark card with a title, a legend, and time from left to right.
class Svg {
public:
    using Time = std::chrono::nanoseconds;

    static constexpr double width = 960, left = 98, right = 24;

    /// @param out What is drawn is written there.
    /// @param end The time at the right edge, from zero at the left one.
    Svg(std::ostream& out, Time end) : out_(out), end_(end) {}

    Time end() const noexcept { return end_; }

    double x(Time at) const {
        const double whole = static_cast<double>(std::max(end_, Time(1)).count());
        return left + (width - left - right) * static_cast<double>(at.count()) / whole;
    }

    /// Returns the number with at most one decimal.
    static std::string number(double value) {
        char text[32];
        std::snprintf(text, sizeof text, "%.1f", value);
        const std::string_view whole(text);
        return std::string(whole.ends_with(".0") ? whole.substr(0, whole.size() - 2) : whole);
    }

    static std::string seconds(Time time, int decimals) {
        char text[32];
        std::snprintf(text, sizeof text, "%.*f s", decimals, std::chrono::duration<double>(time).count());
        return text;
    }

    static std::string escaped(const std::string& text) {
        std::string result;
        for (const char c : text) {
            switch (c) {
                case '&':
                    result += "&amp;";
                    break;
                case '<':
                    result += "&lt;";
                    break;
                case '>':
                    result += "&gt;";
                    break;
                default:
                    result += static_cast<unsigned char>(c) < 0x20 ? ' ' : c;  // XML does not allow those
            }
        }
        return result;
    }

    /// Begins the picture, of the given height. `style` is CSS for the classes that it has besides those below.
    void begin(double height, const std::string& title, std::string_view style) {
        out_ << R"(<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 )" << number(width) << ' ' << number(height)
             << "\" width=\"" << number(width) << "\" height=\"" << number(height) << "\" role=\"img\">\n<title>"
             << escaped(title) << "</title>\n"
             << R"(<style>
text { font: 11px system-ui, -apple-system, "Segoe UI", Roboto, Helvetica, Arial, sans-serif; fill: #94a3b8 }
.title { font-size: 17px; font-weight: 600; fill: #f1f5f9 }
.name { font-size: 13px; font-weight: 600; fill: #f1f5f9 }
.end { text-anchor: end } .middle { text-anchor: middle } .id { font-size: 10px; fill: #082f49 }
.card { fill: #0f172a; stroke: #334155 } .block { fill: #1e293b } .grid { stroke: #475569; stroke-opacity: .55 }
)" << style << "</style>\n";
        rectangle(0.5, 0.5, width - 1, height - 1, "card");
        out_ << " rx=\"10\"/>\n";
        text(22, 33, "title", title);
    }

    void finish() { out_ << "</svg>\n"; }

    void text(double at_x, double at_y, std::string_view classes, const std::string& words) {
        out_ << "<text x=\"" << number(at_x) << "\" y=\"" << number(at_y) << "\" class=\"" << classes << "\">"
             << escaped(words) << "</text>\n";
    }

    /// Begins a rectangle; the caller ends it, with further attributes or a title.
    void rectangle(double at_x, double at_y, double w, double h, std::string_view classes) {
        out_ << "<rect x=\"" << number(at_x) << "\" y=\"" << number(at_y) << "\" width=\"" << number(w)
             << "\" height=\"" << number(h) << "\" class=\"" << classes << '"';
    }

    /// Draws an entry of the legend, and returns where the next one begins.
    double swatch(double at_x, double at_y, std::string_view classes, const std::string& words) {
        rectangle(at_x, at_y - 8, 18, 8, classes);
        out_ << " rx=\"1.5\"/>\n";
        text(at_x + 24, at_y, "", words);
        return at_x + 52 + 5.8 * static_cast<double>(words.size());
    }

    /// Draws about eight lines, at round times.
    /// @param top, bottom Between which the lines are.
    /// @param at_y Where the times are written.
    void axis(double top, double bottom, double at_y) {
        const double whole = std::chrono::duration<double>(end_).count();
        const double about = std::max(whole, 1e-6) / 8;
        const double power = std::pow(10, std::floor(std::log10(about)));
        const double step = power * (about / power < 1.5 ? 1 : about / power < 3.5 ? 2 : about / power < 7.5 ? 5 : 10);
        const bool marked = whole >= step;  // besides the origin
        const int decimals = marked ? std::max(0, static_cast<int>(-std::floor(std::log10(step) + 1e-9))) : 0;
        for (int i = 0;; ++i) {
            const auto at = std::chrono::duration_cast<Time>(std::chrono::duration<double>(step * i));
            if (at > end_) {
                break;
            }
            out_ << "<path d=\"M" << number(x(at)) << ' ' << number(top) << 'V' << number(bottom)
                 << "\" class=\"grid\"/>\n";
            text(x(at), at_y, "middle", seconds(at, decimals));
        }
    }

private:
    std::ostream& out_;
    Time end_;
};

}  // namespace support
