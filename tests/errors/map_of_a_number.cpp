// SPDX-License-Identifier: BSL-1.0
#include <sluice/pipeline/map.hpp>

#include <boost/asio/awaitable.hpp>

#include <vector>

namespace asio = boost::asio;

inline asio::awaitable<int> doubled(int number) { co_return 2 * number; }

// map_batch() needs the items, not their number.
asio::awaitable<void> map_of_a_number(std::vector<int> numbers) {
#ifdef MISTAKE
    const auto numbers_doubled = co_await sluice::map_batch(numbers.size(), 8, &doubled);
#else
    const auto numbers_doubled = co_await sluice::map_batch(numbers, 8, &doubled);
#endif
    static_cast<void>(numbers_doubled);
}
