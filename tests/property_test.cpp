// SPDX-License-Identifier: BSL-1.0
// Properties that hold in every interleaving, checked for many seeds. To run a single seed:
//
//     sluice_property_tests "property: batch" --first-seed 4711 --seeds 1
#include "properties/any_shape.hpp"
#include "properties/barrier.hpp"
#include "properties/choices.hpp"
#include "properties/endpoint.hpp"
#include "properties/pipeline.hpp"
#include "properties/semaphore.hpp"
#include "properties/task_group.hpp"

#include <catch2/catch_session.hpp>
#include <catch2/catch_test_macros.hpp>

#include <cstdint>
#include <exception>
#include <iostream>

namespace {

std::uint64_t first_seed = 0;
std::uint64_t seeds = 10'000;

template <class Property>
void for_all_seeds(Property property) {
    for (std::uint64_t seed = first_seed; seed != first_seed + seeds; ++seed) {
        properties::Choices choices(seed);
        try {
            property(choices);
        } catch (const std::exception& error) {
            FAIL("seed " << seed << ": " << error.what() << " (replay with --first-seed " << seed << " --seeds 1)");
        }
    }
    SUCCEED();
}

TEST_CASE("property: semaphore", "[property]") { for_all_seeds(properties::check_semaphore); }
TEST_CASE("property: barrier", "[property]") { for_all_seeds(properties::check_barrier); }
TEST_CASE("property: task group", "[property]") { for_all_seeds(properties::check_task_group); }
TEST_CASE("property: endpoint", "[property]") { for_all_seeds(properties::check_endpoint); }
TEST_CASE("property: batch", "[property]") { for_all_seeds(properties::check_batch); }
TEST_CASE("property: stream", "[property]") { for_all_seeds(properties::check_stream); }
TEST_CASE("property: any shape", "[property]") { for_all_seeds(properties::check_any_shape); }

}  // namespace

int main(int argc, char** argv) {
    Catch::Session session;
    session.cli(session.cli() |
                Catch::Clara::Opt(first_seed, "seed")["--first-seed"]("the first seed to try; default 0") |
                Catch::Clara::Opt(seeds, "count")["--seeds"]("how many seeds to try; default 10000"));
    if (const int error = session.applyCommandLine(argc, argv)) {
        return error;
    }
    if (seeds == 0) {
        std::cerr << "sluice_property_tests: --seeds takes a number from 1; with 0 nothing would be tried\n";
        return 2;
    }
    return session.run();
}
