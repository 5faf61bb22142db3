// SPDX-License-Identifier: BSL-1.0
#pragma once

#include <boost/asio/cancellation_type.hpp>
#include <catch2/generators/catch_generators.hpp>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <exception>
#include <limits>
#include <numeric>
#include <stdexcept>
#include <string>
#include <type_traits>
#include <utility>
#include <vector>

namespace test {

/// Counts itself while it lives. An unexpected copy or destruction shows in the count.
class Live {
public:
    explicit Live(int& count) : count_(&count) { ++count; }
    Live(const Live& other) : count_(other.count_) { ++*count_; }
    Live& operator=(const Live&) = delete;
    ~Live() { --*count_; }

private:
    int* count_;
};

/// Calls a function when it is destroyed.
template <class Function>
class AtExit {
public:
    explicit AtExit(Function function) : function_(std::move(function)) {}
    AtExit(const AtExit&) = delete;
    AtExit& operator=(const AtExit&) = delete;
    ~AtExit() { function_(); }

private:
    Function function_;
};

/// The number of bytes of stack between the deepest and the shallowest call of touch().
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

/// The message of the std::invalid_argument that `function` throws.
template <class Function>
std::string refusal_of(Function function) {
    try {
        function();
    } catch (const std::invalid_argument& error) {
        return error.what();
    }
    return "no error";
}

/// `inner` nested in a std::logic_error.
inline std::exception_ptr nested_in_logic_error(const std::exception_ptr& inner, const char* outer = "outer") {
    try {
        try {
            std::rethrow_exception(inner);
        } catch (...) {
            std::throw_with_nested(std::logic_error(outer));
        }
    } catch (...) {
        return std::current_exception();
    }
}

/// A type of cancellation; the test runs once for each.
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

/// The results of `n` calls of `function`.
template <class Function>
auto repeat(std::size_t n, Function function) {
    std::vector<std::invoke_result_t<Function&>> results;
    results.reserve(n);
    while (results.size() != n) {
        results.push_back(function());
    }
    return results;
}

/// Whether no query holds a slot in any stage of a pipeline.
template <class Pipeline>
bool no_slot_taken(Pipeline& pipeline) {
    return pipeline.classify().endpoint().active() == 0 && pipeline.extract().endpoint().active() == 0 &&
           pipeline.generate().endpoint().active() == 0;
}

}  // namespace test
