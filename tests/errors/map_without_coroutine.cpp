// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/map.hpp>

#include <boost/asio/awaitable.hpp>

#include <vector>

namespace asio = boost::asio;

#ifdef MISTAKE
inline int tripled(int number) { return 3 * number; }
#else
inline asio::awaitable<int> tripled(int number) { co_return 3 * number; }
#endif

// map_batch() calls a coroutine for each item.
asio::awaitable<void> map_without_coroutine(std::vector<int> numbers) {
    const auto numbers_tripled = co_await sluice::map_batch(numbers, 8, &tripled);
    static_cast<void>(numbers_tripled);
}
