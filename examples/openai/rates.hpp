// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "header_values.hpp"

#include <sluice/stage/attempt.hpp>

namespace openai {

/// Tells `attempt` what the headers `x-ratelimit-...` of an answer say of the provider's limits: how many requests and
/// tokens are left, and when all are there again. A pair of headers is ignored if one is missing or makes no sense,
/// such as -1 left, a limit of zero, or more than 1 h until then.
void report_rates(const Headers& headers, sluice::Attempt& attempt);

}  // namespace openai
