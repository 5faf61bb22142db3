// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "scripted_server.hpp"

#include <algorithm>
#include <chrono>
#include <cstddef>
#include <optional>
#include <stdexcept>
#include <string>

namespace openai {

/// The limits of a ScriptedServer: its slots and its rate.
class ScriptedLimits {
public:
    /// @throws std::invalid_argument naming the option that is out of range, and its value.
    explicit ScriptedLimits(const ScriptedServerOptions& options)
        : slots_(options.slots), rate_(options.rate), burst_(options.burst) {
        require("rate", rate_, 0);
        require("burst", burst_, 1);
        if (options.keep_alive.count() <= 0) {
            throw std::invalid_argument("ScriptedServer: keep_alive must be positive, got " +
                                        std::to_string(options.keep_alive.count()) + " ns");
        }
    }

    /// Returns how a request is refused if there are too many. It is one of `working`.
    std::optional<Behaviour> refuse(std::size_t working) {
        if (slots_ != 0 && working > slots_) {
            return Behaviour::error(429, "rate_limit_exceeded", "all slots are in use");
        }
        if (rate_ != 0) {
            const auto interval = std::chrono::nanoseconds(std::chrono::seconds(1)) / rate_;
            const auto now = std::chrono::steady_clock::now();
            const auto wait = next_ - interval * (burst_ - 1) - now;
            if (wait.count() > 0) {
                return Behaviour::throttled(std::chrono::ceil<std::chrono::milliseconds>(wait));
            }
            next_ = std::max(next_, now) + interval;
        }
        return std::nullopt;
    }

private:
    static void require(const char* name, int value, int least) {
        if (value < least || value > 1'000'000) {
            throw std::invalid_argument(std::string("ScriptedServer: ") + name + " must be from " +
                                        std::to_string(least) + " to 1000000, got " + std::to_string(value));
        }
    }

    std::size_t slots_;
    int rate_;
    int burst_;
    std::chrono::steady_clock::time_point next_;  // when the next request may come if none was saved up
};

}  // namespace openai
