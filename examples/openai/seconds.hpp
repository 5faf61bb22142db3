// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <chrono>
#include <sstream>
#include <string>

namespace openai {

/// Returns a time for people, such as "0.25 s".
inline std::string in_seconds(std::chrono::nanoseconds time) {
    std::ostringstream text;
    text << std::chrono::duration<double>(time).count() << " s";
    return std::move(text).str();
}

}  // namespace openai
