// SPDX-License-Identifier: BSL-1.0
// One libFuzzer target per property: the fuzzer's bytes make every decision of a run.
#include "properties/barrier.hpp"
#include "properties/choices.hpp"
#include "properties/pipeline.hpp"
#include "properties/semaphore.hpp"
#include "properties/task_group.hpp"

#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    properties::Choices choices(std::span(data, size));
    properties::SLUICE_PROPERTY(choices);  // what it throws is a crash, which is what a fuzzer looks for
    return 0;
}
