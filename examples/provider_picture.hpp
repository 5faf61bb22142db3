// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "counted.hpp"
#include "provider_log.hpp"
#include "simulated_providers.hpp"
#include "svg.hpp"

#include <algorithm>
#include <array>
#include <chrono>
#include <cstddef>
#include <ostream>
#include <string>
#include <string_view>
#include <utility>
#include <vector>

namespace support {

/// Draws the log of two providers as an SVG. For each provider: its troubles as a coloured background; the calls that
/// began at each time, by how they ended; its limit; and below that the times when its breaker was open or half-open,
/// and its pauses. At the bottom: the queries answered so far, by provider.
class ProviderPicture : Svg {
public:
    ProviderPicture(std::ostream& out, const ProviderLog& log, std::array<Provider, 2> providers)
        : Svg(out, log.end()), out_(out), log_(log), providers_(std::move(providers)) {}

    /// @param queries How many there were.
    void write(std::size_t queries) {
        double height = top;
        for (std::size_t i = 0; i != providers_.size(); ++i) {
            height += panel_height(i);
        }
        const double total = height + total_height + 44;
        begin(total, title(queries), css);
        draw_legend(22, 56);
        axis(top, height + total_height + 5, total - 17);
        double y = top;
        for (std::size_t i = 0; i != providers_.size(); ++i) {
            draw_provider(i, y);
            y += panel_height(i);
        }
        draw_total(y);
        finish();
    }

private:
    using Ending = ProviderLog::Ending;
    using State = ProviderLog::State;

    static constexpr double top = 74, label_height = 17, per_call = 10, strip_height = 13, strip_gap = 4, gap = 22,
                            total_height = 120;
    static constexpr Time bar = std::chrono::seconds(2);
    static constexpr std::array answered{"first", "second"};  // by provider

