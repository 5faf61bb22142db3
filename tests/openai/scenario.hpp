// SPDX-License-Identifier: BSL-1.0
// What the scenarios have in common.
#pragma once

#include "client_scene.hpp"
#include "scripts.hpp"

#include "openai/scripted_server.hpp"

#include <sluice/result.hpp>
#include <sluice/stage/retry.hpp>
#include <sluice/stage/stage_options.hpp>
#include <sluice/stage/verdict.hpp>

#include <catch2/catch_test_macros.hpp>

#include <algorithm>
#include <chrono>
#include <map>
#include <optional>
#include <string>

namespace test {

inline sluice::StageOptions with_retries(int retries, std::optional<std::chrono::nanoseconds> timeout = {}) {
    return {.timeout = timeout, .retry = {.max_retries = retries, .backoff = {.initial = 1ms, .seed = 1}}};
}

// The first request for each text is answered in one way, and its repetitions correctly.
inline openai::Script first_time(openai::Behaviour behaviour) {
    return [behaviour, seen = std::map<std::string, int>()](const openai::ScriptedRequest& request) mutable {
        return seen[request.texts.at(0)]++ == 0 ? behaviour : openai::Behaviour();
    };
}

inline bool all_completed(const ClientScene::Results& results) {
    return std::ranges::all_of(results, [](const auto& result) { return result.completed; });
}

inline bool all_have_attempts(const ClientScene::Results& results, int attempts) {
    return std::ranges::all_of(results,
                               [=](const auto& result) { return result.stage_results.front().attempts == attempts; });
}

// The error of every query, which is the same but for its text.
inline sluice::StageResult<> the_failure(const ClientScene::Results& results) {
    for (const auto& result : results) {
        REQUIRE(result.failure() != nullptr);
        CHECK(sluice::verdict_of(result.failure()->error.exception()).kind ==
              sluice::verdict_of(results.front().failure()->error.exception()).kind);
    }
    return *results.front().failure();
}

inline sluice::Verdict::Kind kind_of(const sluice::StageResult<>& failure) {
    return sluice::verdict_of(failure.error.exception()).kind;
}

}  // namespace test
