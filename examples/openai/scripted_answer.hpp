// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "scripted_server.hpp"

#include <string>
#include <vector>

namespace openai {

/// An answer as it goes over the wire.
struct ScriptedAnswer {
    int status = 0;
    std::vector<std::string> pieces;  ///< The first begins with the headers.
};

ScriptedAnswer scripted_answer(const ScriptedRequest& request, const Behaviour& behaviour);

}  // namespace openai
