// SPDX-License-Identifier: BSL-1.0
#pragma once

#include "task.hpp"

#include <boost/asio/any_io_executor.hpp>
#include <boost/asio/awaitable.hpp>
#include <boost/asio/co_spawn.hpp>
#include <boost/asio/io_context.hpp>

#include <cstddef>
#include <exception>
#include <optional>
#include <utility>
#include <vector>

namespace test {

using Order = std::vector<std::size_t>;

/// The base of a fixture for a primitive that coroutines wait for. Nothing runs until the test polls the context, which
/// it may destroy.
struct Waiters {
    std::size_t poll() { return test::poll(*context); }

    /// Starts a coroutine that awaits the operation returned by `wait`, and does not poll: it begins after what was
    /// posted before. Its number is added to `order` when it continues.
    template <class T, class Wait>
    Task<T> start_waiter(Wait wait) {
        return {context->get_executor(), [this, wait, number = started++]() -> asio::awaitable<T> {
                    T result = co_await wait();
                    order.push_back(number);
                    co_return result;
                }};
    }

    std::size_t started = 0;
    Order order;
    std::optional<asio::io_context> context{std::in_place};
};

/// Thrown by a completion handler, and so out of the event loop.
struct Escaped {};

/// Starts three coroutines that await the operation returned by `wait`. The completion handler of number `thrower`
/// throws Escaped; the other two are returned.
template <class T, class Wait>
std::vector<Task<T>> start_three(const asio::any_io_executor& executor, Wait wait, std::size_t thrower) {
    std::vector<Task<T>> others;
    for (std::size_t i = 0; i != 3; ++i) {
        if (i == thrower) {
            asio::co_spawn(executor, wait, [](const std::exception_ptr&, const T&) { throw Escaped(); });
        } else {
            others.emplace_back(executor, wait);
        }
    }
    return others;
}

}  // namespace test
