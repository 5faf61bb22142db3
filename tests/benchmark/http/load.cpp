// SPDX-License-Identifier: BSL-1.0
#include "load.hpp"

#include "../../../examples/arguments.hpp"

#include <sys/resource.h>

#include <algorithm>
#include <fstream>
#include <iostream>
#include <stdexcept>
#include <string>

namespace benchmark {

namespace {

double seconds(const timeval& time) {
    return static_cast<double>(time.tv_sec) + static_cast<double>(time.tv_usec) * 1e-6;
}

// Of the process, user and system.
double cpu_time() {
    rusage usage{};
    getrusage(RUSAGE_SELF, &usage);
    return seconds(usage.ru_utime) + seconds(usage.ru_stime);
}

// Not ru_maxrss, which the program that started this one leaves its own in.
long peak_kilobytes() {
    std::ifstream status("/proc/self/status");
    for (std::string word; status >> word;) {
        if (long kilobytes = 0; word == "VmHWM:" && status >> kilobytes) {
            return kilobytes;
        }
    }
    throw std::runtime_error("/proc/self/status has no VmHWM");
}

}  // namespace

LoadOptions parse_load(int argc, char** argv) {
    LoadOptions options;
    for (support::Arguments arguments(argc, argv); arguments.next();) {
        const std::string& option = arguments.option();
        if (option == "--url") {
            options.url = arguments.value("a URL");
        } else if (option == "--queries") {
            options.queries = arguments.number<std::size_t>(1, 10'000'000);
        } else if (option == "--slots") {
            options.slots = arguments.number<std::size_t>(1, 100'000);
        } else {
            arguments.unknown();
        }
    }
    if (options.url.empty()) {
        throw std::invalid_argument("--url is missing");
    }
    return options;
}

std::string question(std::size_t number) {
    return "Question " + std::to_string(number) + ": how does the limit of an endpoint protect the provider behind it?";
}

Measurement::Measurement(std::size_t queries) : cpu_start_(cpu_time()) { calls_.reserve(queries); }

void Measurement::count(Clock::time_point begun, std::size_t characters) {
    calls_.push_back(Clock::now() - begun);
    characters_ += characters;
}

void Measurement::print() const {
    const double cpu = cpu_time() - cpu_start_;
    const std::chrono::duration<double> elapsed = Clock::now() - start_;
    std::vector<Clock::duration> calls = calls_;
    std::sort(calls.begin(), calls.end());
    const auto percentile = [&](std::size_t hundredths) {
        return std::chrono::duration<double, std::milli>(calls.at(calls.size() * hundredths / 100)).count();
    };
    std::cout << "{\"queries\": " << calls.size() << ", \"characters\": " << characters_
              << ", \"seconds\": " << elapsed.count() << ", \"cpu_seconds\": " << cpu
              << ", \"p50_ms\": " << percentile(50) << ", \"p99_ms\": " << percentile(99)
              << ", \"peak_kb\": " << peak_kilobytes() << "}\n";
}

}  // namespace benchmark
