// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <sluice/metrics/histogram.hpp>
#include <sluice/sync/detail/require.hpp>

#include <cmath>
#include <initializer_list>
#include <string>
#include <string_view>
#include <utility>

namespace sluice::detail {

// Writes the text format of Prometheus, family by family.
class PrometheusText {
public:
    struct Label {
        std::string_view name;
        std::string_view value;
    };
    using Labels = std::initializer_list<Label>;

    // Begins a family, and calls `write` with each of `items`; nothing, if there are none.
    template <class Items, class Write>
    void family(std::string_view name, std::string_view type, std::string_view help, const Items& items, Write write) {
        if (items.empty()) {
            return;
        }
        name_ = name;
        add({"# HELP ", name, " ", help, "\n# TYPE ", name, " ", type, "\n"});
        for (const auto& item : items) {
            write(item);
        }
    }

    // Writes one sample of the family.
    template <class Number>
    void sample(Labels labels, Number value) {
        sample("", labels, value);
    }

    void histogram(std::string_view label, std::string_view value, const Histogram& histogram) {
        for (int octave = 0; octave <= 13; ++octave) {
            const std::string bound = format_number(std::ldexp(0.01, octave));
            sample("_bucket", {{label, value}, {"le", bound}}, histogram.count_up_to(octave));
        }
        const auto count = histogram.count();
        sample("_bucket", {{label, value}, {"le", "+Inf"}}, count);
        sample("_sum", {{label, value}}, histogram.sum().count());
        sample("_count", {{label, value}}, count);
    }

    std::string take() noexcept { return std::move(text_); }

private:
    template <class Number>
    void sample(std::string_view suffix, Labels labels, Number value) {
        add({name_, suffix});
        char separator = '{';
        for (const Label& label : labels) {
            text_ += std::exchange(separator, ',');
            add({label.name, "=\""});
            add_escaped(label.value);
            text_ += '"';
        }
        add({"} ", format_number(value), "\n"});
    }

    void add(std::initializer_list<std::string_view> parts) {
        for (const std::string_view part : parts) {
            text_ += part;
        }
    }

    void add_escaped(std::string_view value) {
        for (const char c : value) {
            if (c == '\n') {
                text_ += "\\n";
            } else {
                if (c == '\\' || c == '"') {
                    text_ += '\\';
                }
                text_ += c;
            }
        }
    }

    std::string text_;
    std::string_view name_;  // of the family
};

}  // namespace sluice::detail
