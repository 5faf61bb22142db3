// SPDX-License-Identifier: BSL-1.0
// One libFuzzer target per property; the bytes of the fuzzer make every decision of a run.
#include "properties/any_shape.hpp"
#include "properties/barrier.hpp"
#include "properties/choices.hpp"
#include "properties/endpoint.hpp"
#include "properties/pipeline.hpp"
#include "properties/semaphore.hpp"
#include "properties/task_group.hpp"

#include <cstddef>
#include <cstdint>

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
    properties::Choices choices(std::span(data, size));
    properties::SLUICE_PROPERTY(choices);  // an exception that escapes is a crash, which the fuzzer reports
    return 0;
}
