// SPDX-License-Identifier: BSL-1.0
#include <sluice/sync/timeout.hpp>

#include <boost/asio/awaitable.hpp>

#include <chrono>

// with_timeout() starts the coroutine itself.
void timeout_of_an_awaitable() {
    auto model = []() -> boost::asio::awaitable<int> { co_return 1; };
#ifdef MISTAKE
    static_cast<void>(sluice::with_timeout(std::chrono::seconds(1), model()));
#else
    static_cast<void>(sluice::with_timeout(std::chrono::seconds(1), model));
#endif
}