    static constexpr std::string_view css =
        R"(.first { fill: #38bdf8 } .second { fill: #34d399 } .failed { fill: #fb4b67 } .late { fill: #fbbf24 }
.throttled { fill: #c084fc } .open { fill: #94a3b8 } .probing { fill: #f8fafc } .dark { fill: #0b1a30; font-weight: 600 }
.down { fill: #fb4b67; fill-opacity: .2 } .slow { fill: #fbbf24; fill-opacity: .17 } .lowered { fill: #c084fc; fill-opacity: .2 }
.limit { fill: none; stroke: #f1f5f9; stroke-dasharray: 4 3 } .bright { fill: #e2e8f0 }
)";

    static double calls_a_second(int in_period) {
        return static_cast<double>(in_period) / static_cast<double>(Provider::period.count());
    }
    double plot_height(std::size_t i) const { return per_call * (calls_a_second(providers_[i].allowed) + 1); }
    std::size_t strips(std::size_t i) const { return entry(i).pauses.empty() ? 1 : 2; }
    double panel_height(std::size_t i) const {
        return label_height + plot_height(i) + (strip_height + strip_gap) * static_cast<double>(strips(i)) + gap;
    }
    const ProviderLog::Entry& entry(std::size_t i) const { return log_.of(providers_[i].name); }

    std::string title(std::size_t queries) const {
        std::string words = counted(queries, "query", "queries") + " in " + seconds(end(), 0) + ": ";
        std::size_t all = 0;
        for (std::size_t i = 0; i != providers_.size(); ++i) {
            const std::size_t n = entry(i).count(Ending::answered);
            words += std::to_string(n) + (i == 0 ? " answered by " : " by ") + providers_[i].name + ", ";
            all += n;
        }
        return words + (all == queries ? "none" : std::to_string(queries - all)) + " lost";
    }

    void draw_legend(double at_x, double at_y) {
        const std::array<std::array<std::string, 2>, 7> all{{{"first", "answered by " + providers_[0].name},
                                                             {"second", "answered by " + providers_[1].name},
                                                             {"failed", "failed"},
                                                             {"late", "timed out"},
                                                             {"throttled", "throttled"},
                                                             {"open", "breaker open"},
                                                             {"probing", "half-open: probes"}}};
        for (const auto& [classes, words] : all) {
            at_x = swatch(at_x, at_y, classes, words);
        }
    }

    void draw_provider(std::size_t i, double y) {
        const Provider& provider = providers_[i];
        const double plot = y + label_height;
        const double bottom = plot + plot_height(i);
        text(left - 12, y + 12, "name end", provider.name);
        rectangle(left, plot, width - left - right, plot_height(i), "block");
        out_ << " fill-opacity=\".6\"/>\n";
        for (const Trouble& trouble : provider.troubles) {
            draw_trouble(provider, trouble, y, bottom);
        }
        draw_calls(i, bottom);
        draw_limit(provider, bottom);
        text(left - 12, bottom - per_call * calls_a_second(provider.allowed) + 4, "end",
             "limit " + number(calls_a_second(provider.allowed)) + "/s");
        text(left - 12, bottom - 2, "end", "calls a second");

        double strip = bottom + strip_gap;
        draw_strip(strip, "breaker");
        for (const ProviderLog::BreakerSpan& span : entry(i).breaker) {
            draw_span(span, strip, span.state == State::open ? "open" : "probing", "open");
        }
        if (strips(i) > 1) {
            strip += strip_height + strip_gap;
            draw_strip(strip, "pause");
            for (const ProviderLog::Span& span : entry(i).pauses) {
                draw_span(span, strip, "throttled", "");
            }
        }
    }

    // Whatever is wrong is behind what comes of it, in the same hue.
    void draw_trouble(const Provider& provider, const Trouble& trouble, double y, double bottom) {
        if (trouble.from >= end()) {
            return;
        }
        constexpr const char* classes[] = {"down", "slow", "lowered"};
        const std::string words[] = {"down", "slow",
                                     "limit lowered to " + number(calls_a_second(provider.lowered)) + "/s"};
        const auto kind = static_cast<std::size_t>(trouble.kind);
        const double from = x(trouble.from);
        const double to = x(std::min<Time>(trouble.to, end()));
        rectangle(from, y, to - from, bottom - y, classes[kind]);
        out_ << "/>\n";
        text((from + to) / 2, y + 12, "bright middle", words[kind]);
    }

    // A path of one bar for each time, upon those drawn before.
    void draw_calls(std::size_t i, double bottom) {
        constexpr std::array order{Ending::answered, Ending::timed_out, Ending::throttled, Ending::failed};
        const std::array<const char*, 4> classes{answered[i], "late", "throttled", "failed"};
        std::vector<std::size_t> below(static_cast<std::size_t>(end() / bar) + 1);
        const auto y = [&](std::size_t calls) {
            return number(bottom - per_call * static_cast<double>(calls) / std::chrono::duration<double>(bar).count());
        };
        for (std::size_t kind = 0; kind != order.size(); ++kind) {
            std::vector<std::size_t> calls(below.size());
            for (const ProviderLog::Call& call : entry(i).calls) {
                calls[static_cast<std::size_t>(call.begin / bar)] += call.ending == order[kind];
            }
            if (std::ranges::all_of(calls, [](std::size_t n) { return n == 0; })) {
                continue;
            }
            out_ << "<path class=\"" << classes[kind] << "\" d=\"";
            for (std::size_t at = 0; at != calls.size(); ++at) {
                if (calls[at] != 0) {
                    const Time from = static_cast<Time::rep>(at) * bar;
                    out_ << 'M' << number(x(from)) << ' ' << y(below[at]) << 'V' << y(below[at] + calls[at]) << 'H'
                         << number(x(std::min(from + bar, end())) - 0.8) << 'V' << y(below[at]) << 'z';
                    below[at] += calls[at];
                }
            }
            out_ << "\"/>\n";
        }
    }

    void draw_limit(const Provider& provider, double bottom) {
        const auto y = [&](int calls) { return number(bottom - per_call * calls_a_second(calls)); };
        out_ << R"(<path class="limit" d="M)" << number(left) << ' ' << y(provider.allowed);
        for (const Trouble& trouble : provider.troubles) {
            if (trouble.kind == Trouble::Kind::lowered && trouble.from < end()) {
                out_ << 'H' << number(x(trouble.from)) << 'V' << y(provider.lowered) << 'H'
                     << number(x(std::min<Time>(trouble.to, end()))) << 'V' << y(provider.allowed);
            }
        }
        out_ << 'H' << number(width - right) << "\"/>\n";
    }

    void draw_strip(double y, const std::string& words) {
        text(left - 12, y + 10, "end", words);
        rectangle(left, y, width - left - right, strip_height, "block");
        out_ << " fill-opacity=\".6\"/>\n";
    }

    void draw_span(const ProviderLog::Span& span, double y, const char* classes, const std::string& words) {
        const double from = x(span.from);
        const double long_ = std::max(x(std::min(span.to, end())) - from, 1.5);  // so that it is seen
        rectangle(from, y, long_, strip_height, classes);
        out_ << " rx=\"1.5\"/>\n";
        if (!words.empty() && long_ > 12 + 6 * static_cast<double>(words.size())) {
            text(from + long_ / 2, y + 10, "dark middle", words);
        }
    }

    // For each provider the number of queries that it has answered so far, upon those before it.
    void draw_total(double y) {
        const double bottom = y + total_height;
        text(left - 12, y + 12, "name end", "answered");
        rectangle(left, y, width - left - right, total_height, "block");
        out_ << " fill-opacity=\".6\"/>\n";
        std::array<std::vector<Time>, 2> times;
        for (std::size_t i = 0; i != times.size(); ++i) {
            for (const ProviderLog::Call& call : entry(i).calls) {  // in the order of their ends
                if (call.ending == Ending::answered) {
                    times[i].push_back(call.end);
                }
            }
        }
        const std::size_t all = times[0].size() + times[1].size();
        if (all == 0) {
            return;
        }
        text(left - 12, y + 28, "end", "up to " + std::to_string(all));
        // The height of the first i providers' answers at this time.
        const auto y_of = [&](std::size_t i, Time at) {
            std::ptrdiff_t done = 0;
            for (std::size_t below = 0; below != i; ++below) {
                done += std::ranges::upper_bound(times[below], at) - times[below].begin();
            }
            return bottom - (total_height - 8) * static_cast<double>(done) / static_cast<double>(all);
        };
        for (std::size_t i = providers_.size(); i != 0; --i) {  // the larger sum is behind the smaller one
            out_ << "<path class=\"" << answered[i - 1] << "\" d=\"M" << number(left) << ' ' << number(bottom);
            for (Time at{}; at < end(); at += bar / 2) {
                out_ << 'L' << number(x(at)) << ' ' << number(y_of(i, at));
            }
            out_ << 'L' << number(x(end())) << ' ' << number(y_of(i, end())) << 'V' << number(bottom) << "z\"/>\n";
        }
        for (std::size_t i = 0; i != providers_.size(); ++i) {
            const Time at = end() - end() / 16;  // about the middle of the words
            const double from = y_of(i + 1, at);
            const double to = y_of(i, at);
            if (to - from > 14) {
                text(width - right - 10, (from + to) / 2 + 4, "dark end",
                     std::to_string(times[i].size()) + " by " + providers_[i].name);
            }
        }
    }

    std::ostream& out_;
    const ProviderLog& log_;
    std::array<Provider, 2> providers_;
};

}  // namespace support
