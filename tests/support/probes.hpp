// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/cancellation_type.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <vector>

namespace test {

/// Counts itself for as long as it lives. A copy or a destruction too many shows in the count.
class Live {
public:
    explicit Live(int& count) : count_(&count) { ++count; }
    Live(const Live& other) : count_(other.count_) { ++*count_; }
    Live& operator=(const Live&) = delete;
    ~Live() { --*count_; }

private:
    int* count_;
};

/// How many bytes of stack lie between the deepest and the shallowest call of touch().
class StackSpan {
public:
    [[gnu::noinline]] void touch() {
        const auto here = reinterpret_cast<std::uintptr_t>(__builtin_frame_address(0));
        lowest_ = std::min(lowest_, here);
        highest_ = std::max(highest_, here);
    }

    std::uintptr_t size() const { return highest_ - lowest_; }

private:
    std::uintptr_t lowest_ = std::numeric_limits<std::uintptr_t>::max();
    std::uintptr_t highest_ = 0;
};

/// What the std::invalid_argument says that `function` throws.
template <class Function>
std::string refusal_of(Function function) {
    try {
        function();
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "no error";
}

/// Each type of cancellation, one a run of the test.
inline auto any_cancellation() {
    using boost::asio::cancellation_type;
    return GENERATE(cancellation_type::terminal, cancellation_type::partial, cancellation_type::total);
}

/// 0, 1, ... n-1.
inline std::vector<std::size_t> first_numbers(std::size_t n) {
    std::vector<std::size_t> numbers(n);
    std::iota(numbers.begin(), numbers.end(), std::size_t{0});
    return numbers;
}

}  // namespace test
