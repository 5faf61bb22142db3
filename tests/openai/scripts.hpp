// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "openai/scripted_server.hpp"

namespace test {

inline openai::Script always(openai::Behaviour behaviour) {
    return [behaviour](const openai::ScriptedRequest&) { return behaviour; };
}

}  // namespace test
